"""The page of a run: from a log of any kind, at the end of any run, and never at the run's expense."""

import json
import math
import os
import signal
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markup import markup_of
from reported import CONFIG, a_run, lines_of
from tiny_models import tiny_llama, train_tokenizer

import train
from files import FileError
from llama import save_checkpoint
from recipe import RunConfig, write_config
from recipe.config import DataSection, LoraSection, ModelSection, OptimSection, TrainSection
from training import report
from training.facts import Answer
from training.report import REPORT, run_page, write_run_page
from training.report_parts import answers_aloud, charts, peak_bytes, seconds_of, tiles

# --- The page ---


def text_of(folder) -> str:
    return markup_of(write_run_page(folder).read_bytes()).text


def test_the_page_tells_what_the_run_left(tmp_path):
    said = text_of(a_run(tmp_path / "demo", 100))
    for words in (
        "Training report: demo", "lora-8bit on miniature, float32, cpu", "of 100 steps", "all steps done", "perplexity",
        "Learning rate", "Gradient norm", "What is the treatment of gout?", "colchicine", "step 50", "rows cut",
        "activations", "35.1\u00a0MB", "78,848", "612.0\u00a0MB", "data.template", "alpaca_short",
    ):  # fmt: skip
        assert words in said, words
    assert "rows dropped" not in said  # there are none


def test_the_same_run_makes_the_same_bytes(tmp_path):
    folder = a_run(tmp_path, 30)
    assert write_run_page(folder).read_bytes() == write_run_page(folder).read_bytes()
    assert b"<p>a date</p>" in write_run_page(folder, date="a date").read_bytes()


def test_a_run_that_was_stopped_says_how_to_go_on(tmp_path):
    said = text_of(a_run(tmp_path, 100, log=lines_of(40)))
    assert "of 100 steps" in said and "go on with --resume auto" in said and "all steps done" not in said


def test_an_earlier_run_has_a_page_from_log_and_config_alone(tmp_path, capsys):
    write_config(CONFIG, tmp_path / "config.toml")
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines_of(20)))
    report.main([str(tmp_path)])
    assert capsys.readouterr().out.strip() == str(tmp_path / REPORT)
    said = markup_of((tmp_path / REPORT).read_bytes()).text
    assert "Loss" in said and "Every setting" in said and "Memory" not in said


def test_a_run_without_a_step_says_so(tmp_path):
    assert "there is nothing to draw" in text_of(a_run(tmp_path, log=[]))


def test_a_folder_without_a_config_is_refused_by_name(tmp_path, capsys):
    with pytest.raises(SystemExit, match=r"error: .*config\.toml: no such config file"):
        report.main([str(tmp_path)])


def test_a_damaged_log_is_refused_by_file_and_line(tmp_path):
    folder = a_run(tmp_path, 5)
    (folder / "metrics.jsonl").write_text('{"step": 1}\n{"step": "two"}\n')
    with pytest.raises(FileError, match=r"metrics\.jsonl, line 2"):
        write_run_page(folder)


def test_ten_thousand_steps_fit_into_300_kb(tmp_path):
    page = write_run_page(a_run(tmp_path, 10_000))
    assert page.stat().st_size < 300_000


def test_a_loss_that_was_no_number_is_a_gap_and_is_counted(tmp_path):
    log = [{"step": i, "loss": math.nan if i in (5, 6) else 2.0} for i in range(1, 11)]
    folder = a_run(tmp_path, 10, log=log)
    page = write_run_page(folder).read_text()
    assert "2 without a number: drawn as gaps." in page
    [curve] = [line for line in page.splitlines() if 'class="curve' in line]
    assert curve.count("M") == 2


values = st.one_of(st.floats(), st.integers(-(2**62), 2**62))
keys = st.sampled_from(
    ["loss", "validation_loss", "lr", "gradient_norm", "tokens", "tokens_per_second", "memory_gb", "x"]
)
logs = st.lists(st.builds(lambda step, row: {"step": step, **row}, st.integers(-9, 99), st.dictionaries(keys, values)))


@given(logs)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_numbers_a_log_holds_there_is_a_page(log):
    content = run_page(CONFIG, log, None, [], name="run").content()
    found = markup_of(content)
    drawn = [value for tag, name, value in found.attributes if (tag, name) == ("path", "d")]
    assert not any("nan" in value or "inf" in value for value in drawn)
    assert "script" not in found.tags


# --- Its figures ---


def test_the_time_is_that_of_all_steps_though_not_all_are_logged():
    """Each line's speed stands for the tokens since the line before."""
    every = [{"step": i, "tokens": 100 * i, "tokens_per_second": 50.0} for i in range(1, 11)]
    assert seconds_of(every) == seconds_of(every[1::2]) == 20.0
    assert seconds_of([{"step": 1, "tokens": 5, "tokens_per_second": 0.0}]) == 0.0


