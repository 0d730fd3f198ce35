import dataclasses
import json
from pathlib import Path

import pytest
import sentencepiece
import torch

import evaluate
from llama import Llama, LlamaConfig, Tokenizer, save_checkpoint
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
    config = LlamaConfig(Tokenizer(folder).vocab_size, 32, 2, 4, 2, 64, max_seq_len=512)
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
    assert "float32" in report["settings"]["description"]


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


@pytest.mark.parametrize("method", ["text", "text_per_byte", "letter"])
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
    assert "4 questions in" in text


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

    monkeypatch.setattr("os.replace", full)
    message = refused(capsys, "--base", base, "--exam", exam, "--out", tmp_path / "report.json")
    assert "No space left on device" in message
    assert "report.json" in message
    assert list(tmp_path.iterdir()) == []


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
    fields = [*dataclasses.fields(evaluate.Options), *dataclasses.fields(ModelOptions)]
    for field in (field for field in fields if field.name != "model"):
        assert f"--{field.name.replace('_', '-')}" in text
    assert "\n    python evaluate.py --out before.json" in text  # the examples keep their lines


def test_the_bundled_miniature_sits_its_own_exams(tmp_path: Path, capsys) -> None:
    out = tmp_path / "report.json"
    run("--base", "miniature", "--limit", 20, "--out", out)
    report = json.loads(out.read_text())
    assert report["accuracy"].keys() >= {"step1", "step2", "step3", "seen", "unseen", "all"}
    assert len(report["questions"]) == 60
    assert all(len(row["scores"]) in (4, 5) for row in report["questions"])
