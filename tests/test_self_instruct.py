"""self_instruct.py: the sampler, the journal beside the output, what is refused; and a real process killed."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro
from scripted_tasks import SEEDS, scripted
from tiny_models import tiny_llama, train_tokenizer

import self_instruct as script
from data import PromptTemplate, load_records
from data.self_instruct import SelfInstruct, Settings, load_preamble, read_journal
from files.locks import locked
from llama.decoding import generate
from llama.tokenizer import Tokenizer
from recipe import Inference, ModelOptions

ROOT = Path(__file__).resolve().parent.parent
WINDOW = 1024
FLAGS = ["--preamble", "short", "--room", "64", "--batch-size", "3", "--device", "cpu"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(train_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def inference(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Inference:
    """What the loader would give: a random model."""
    model = tiny_llama(0, vocab_size=tokenizer.vocab_size, max_seq_len=WINDOW)
    loaded = Inference(model, tokenizer, PromptTemplate.named("alpaca"), "a tiny model, on cpu, template alpaca (x)")
    monkeypatch.setattr(ModelOptions, "load", lambda _: loaded)
    return loaded


@pytest.fixture
def writer(inference: Inference, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A model that writes the scripted tasks, by its generators' seeds; the list holds what it was asked with."""
    asked: list[dict[str, Any]] = []

    def written(model: Any, ids: list[list[int]], **options: Any) -> Iterator[tuple[int, list[int]]]:
        asked.append(options)
        prompts = [inference.tokenizer.decode(prompt[1:]) for prompt in ids]
        first = options["generators"][0].initial_seed()
        for n, completion in reversed(list(enumerate(scripted(prompts, first)))):
            yield n, inference.tokenizer.encode(" " + completion.text)[1:]

    monkeypatch.setattr(script, "generate_many", written)
    return asked


