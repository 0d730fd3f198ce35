import dataclasses
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
import torch

import evaluate
from evaluation import Journal, Sitting
from llama import Llama, LlamaConfig, Tokenizer, read_config, save_checkpoint
from lora import LoraConfig, add_lora, save_adapter
from recipe import ModelOptions, load_for_inference

ORGANS = ["heart", "liver", "kidney", "spleen", "lung"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a tokenizer of its own."""
    folder = tmp_path_factory.mktemp("base")
    text = folder / "corpus.txt"
    text.write_text("\n".join(f"The {organ} is an organ. Which organ is the {organ}?" for organ in ORGANS * 5))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "tokenizer"), vocab_size=330, model_type="bpe", byte_fallback=True,
        hard_vocab_limit=False, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, minloglevel=2,
    )  # fmt: skip
    config = LlamaConfig(Tokenizer(folder).vocab_size, 32, 2, 4, 2, 64, max_seq_len=768)
    save_checkpoint(Llama(config).init_weights(torch.Generator().manual_seed(0), std=0.3), folder, "hf")
    return folder


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that changes the model a good deal."""
    folder = tmp_path_factory.mktemp("adapter")
    model = load_for_inference(base, progress=False).model
    add_lora(
        model, LoraConfig(4, 32, 0.0, ("q_proj", "v_proj", "down_proj")), generator=torch.Generator().manual_seed(1)
    )
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                parameter.normal_(generator=draw)
    save_adapter(model, folder)
    return folder


@pytest.fixture(scope="module")
def exam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of six and four questions, marked seen and unseen."""
    folder = tmp_path_factory.mktemp("exam")
    options = dict(zip("ABCDE", ORGANS, strict=True))
    for step, n in ((1, 6), (2, 4)):
        questions = [
            {"no": i, "question": f"Which organ has the number {i}?", "options": options, "seen": i % 2 == 0}
            for i in range(1, n + 1)
        ]
        key = {str(i): "ABCDE"[i % 5] for i in range(1, n + 1)}
        (folder / f"step{step}.json").write_text(json.dumps(questions))
        (folder / f"step{step}_solutions.json").write_text(json.dumps(key))
    return folder


def run(*arguments: object) -> None:
    evaluate.main([str(argument) for argument in arguments])


def plain(text: str) -> str:
    """The text without the console's line breaks."""
    return " ".join(text.split())


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The message with which the program gives up: its exit status, or tyro's panel for a bad flag."""
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    return f"{caught.value.code} {' '.join(capsys.readouterr().err.split())}"


def rows(text: str) -> dict[str, list[str]]:
    """The printed table: first cell -> the others."""
    groups = ("step1", "step2", "seen", "unseen", "all")
    cells = (line.split() for line in text.splitlines())
    return {row[0]: row[1:] for row in cells if row and row[0] in groups}


def test_scores_an_exam_and_reports(base: Path, exam: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "report.json"
    run("--base", base, "--exam", exam, "--out", out)
    text = capsys.readouterr().out
    table = rows(text)
    assert list(table) == ["step1", "step2", "seen", "unseen", "all"]
    assert [cells[0] for cells in table.values()] == ["6", "4", "5", "5", "10"]
    assert all(cells[-1] == "20.0%" for cells in table.values())
    report = json.loads(out.read_text())
    assert [row["id"] for row in report["questions"]] == [f"step1/{i}" for i in range(1, 7)] + [
        f"step2/{i}" for i in range(1, 5)
    ]
    assert report["accuracy"]["all"]["correct"] == int(table["all"][1])
    assert report["settings"]["base"] == str(base)
    assert report["settings"]["method"] == "text_per_token"
    assert "tries" not in report["settings"]  # has no effect here
    assert "float32" in report["settings"]["description"]
    assert "note: n = 10: 95 % intervals reach ±31.0 points" in text
    assert "n = 10: 95 % intervals reach ±31.0 points" in report["notes"]
    page = out.with_suffix(".html").read_text()
    assert "Which organ has the number 1?" in page
    assert {file.name for file in tmp_path.iterdir()} == {"report.json", "report.html"}  # the journal has served


def test_before_and_after(base: Path, adapter: Path, exam: Path, tmp_path: Path, capsys) -> None:
    """The three calls of `make demo`, on another model."""
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    run("--base", base, "--exam", exam, "--out", before)
    run("--base", base, "--exam", exam, "--adapter", adapter, "--int8", "--out", after, "--compare", before)
    text = capsys.readouterr().out
    assert "gained" in text
    described = " ".join(text.split())  # the console wraps long lines
    assert "before: " in described
    after_line = described[described.index("after: ") :]
    assert "int8 by " in after_line and "float32, adapter" in after_line
    assert "template alpaca (default: none was saved)" in after_line
    old, new = (json.loads(path.read_text()) for path in (before, after))
    assert old["settings"]["int8"] is False
    assert new["settings"]["int8"] is True
    distance = max(
        abs(a["scores"][letter] - b["scores"][letter])
        for a, b in zip(old["questions"], new["questions"], strict=True)
        for letter in "ABCDE"
    )
    assert distance > 0.1  # the adapter was in use


def test_int8_is_in_use(base: Path, exam: Path, tmp_path: Path) -> None:
    scores = []
    for flags in ([], ["--int8"]):
        out = tmp_path / f"{len(scores)}.json"
        run("--base", base, "--exam", exam, "--out", out, *flags)
        scores.append([list(row["scores"].values()) for row in json.loads(out.read_text())["questions"]])
    exact, rounded = torch.tensor(scores)
    assert not torch.equal(exact, rounded)
    # How exact int8 is, its own tests say; here the options' order must survive it.
    assert torch.corrcoef(torch.stack((exact.flatten(), rounded.flatten())))[0, 1] > 0.98


def test_comparing_a_model_with_itself_finds_nothing(base: Path, exam: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "report.json"
    run("--base", base, "--exam", exam, "--out", out)
    first = out.read_bytes()
    capsys.readouterr()
    run("--base", base, "--exam", exam, "--compare", out, "--batch-size", 3)
    assert all(cells[-3:] == ["+0", "−0", "1.000"] for cells in rows(capsys.readouterr().out).values())
    assert out.read_bytes() == first  # comparing only reads


@pytest.mark.parametrize("method", ["text", "text_per_byte", "letter", "text_calibrated", "letter_calibrated"])
def test_methods_and_templates(base: Path, exam: Path, method: str, tmp_path: Path, capsys) -> None:
    out = tmp_path / "report.json"
    run("--base", base, "--exam", exam, "--method", method, "--template", "medalpaca", "--out", out)
    settings = json.loads(out.read_text())["settings"]
    assert (settings["method"], settings["template"]) == (method, "medalpaca")
    assert "template medalpaca (as asked)" in settings["description"]
    assert method in capsys.readouterr().out


def test_shows_examples_and_limits_each_step(base: Path, exam: Path, capsys) -> None:
    run("--base", base, "--exam", exam, "--limit", 2, "--show", 3)
    text = capsys.readouterr().out
    assert text.count("Which organ has the number") == 3
    assert text.count("✓") == 3
    assert "step1/1: " in text
    assert "step2/1: " in text
    assert "4 of 4 questions asked in" in text


def test_a_comparison_with_other_questions_is_refused_before_the_model_is_loaded(
    base: Path, exam: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "report.json"
    run("--base", base, "--exam", exam, "--limit", 1, "--out", out)
    monkeypatch.setattr(ModelOptions, "load", None)
    message = refused(capsys, "--base", base, "--exam", exam, "--compare", out)
    assert "8 occur in one only" in message
    assert "same --exam and --limit" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--exam", "nowhere"], "nowhere: no such file or folder"),
        (["--limit", "0"], "--limit 0 must be at least 1"),
        (["--batch-size", "0"], "--batch-size 0 must be at least 1"),
        (["--show", "-1"], "--show -1 must not be negative"),
        (["--out", "/tmp"], "--out /tmp is a folder; name a file"),
        (["--compare", "nowhere.json"], "nowhere.json: cannot be read"),
        (["--out", "report.txt"], "--out report.txt must end in .json"),
        (["--tries", "3"], "--tries has no effect with --protocol likelihood"),
        (["--protocol", "generate", "--method", "letter"], "--method has no effect with --protocol generate"),
        (["--protocol", "medalpaca", "--tries", "0"], "--tries 0 must be at least 1"),
        (["--shots-from", "."], "--shots-from . has no effect without --shots"),
        (["--shots", "6"], "--shots 6: only 5 other questions to show"),
        (["--overlap", "nowhere.json"], "nowhere.json"),
        (["--preset", "medalpaca-7b-loro"], "did you mean 'medalpaca-7b-lora'? --preset list shows all"),
        (
            ["--preset=medalpaca-7b-lora", "--base", "x"],
            "--preset medalpaca-7b-lora is a base with a LoRA adapter: name it with --adapter",
        ),
        (["--preset=llama-7b", "--base", "x", "--adapter", "y"], "llama-7b is a model without an adapter: leave"),
        (["--preset", "medalpaca-13b"], "is a model tuned from llama-13b: name its directory with --base"),
        (["--preset", "llama-13b"], "--preset llama-13b is llama-13b: name its directory with --base"),
        (["--preset", "alpaca-7b", "--preset", "nobody"], "nobody"),  # the last one counts
    ],
)
def test_what_is_wrong_is_said_without_a_traceback(
    exam: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, *([] if "--exam" in arguments else ["--exam", exam]), *arguments)


def test_a_full_disk_is_said_without_a_traceback(
    base: Path, exam: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    asked = ("--base", base, "--exam", exam, "--limit", 1, "--out", tmp_path / "report.json")
    message = refused(capsys, *asked)
    assert "No space left on device" in message
    assert "report.journal.jsonl" in message
    monkeypatch.undo()
    run(*asked)  # what was begun is in nobody's way
    assert {file.name for file in tmp_path.iterdir()} == {"report.json", "report.html"}


def test_a_disk_that_is_full_at_the_end_loses_no_answer(
    base: Path, exam: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    out, asked = tmp_path / "report.json", ("--base", base, "--exam", exam, "--out", tmp_path / "report.json")
    monkeypatch.setattr("evaluation.report.write_whole", full)
    assert "the report was not written: No space left on device" in refused(capsys, *asked)
    monkeypatch.undo()
    monkeypatch.setattr("evaluation.scoring.LikelihoodPaper.answer", None)  # nobody is asked again
    run(*asked)
    assert "10 of 10 questions were answered before; going on" in plain(capsys.readouterr().out)
    assert len(json.loads(out.read_text())["questions"]) == 10


def test_out_of_memory_names_the_remedies(base: Path, exam: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    def burst(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate 7 GiB")

    monkeypatch.setattr(Llama, "hidden_states", burst)
    message = refused(capsys, "--base", base, "--exam", exam)
    assert "--batch-size" in message
    assert "--int8" in message
    assert "7 GiB" in message


def test_help_explains_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("--help")
    text = capsys.readouterr().out
    fields = [cls for cls in (evaluate.Options, ModelOptions, Sitting) for cls in dataclasses.fields(cls)]
    for field in (field for field in fields if field.name not in ("model", "sitting")):
        assert f"--{field.name.replace('_', '-')}" in text
    assert "\n    python evaluate.py --out before.json" in text  # the examples keep their lines


# --- Protocols ---


def reported(out: Path) -> dict[str, object]:
    """A report without what differs between two runs of the same."""
    report = json.loads(out.read_text())
    del report["settings"]["seconds"], report["settings"]["asked"], report["settings"]["out"]
    return report


@pytest.mark.parametrize("protocol", ["medalpaca", "generate"])
def test_a_generating_protocol_reports_what_was_said(
    base: Path, exam: Path, protocol: str, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "report.json"
    run("--base", base, "--exam", exam, "--protocol", protocol, "--max-new-tokens", 8, "--out", out, "--show", 1)
    text = capsys.readouterr().out
    report = json.loads(out.read_text())
    tries = 5 if protocol == "medalpaca" else 1
    assert all(1 <= len(row["texts"]) <= tries and row["scores"] == {} for row in report["questions"])
    assert any(len(row["texts"]) == tries and row["predicted"] is None for row in report["questions"])
    assert report["counts"]["unanswered"] == sum(row["predicted"] is None for row in report["questions"])
    assert f"{report['counts']['unanswered']} of 10 questions got no acceptable answer" in plain(text)
    assert f"by {protocol}" in plain(text) and "said, try 1: " in plain(text)
    assert report["settings"]["max_new_tokens"] == 8
    assert ("tries" in report["settings"]) == (protocol == "medalpaca")


ODDITIES: dict[str, tuple[list[str], object]] = {
    "bos": (["--no-bos"], False),
    "answer_prefix": (["--answer-prefix", ""], ""),
    "instruction": (["--instruction", "Choose."], "Choose."),
    "accept": (["--accept", "sound"], "sound"),
    "stop": (["--no-stop"], False),
    "tries": (["--tries", "2"], 2),
    "temperature": (["--temperature", "1.5"], 1.5),
    "top_k": (["--top-k", "None"], None),
    "top_p": (["--top-p", "None"], None),
    "max_new_tokens": (["--max-new-tokens", "6"], 6),
    "seed": (["--seed", "1"], 1),
    "shots": (["--shots", "1"], 1),
}


def test_each_oddity_of_the_published_protocol_has_a_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[evaluate.Options] = []
    monkeypatch.setattr(evaluate, "run", parsed.append)
    published = Sitting("medalpaca")
    assert published.settings.keys() - {"protocol"} == ODDITIES.keys()
    for name, (flags, value) in ODDITIES.items():
        run("--protocol", "medalpaca", *flags)
        assert parsed[-1].sitting == dataclasses.replace(published, **{name: value}) != published  # type: ignore[arg-type]


def test_all_oddities_at_once(base: Path, exam: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    asked = ["--base", base, "--exam", exam, "--limit", 1, "--protocol", "medalpaca", "--out", out]
    run(*asked, *(flag for flags, _ in ODDITIES.values() for flag in flags))
    settings = json.loads(out.read_text())["settings"]
    assert {name: settings[name] for name in ODDITIES} == {name: value for name, (_, value) in ODDITIES.items()}


def test_shots_and_their_seed_change_the_scores(base: Path, exam: Path, tmp_path: Path) -> None:
    scores = []
    for n, flags in enumerate(([], ["--shots", 2], ["--shots", 2, "--batch-size", 3, "--seed", 1])):
        out = tmp_path / f"{n}.json"
        run("--base", base, "--exam", exam, "--out", out, *flags)
        scores.append(torch.tensor([list(row["scores"].values()) for row in json.loads(out.read_text())["questions"]]))
    none, two, other = scores
    assert (none - two).abs().max() > 1e-2 < (two - other).abs().max()


def test_shots_may_come_from_another_exam(base: Path, exam: Path, tmp_path: Path, capsys) -> None:
    row = {"no": 1, "question": "Which organ pumps?", "options": {"A": "heart", "B": "lung"}}
    (tmp_path / "step1.json").write_text(json.dumps([row, row | {"no": 2, "question": "Which organ breathes?"}]))
    (tmp_path / "step1_solutions.json").write_text(json.dumps({"1": "A", "2": "B"}))
    run("--base", base, "--exam", exam, "--limit", 1, "--shots", 2, "--shots-from", tmp_path)
    assert "2 of 2 questions asked in" in capsys.readouterr().out
    assert "only 2 other questions" in refused(capsys, "--exam", exam, "--shots", 3, "--shots-from", tmp_path)


def test_every_order_of_the_options(base: Path, exam: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "report.json"
    run("--base", base, "--exam", exam, "--method", "letter", "--rotations", "--out", out)
    text = plain(capsys.readouterr().out)
    assert "options moved on by" in text and "the same text in every order" in text
    bias = json.loads(out.read_text())["rotations"]
    assert sum(bias["chosen"].values()) == 50 and len(bias["accuracies"]) == 5
    assert {file.suffix for file in tmp_path.iterdir()} == {".json", ".html"}


def test_questions_that_stand_in_training_files_are_counted(base: Path, exam: Path, tmp_path: Path, capsys) -> None:
    rows = [{"instruction": "Answer.", "input": "Hear: which organ has the NUMBER 3? Tell me.", "output": "liver"}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    run("--base", base, "--exam", exam, "--overlap", tmp_path / "rows.json", "--method", "text")
    text = plain(capsys.readouterr().out)
    assert "overlap: " in text and "10 questions are shorter than 8 words" in text


def test_questions_with_images_are_counted(base: Path, exam: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(exam, tmp_path / "exam")
    (tmp_path / "exam" / "question_with_images.json").write_text('{"step1": [1, 2], "step2": [4]}')
    run("--base", base, "--exam", tmp_path / "exam")
    text = capsys.readouterr().out
    assert rows(text)["all"][0] == "7"
    assert "note: 3 questions of the exam have images and are left out, 7 are not" in plain(text)


# --- Presets ---


def test_a_preset_sets_defaults_and_flags_win(base: Path, exam: Path, adapter: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "report.json"
    asked = ("--base", base, "--exam", exam, "--limit", 1, "--max-new-tokens", 4, "--out", out)
    run("--preset", "medalpaca-7b-lora-8bit", "--adapter", adapter, *asked)
    settings = json.loads(out.read_text())["settings"]
    assert (settings["protocol"], settings["template"], settings["int8"]) == ("medalpaca", "medalpaca", True)
    assert settings["preset"] == "medalpaca-7b-lora-8bit"
    said = capsys.readouterr().out
    assert "MedAlpaca 7b LoRA 8bit is a llama-7b, this model is none" in plain(said) and "23.1%" not in said

    flags = ("--no-int8", "--template", "alpaca", "--tries", 1)
    run(*flags, "--preset=medalpaca-7b-lora-8bit", "--adapter", adapter, *asked)
    settings = json.loads(out.read_text())["settings"]
    assert (settings["protocol"], settings["template"], settings["int8"]) == ("medalpaca", "alpaca", False)
    assert settings["tries"] == 1


def test_a_preset_is_about_its_own_exam(capsys) -> None:
    assert "name it with --exam" in refused(capsys, "--preset", "llama-7b", "--base", "x")


def test_published_figures_stand_beside_those_of_such_a_model(
    base: Path, exam: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama.LlamaConfig.named", lambda name: read_config(base))  # as if this were the row's size
    out = tmp_path / "report.json"
    asked = ("--base", base, "--exam", exam, "--limit", 1, "--max-new-tokens", 4, "--out", out)
    run("--preset", "llama-7b", *asked)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines if "step1" in line or "step2" in line] == ["19.8%", "20.2%"]
    assert all(len(line) <= 80 for line in lines if str(tmp_path.parent) not in line)
    assert json.loads(out.read_text())["published"] == {"step1": 0.198, "step2": 0.202, "step3": 0.203}
    page = out.with_suffix(".html").read_text()
    assert "published" in page and "19.8\u00a0%" in page


def test_published_figures_stand_beside_those_of_their_protocol_only(base: Path, exam: Path, capsys) -> None:
    run("--preset", "llama-7b", "--protocol", "likelihood", "--base", base, "--exam", exam, "--limit", 1)
    assert "published" not in capsys.readouterr().out


def test_a_page_that_fails_costs_no_exam(base: Path, exam: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("evaluation.exam_page", full)
    run("--base", base, "--exam", exam, "--limit", 1, "--out", tmp_path / "exam.json")
    assert "note: no exam.html: OSError" in capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir()] == ["exam.json"]


def test_the_presets_are_listed(capsys) -> None:
    run("--preset", "list")
    lines = capsys.readouterr().out.splitlines()
    assert sum("7b" in line or "13b" in line for line in lines) == 12
    assert all(len(line) <= 80 for line in lines)


# --- Interruptions ---


@pytest.mark.parametrize(
    ("flags", "n_kept"),
    # Two lines are two batches, or two questions.
    [(["--int8"], 6), (["--protocol", "generate", "--max-new-tokens", "6"], 2)],
    ids=["likelihood", "generate"],
)
def test_an_interrupted_exam_goes_on_and_reports_the_same(
    base: Path, exam: Path, flags: list[str], n_kept: int, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("--base", base, "--exam", exam, "--batch-size", 3, *flags)
    whole, out = tmp_path / "whole.json", tmp_path / "cut.json"
    run(*asked, "--out", whole)
    record = Journal.record

    def cut(journal: Journal, results: list) -> None:
        record(journal, results)
        if b"{" in journal.path.read_bytes().split(b"\n")[2]:  # the header and two lines
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "record", cut)
    assert refused(capsys, *asked, "--out", out).startswith("130")
    monkeypatch.setattr(Journal, "record", record)
    assert not out.exists()
    run(*asked, "--out", out)
    assert f"{n_kept} of 10 questions were answered before; going on" in plain(capsys.readouterr().out)
    assert reported(out) == reported(whole)  # to the last bit of every score
    assert not list(tmp_path.glob("*.jsonl"))


KILLED = """
import os, signal, sys
import evaluate
from evaluation import Journal

record = Journal.record

def killed(journal, results):
    record(journal, results)
    if journal.path.read_bytes().count(b"\\n") == 3:
        with journal.path.open("ab") as file:
            file.write(b'{"results": [{"id": "st')  # it was about to write more
        os.kill(os.getpid(), signal.SIGKILL)

Journal.record = killed
evaluate.main(sys.argv[1:])
"""


def test_a_killed_exam_goes_on_and_reports_the_same(
    base: Path, exam: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["--base", base, "--exam", exam, "--batch-size", 3, "--protocol", "medalpaca"]
    asked += ["--max-new-tokens", 4, "--tries", 2]
    whole, out = tmp_path / "whole.json", tmp_path / "cut.json"
    run(*asked, "--out", whole)
    command = [sys.executable, "-c", KILLED, *map(str, asked), "--out", str(out)]
    ended = subprocess.run(command, cwd=Path(evaluate.__file__).parent, capture_output=True, timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    assert not out.exists()
    run(*asked, "--out", out)
    assert "2 of 10 questions were answered before; going on" in plain(capsys.readouterr().out)
    assert reported(out) == reported(whole)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--seed", "1"], "seed: 42 then, 1 now"),
        (["--adapter", "ADAPTER"], "LoRA scaling: no adapter then, 8.0 now; other weights of the model"),
        (["--template", "alpaca_short"], "other words of the prompt template"),
        (["--limit", "2"], "other questions (--exam, --limit)"),
    ],
    ids=["seed", "adapter", "template", "limit"],
)
def test_another_run_in_the_same_place_is_refused_and_the_answers_are_kept(
    base: Path,
    exam: Path,
    adapter: Path,
    flags: list[str],
    named: str,
    tmp_path: Path,
    capsys,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, record = tmp_path / "report.json", Journal.record

    def cut(journal: Journal, results: list) -> None:
        record(journal, results)
        raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "record", cut)
    asked = ("--base", base, "--exam", exam, "--shots", 1, "--batch-size", 3, "--out", out)
    refused(capsys, *asked)
    monkeypatch.setattr(Journal, "record", record)
    said = refused(capsys, *asked, *(str(adapter) if flag == "ADAPTER" else flag for flag in flags))
    assert "it holds answers given under other settings; " in said and named in said
    run(*asked)
    assert "3 of 10 questions were answered before; going on" in plain(capsys.readouterr().out)


def test_a_comparison_says_what_else_than_the_model_changed(base: Path, exam: Path, tmp_path: Path, capsys) -> None:
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    run("--base", base, "--exam", exam, "--method", "text", "--out", before)
    run("--base", base, "--exam", exam, "--method", "letter", "--out", after, "--compare", before)
    assert "note: before and after were not asked alike: method text then, letter now" in plain(capsys.readouterr().out)
    whole = json.loads(after.read_text())["comparison"]["all"]
    assert whole["change"] == pytest.approx(whole["after"] - whole["before"])
    assert whole["interval"][0] <= whole["change"] <= whole["interval"][1]
    run("--base", base, "--exam", exam, "--method", "letter", "--compare", after)
    assert "not asked alike" not in capsys.readouterr().out


def test_the_same_numbers_with_other_texts_are_other_questions(base: Path, exam: Path, tmp_path: Path, capsys) -> None:
    run("--base", base, "--exam", exam, "--out", tmp_path / "before.json")
    other = tmp_path / "exam"
    shutil.copytree(exam, other)
    (other / "step1.json").write_text((exam / "step1.json").read_text().replace("Which organ", "What bone"))
    said = refused(capsys, "--base", base, "--exam", other, "--compare", tmp_path / "before.json")
    assert "they have the same numbers and other texts" in said


def test_a_damaged_journal_is_named(base: Path, exam: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "report.journal.jsonl").write_text('{"journal": damage\n')
    message = refused(capsys, "--base", base, "--exam", exam, "--out", tmp_path / "report.json")
    assert "report.journal.jsonl, line 1: not valid JSON" in message and "delete it to begin anew" in message


def test_the_bundled_miniature_sits_its_own_exams(tmp_path: Path, capsys) -> None:
    out = tmp_path / "report.json"
    run("--base", "miniature", "--limit", 20, "--out", out)
    report = json.loads(out.read_text())
    assert report["accuracy"].keys() >= {"step1", "step2", "step3", "seen", "unseen", "all"}
    assert len(report["questions"]) == 60
    assert all(len(row["scores"]) in (4, 5) for row in report["questions"])