def test_the_peak_is_the_largest_memory_that_is_a_number():
    assert peak_bytes([{"memory_gb": 1.5}, {"memory_gb": math.nan}, {"memory_gb": 2.0}, {"step": 1}]) == 2e9
    assert peak_bytes([]) == 0.0


def test_a_long_curve_gets_its_mean_and_a_short_one_none():
    names = [[row.name for row in chart.series] for chart in charts(CONFIG, lines_of(200))]
    assert names[0] == ["training", "mean of 10", "validation"]
    assert [row.name for row in next(charts(CONFIG, lines_of(20))).series] == ["training", "validation"]


def test_a_norm_that_varies_widely_is_drawn_on_a_log_axis_beside_the_clip():
    log = [{"step": i, "gradient_norm": 10.0 ** (i % 4)} for i in range(1, 9)]
    [chart] = charts(CONFIG, log)
    assert chart.log and chart.level == (1.0, "clipped above 1")
    [chart] = charts(CONFIG, [{"step": 1, "gradient_norm": 0.01}])
    assert not chart.log and chart.level is None  # far below: the line would flatten the curve


def test_the_tiles_of_an_empty_log_are_one():
    assert [tile.label for tile in tiles([], None)] == ["steps"]


def test_answers_are_few_and_begin_and_end_with_the_run():
    answers = [Answer(step, f"question {q}", f"said at {step}", "r") for step in range(100) for q in range(9)]
    examples = list(answers_aloud(answers))
    assert len(examples) == 4
    steps = [who for who, _ in examples[0].said]
    assert (steps[0], steps[-2], steps[-1]) == ("step 0", "step 99", "reference") and len(steps) == 7
    [single] = answers_aloud([Answer(3, "q", "a", "r")])
    assert [who for who, _ in single.said] == ["step 3", "reference"]


def test_a_question_or_an_answer_that_is_markup_stays_text(tmp_path):
    said = "</p></article><script>alert(1)</script>"
    found = markup_of(write_run_page(a_run(tmp_path, 10, said=said)).read_bytes())
    assert "script" not in found.tags and said in found.text


# --- Written by train.py ---


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> RunConfig:
    """A run of 4 steps on a model of a few thousand weights."""
    folder = tmp_path_factory.mktemp("base")
    train_tokenizer(folder)
    save_checkpoint(tiny_llama(0, vocab_size=330, max_seq_len=256, std=0.1), folder)
    rows = [{"instruction": f"What treats case {n}?", "input": "", "output": f"drug {n % 5}"} for n in range(20)]
    (folder / "rows.json").write_text(json.dumps(rows))
    return RunConfig(
        model=ModelSection(base=str(folder)),
        lora=LoraSection(r=2, targets=("q_proj",)),
        data=DataSection(folder=str(folder), files=("rows.json",), template="alpaca_short", validation_rows=4),
        optim=OptimSection(lr=0.01),
        train=TrainSection(max_steps=4, batch_size=4, micro_batch_size=4, precision="float32"),
    )


def into(config: RunConfig, folder) -> RunConfig:
    return replace(
        config, data=replace(config.data, max_length=128), train=replace(config.train, output=str(folder), device="cpu")
    )


def test_a_run_ends_with_its_page(config, tmp_path, capsys):
    train.train(into(config, tmp_path))
    assert f"page     {tmp_path / REPORT}" in capsys.readouterr().out
    said = markup_of((tmp_path / REPORT).read_bytes()).text
    assert "of 4 steps" in said and "all steps done" in said and "Answers aloud" in said and "What treats case" in said
    written = (tmp_path / REPORT).read_bytes()
    again = write_run_page(tmp_path).read_bytes()  # the same from the directory alone, but for the date
    assert len(again) < len(written) and again.split(b"<footer>")[0] == written.split(b"<footer>")[0]


def test_a_run_that_a_signal_stops_has_its_page(config, tmp_path, monkeypatch):
    step = train.one_step

    def stopped(run, number):
        if number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(run, number)

    monkeypatch.setattr(train, "one_step", stopped)
    with pytest.raises(SystemExit) as left:
        train.train(into(config, tmp_path))
    assert left.value.code == 128 + signal.SIGTERM
    assert "go on with --resume auto" in markup_of((tmp_path / REPORT).read_bytes()).text


def test_a_run_that_fails_has_its_page_and_its_own_error(config, tmp_path, monkeypatch):
    def failing(run, number):
        raise ValueError("the step failed")

    monkeypatch.setattr(train, "one_step", failing)
    with pytest.raises(ValueError, match="the step failed"):
        train.train(into(config, tmp_path))
    assert (tmp_path / REPORT).exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("a fault of ours")])
def test_a_page_that_fails_costs_a_line_and_not_the_run(config, tmp_path, monkeypatch, capsys, error):
    def failing(*_, **__):
        raise error

    monkeypatch.setattr(report, "write_run_page", failing)
    train.train(into(config, tmp_path))
    shown = capsys.readouterr()
    assert "note: no report.html" in shown.err and str(error) in shown.err
    assert (tmp_path / "adapter" / "adapter_config.json").exists() and "page " not in shown.out