@pytest.fixture
def seeds(tmp_path: Path) -> Path:
    path = tmp_path / "seeds.jsonl"
    rows = [{"instruction": seed.instruction, "output": seed.output} for seed in SEEDS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(seeds: Path, *flags: str, count: int = 6, out: str = "tasks.json") -> Path:
    """The program; returns where the output goes."""
    path = seeds.parent / out
    script.main(["--seeds", str(seeds), "--out", str(path), "--count", str(count), *FLAGS, *flags])
    return path


def journal_of(out: Path) -> Path:
    return out.with_suffix(".journal.jsonl")


def test_the_tasks_are_a_data_set_of_as_many_as_asked_for(writer, seeds, capsys):
    out = run(seeds)
    assert len(load_records(out)) == 6
    rows = json.loads(out.read_text(encoding="utf-8"))
    assert all(row["most_similar_instructions"] and 0 < row["avg_similarity_score"] < 1 for row in rows)
    printed = capsys.readouterr()
    assert "tasks kept of each" in printed.out and "6 tasks: " in printed.err
    assert "template" not in printed.err  # none is asked with


def test_it_asks_as_stanford_did(writer, seeds, inference):
    run(seeds)
    for n, options in enumerate(writer):
        assert (options["temperature"], options["top_p"], options["batch_size"]) == (1.0, 1.0, 3)
        assert options["stop_ids"] == {inference.tokenizer.eos_id}
        assert [generator.initial_seed() for generator in options["generators"]] == [3 * n, 3 * n + 1, 3 * n + 2]
        assert all(64 <= limit < WINDOW for limit in options["max_new_tokens"])


def test_more_tasks_later_are_those_of_a_larger_run_at_once(writer, seeds):
    small, large = run(seeds), run(seeds, count=9, out="large.json")
    first = json.loads(small.read_text(encoding="utf-8"))
    assert json.loads(large.read_text(encoding="utf-8"))[:6] == first
    run(seeds, count=9)
    assert small.read_bytes() == large.read_bytes()
    assert journal_of(small).read_bytes() == journal_of(large).read_bytes()


def test_enough_tasks_load_no_model(writer, seeds, monkeypatch):
    out = run(seeds)
    content = out.read_bytes()
    out.unlink()
    monkeypatch.setattr(ModelOptions, "load", lambda _: pytest.fail("the model was loaded"))
    assert run(seeds).read_bytes() == content


def test_a_completion_is_what_the_model_says_alone(inference, seeds):
    settings = Settings(batch_size=3, seed=4)
    options = script.Options(seeds, seeds.parent / "x.json", max_new_tokens=9, settings=settings)
    work = SelfInstruct(SEEDS, settings, preamble=load_preamble("short"))
    sampler = script.Sampler(options, work)
    sampler.load()
    prompts, _ = work.prompts(2)
    for n, completion in enumerate(sampler(prompts, 3)):
        ids = inference.tokenizer.encode(prompts[n], bos=True)
        rng = torch.Generator().manual_seed(4 + 3 + n)
        stop = {inference.tokenizer.eos_id}
        alone = list(generate(inference.model, ids, max_new_tokens=9, temperature=1.0, stop_ids=stop, generator=rng))
        assert completion.text == inference.tokenizer.decode(alone, continues=True)
        assert completion.cut == (len(alone) == 9)


def test_a_random_model_gives_nothing_and_says_so(inference, seeds):
    with pytest.raises(SystemExit, match=r"gave up: 6 requests in a row gave no task to keep, 0 of 6 are kept"):
        run(seeds, "--give-up", "4", "--max-new-tokens", "8")
    out = seeds.parent / "tasks.json"
    assert not out.exists()
    rounds = read_journal(journal_of(out))
    assert [done.requests for done in rounds] == [3, 3]
    assert sum(done.dropped.total() for done in rounds) >= 6  # it says ### now and then


def test_what_was_kept_before_giving_up_is_written(writer, seeds):
    with pytest.raises(SystemExit, match="gave up: "):
        run(seeds, "--threshold", "0.5", "--give-up", "6", count=1000)
    assert 0 < len(load_records(seeds.parent / "tasks.json")) < 1000


def test_a_window_too_small_is_refused_with_the_numbers_and_another_try_is_free(writer, seeds):
    with pytest.raises(
        SystemExit, match=r"3 shortest .* has \d+ tokens, and with --room 2000 the .*1024 is too small: .* or --room$"
    ):
        run(seeds, "--room", "2000")
    with pytest.raises(SystemExit, match=r"is too small: .*, or take --preamble short$"):
        run(seeds, "--room", "2000", "--preamble", "full")
    assert len(load_records(run(seeds, "--shots", "1"))) == 6


def test_long_seed_tasks_are_drawn_anew(writer, seeds):
    long = {"instruction": "repeat this long text please", "output": "x" * 2 * WINDOW}
    with seeds.open("a", encoding="utf-8") as file:
        file.write(json.dumps(long) + "\n")
    out = run(seeds)
    assert sum(done.redraws for done in read_journal(journal_of(out))) > 0


def test_other_flags_are_refused_by_name(writer, seeds):
    run(seeds)
    for flags in (["--shots", "2"], ["--temperature", "0.5"], ["--dtype", "float16"], ["--seed", "1"], ["--int8"]):
        name = flags[0].removeprefix("--")
        with pytest.raises(SystemExit, match=rf"tasks.journal.jsonl: it was begun with {name} .*, now it is"):
            run(seeds, *flags, count=100)


def test_another_model_is_refused_before_it_is_asked_and_the_same_one_elsewhere_is_not(writer, seeds, inference):
    out = run(seeds)
    content, n_asked = journal_of(out).read_bytes(), len(writer)
    weight = inference.model.norm.weight
    weight.data *= 2  # as if it had been trained on, or another one put in its place
    with pytest.raises(
        SystemExit, match=r"tasks.journal.jsonl: it was begun with weights .*, now it is .*; take the same"
    ):
        run(seeds, count=9)
    assert (journal_of(out).read_bytes(), len(writer)) == (content, n_asked)
    weight.data /= 2
    assert len(load_records(run(seeds, "--base", "elsewhere", count=9))) == 9


def test_other_seeds_are_refused(writer, seeds):
    run(seeds)
    lines = seeds.read_text(encoding="utf-8").splitlines(keepends=True)
    seeds.write_text("".join(lines[1:]), encoding="utf-8")
    with pytest.raises(SystemExit, match="it was begun with seeds and preamble"):
        run(seeds)


def test_a_file_of_somebody_elses_is_not_overwritten(writer, seeds):
    out = seeds.parent / "tasks.json"
    out.write_text("mine", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"is there already, and tasks\.journal\.jsonl"):
        run(seeds)
    assert out.read_text(encoding="utf-8") == "mine"


def test_an_output_that_was_edited_is_not_overwritten(writer, seeds, monkeypatch):
    out = run(seeds)
    written = out.read_bytes()
    monkeypatch.setattr(ModelOptions, "load", lambda _: pytest.fail("the model was loaded"))
    out.write_bytes(edited := written.replace(b'"output": "', b'"output": "Mind: ', 1))
    assert edited != written
    for count in (1, 6, 9):
        with pytest.raises(
            SystemExit, match=r"tasks\.json: it differs from what its journal gives.*; move it away, or name"
        ):
            run(seeds, count=count)
    assert out.read_bytes() == edited
    out.rename(seeds.parent / "mine.json")
    assert run(seeds).read_bytes() == written


def test_an_output_that_is_edited_while_tasks_are_made_is_not_overwritten(writer, seeds, monkeypatch):
    out = run(seeds)
    completed = script.generate_many

    def edited_meanwhile(*arguments: Any, **options: Any) -> Iterator[tuple[int, list[int]]]:
        out.write_text("mine", encoding="utf-8")
        return completed(*arguments, **options)

    monkeypatch.setattr(script, "generate_many", edited_meanwhile)
    with pytest.raises(SystemExit, match="it differs from what its journal gives"):
        run(seeds, count=9)
    assert out.read_text(encoding="utf-8") == "mine"
    out.unlink()
    assert len(load_records(run(seeds, count=9))) == 9  # they were in the journal


def test_fewer_tasks_later_are_the_first(writer, seeds):
    rows = json.loads(run(seeds).read_text(encoding="utf-8"))
    assert json.loads(run(seeds, count=2).read_text(encoding="utf-8")) == rows[:2]
    assert json.loads(run(seeds).read_text(encoding="utf-8")) == rows


def test_a_second_process_is_refused(writer, seeds):
    out = run(seeds)
    with locked(journal_of(out)), pytest.raises(SystemExit, match="another process is writing it"):
        run(seeds, count=100)


def test_a_bad_seed_file_ends_with_one_line(writer, seeds):
    seeds.write_text('{"instruction": "Add."}\n', encoding="utf-8")
    with pytest.raises(SystemExit, match=r'error: .*seeds.jsonl, line 1: the key "output" is missing'):
        run(seeds)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--out", "tasks.jsonl"], "--out tasks.jsonl must end in .json"),
        (["--seeds", "x.json", "--out", "x.json"], "--out x.json is --seeds itself"),
        (["--template", "alpaca"], "--template alpaca has no effect here"),
        (["--count", "0"], "--count 0 must be at least 1"),
        (["--shots", "0"], "shots = 0 must be at least 1"),
        (["--tasks", "3"], "tasks = 3 must be more than shots = 3, with which the list begins; raise --tasks"),
        (["--threshold", "2"], "threshold = 2.0 must be between 0 and 1"),
        (["--top-p", "0"], "top_p = 0.0 must be in"),
        (["--temperature", "-1"], "temperature = -1.0 must be 0"),
        (["--seed", "-1"], "seed = -1 must not be negative"),
    ],
)
def test_flags_that_do_not_agree_are_refused(flags, words, capsys):
    arguments = {"--seeds": "s.jsonl", "--out": "t.json"} | dict(zip(flags[::2], flags[1::2], strict=True))
    with pytest.raises(SystemExit) as refused:
        script.main([word for pair in arguments.items() for word in pair])
    assert refused.value.code  # 2, or the message itself
    said = f"{capsys.readouterr().err} {refused.value.code}"
    assert words in re.sub(r"[\s│]+", " ", said)


