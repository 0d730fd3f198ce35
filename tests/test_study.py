"""benchmarks/study.py and table2.py: runs of the real programs, kept and continued, and the table made of them."""

import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
FAST = ("--train.max-steps", "2", "--data.max-length", "64", "--data.validation-rows", "4")
EXAM = ("--limit", "2")


@pytest.fixture(scope="module")
def study():
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("study")
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def table2(study):
    return importlib.import_module("table2")


@pytest.fixture(scope="module")
def finished(study, tmp_path_factory):
    """The base and one small LoRA run, in their folder."""
    folder = tmp_path_factory.mktemp("study")
    arms = (study.Arm("base", None), study.Arm("lora", "miniature-lora", FAST))
    return folder, arms, study.run_study(arms, [1], folder, exam=EXAM)


def test_a_run_is_what_the_programs_left(finished):
    folder, _, runs = finished
    [run] = runs["lora"]
    assert [len(run.results) for run in (*runs["base"], run)] == [6, 6]
    assert run.seconds > 0 and run.memory_gb > 0.1 and run.validation_loss > 0
    metrics = (folder / "lora" / "seed-1" / "metrics.jsonl").read_text().splitlines()
    steps = [row for row in map(json.loads, metrics) if "tokens" in row]
    per_step = [steps[0]["tokens"], steps[1]["tokens"] - steps[0]["tokens"]]
    expected = sum(tokens / row["tokens_per_second"] for tokens, row in zip(per_step, steps, strict=True))
    assert run.seconds == pytest.approx(expected)


def test_what_is_done_is_not_done_again_and_another_run_is(study, finished, monkeypatch):
    folder, arms, runs = finished
    called = []
    monkeypatch.setattr(study._Work, "_call", lambda self, command, *_: called.append(command))
    again = study.run_study(arms, [1], folder, exam=EXAM)
    assert again == runs and not called
    copy = folder.parent / "copy"
    shutil.copytree(folder, copy)
    with pytest.raises(ValueError, match=r"exam\.json"):  # nothing was called, so nothing was made
        study.run_study(arms[:1], [1], copy, exam=("--limit", "1"))
    assert [Path(command[1]).name for command in called] == ["evaluate.py"]


def test_what_changed_beneath_a_run_begins_it_anew(study, finished, tmp_path, monkeypatch):
    folder, arms, _ = finished
    shutil.copytree(folder, tmp_path / "copy")
    monkeypatch.setattr(study, "_bundled_files", lambda: "another base")
    called = []
    monkeypatch.setattr(study._Work, "_call", lambda self, command, *_: called.append(Path(command[1]).name))
    with pytest.raises(ValueError, match=r"exam\.json"):
        study.run_study(arms, [1], tmp_path / "copy", exam=EXAM, workers=1)
    assert called and not (tmp_path / "copy" / "base" / "as-it-is" / "exam.json").exists()


def test_a_run_that_fails_shows_the_end_of_its_log(study, tmp_path):
    arm = study.Arm("broken", "miniature-lora", (*FAST, "--lora.targets", "q_proj", "--data.files", "missing.json"))
    work = study._Work(tmp_path, EXAM, dict(study.os.environ), study.Progress(disable=True))
    study.plan_of.cache_clear()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(study, "plan_of", lambda arm: study.Plan(1, 1, 1.0))
        with pytest.raises(RuntimeError, match=r"(?s)exit status 1.*missing\.json"):
            work.done(arm, 1)
    assert not (tmp_path / "broken" / "seed-1" / "done").exists()
    work.stop.set()  # nothing new is begun
    with pytest.raises(RuntimeError, match="stopped"):
        work._call([sys.executable, "-c", "print(1)"], tmp_path / "log.txt", lambda: None)


def test_a_stop_ends_what_runs(study, tmp_path):
    work = study._Work(tmp_path, (), dict(study.os.environ), study.Progress(disable=True))
    with pytest.raises(RuntimeError, match="exit status -15"):
        work._call([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "log.txt", work.stop.set)


def test_commands_name_no_place_of_this_machine(finished):
    folder, _, _ = finished
    stamp = json.loads((folder / "lora" / "seed-1" / "run.json").read_text())
    words = [word for command in stamp["commands"] for word in command]
    assert words[0] == "train.py" and "RUN" in words and not any(word.startswith("/") for word in words)


def test_the_plan_counts_what_will_be_trained(study):
    lora = study.plan_of(study.Arm("x", "miniature-lora", FAST))
    full = study.plan_of(study.Arm("y", "miniature-full", FAST))
    assert (lora.steps, full.steps) == (2, 2)
    # r · (in + out) of seven products in each of four blocks
    assert lora.trainable == 4 * 8 * (4 * (128 + 128) + 3 * (128 + 352))
    assert full.trainable > 10 * lora.trainable and full.memory_mb > lora.memory_mb > 0


def test_every_arm_is_a_command_that_train_py_accepts(table2):
    arms = [*table2.ROWS, *(arm for arms in table2.ABLATIONS.values() for arm in arms)]
    assert len({arm.name for arm in arms}) == len(arms)
    for arm in arms:
        settings = arm.settings()
        assert (settings is None) == (arm.name == "base")
        assert table2._compared_with(arm) in {row.name for row in table2.ROWS}


def test_an_ablation_is_one_change_away_from_its_row(study, table2):
    rows = {arm.name: arm.settings() for arm in table2.ROWS}
    for title, arms in table2.ABLATIONS.items():
        for arm in arms:
            row, settings = rows[table2._compared_with(arm)], arm.settings()
            changed = {
                f"{section}.{key}"
                for section in ("lora", "data", "optim", "train")
                for key, value in vars(getattr(settings, section)).items()
                if value != getattr(getattr(row, section), key)
            }
            several = "own LoRA settings" in title or "at once" in title or "rank" in arm.name  # with the rank, alpha
            assert len(changed) == 1 or (several and len(changed) > 1), (arm.name, changed)


def test_a_row_has_the_accuracy_of_its_questions(table2, finished):
    _, arms, runs = finished
    plan = table2.plan_of(arms[1])
    row = table2.row_of(arms[1], plan, runs["lora"], runs["base"], "base")
    right = [result.correct for result in runs["lora"][0].results]
    before = [result.correct for result in runs["base"][0].results]
    assert row["right"] == pytest.approx(100 * sum(right) / 6, abs=0.05)
    assert row["difference"] == pytest.approx(100 * (sum(right) - sum(before)) / 6, abs=0.051)


@pytest.mark.parametrize("name", ["table2", "table2-ablations"])
def test_the_chapter_quotes_what_was_measured(table2, name):
    rows = json.loads((BENCHMARKS / "results" / f"{name}.json").read_text("utf-8"))["rows"]
    assert table2.markdown(rows) in (BENCHMARKS.parent / "docs" / "table2.md").read_text("utf-8")