def test_the_preview_shows_the_first_prompt_and_loads_nothing(writer, seeds, monkeypatch, capsys):
    monkeypatch.setattr(ModelOptions, "load", lambda _: pytest.fail("the model was loaded"))
    out = run(seeds, "--preview")
    printed = capsys.readouterr()
    assert printed.out.startswith("List of 20 different tasks:\n\n###\n1. Instruction: ")
    assert printed.out.endswith("###\n4. Instruction:\n") and "10 seed tasks; no journal" in printed.err
    assert not journal_of(out).exists()


def test_the_preview_shows_what_the_journal_holds(writer, seeds, capsys):
    run(seeds)
    capsys.readouterr()
    run(seeds, "--preview", "--show", "1")
    assert "tasks kept of each" in capsys.readouterr().out


def commands() -> list[str]:
    lines = [line.strip() for line in (script.__doc__ or "").splitlines()]
    text = (ROOT / "docs" / "self-instruct.md").read_text(encoding="utf-8").replace("\\\n", " ")
    lines += [line.strip() for line in text.splitlines()]
    return [re.split(r"\s{3,}|#", line)[0] for line in lines if line.startswith("python self_instruct.py")]


def test_every_command_of_the_documents_parses():
    assert len(commands()) > 4
    for command in commands():
        tyro.cli(script.Options, args=shlex.split(command)[2:], config=(tyro.conf.FlagCreatePairsOff,))


def test_a_process_that_is_killed_goes_on_as_undisturbed(seeds, count_faults, monkeypatch):
    """The bundled model, which writes no task; every round is in the journal all the same."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    flags = ["--shots", "1", "--room", "48", "--max-new-tokens", "24", "--give-up", "36"]
    with pytest.raises(SystemExit, match="gave up"):
        run(seeds, *flags, out="undisturbed.json")
    out = seeds.parent / "killed.json"
    command = ["--seeds", str(seeds), "--out", str(out), "--count", "6", *FLAGS, *flags]
    process = subprocess.Popen([sys.executable, "self_instruct.py", *command], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (journal_of(out).exists() and journal_of(out).read_bytes().count(b"\n") > 2):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 0 < len(read_journal(journal_of(out))) < 12
    with pytest.raises(SystemExit, match="gave up"):
        run(seeds, *flags, out="killed.json")
    assert journal_of(out).read_bytes() == journal_of(seeds.parent / "undisturbed.json").read_bytes()
    count_faults("SIGKILL while tasks are made")
