"""metrics.jsonl: lines survive a crash and a resume; the plot is a picture."""

import json
import math

import pytest

from files import FileError
from training import MetricsLog, plot_losses, read_metrics


def test_lines_come_back(tmp_path):
    log = MetricsLog(tmp_path)
    log.write(1, loss=2.5, lr=0.1)
    log.write(1, validation_loss=2.0)
    assert read_metrics(log.path) == [{"step": 1, "loss": 2.5, "lr": 0.1}, {"step": 1, "validation_loss": 2.0}]


def test_a_fresh_run_starts_a_fresh_file(tmp_path):
    MetricsLog(tmp_path).write(1, loss=1.0)
    assert read_metrics(MetricsLog(tmp_path).path) == []


def test_a_resumed_run_drops_what_it_will_write_again(tmp_path):
    log = MetricsLog(tmp_path)
    for step in (1, 2, 3):
        log.write(step, loss=float(step))
    with log.path.open("a") as file:
        file.write('{"step": 4, "lo')  # the crash
    resumed = MetricsLog(tmp_path, after_step=2)
    resumed.write(3, loss=30.0)
    assert [line["loss"] for line in read_metrics(log.path)] == [1.0, 2.0, 30.0]
    assert all(json.loads(line) for line in log.path.read_text().splitlines())


def test_a_loss_that_was_no_number_is_read_back(tmp_path):
    log = MetricsLog(tmp_path)
    log.write(1, validation_loss=math.nan, loss=math.inf)
    [line] = read_metrics(log.path)
    assert math.isnan(line["validation_loss"]) and line["loss"] == math.inf


@pytest.mark.parametrize("tail", [b'{"step": 3, "lo', b"\xff\xfe", b"\0" * 500, b"{}"])
def test_what_a_crash_left_behind_the_last_newline_is_left_out(tmp_path, count_faults, tail):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 2.5}\n' + tail)
    assert read_metrics(path) == [{"step": 1, "loss": 2.5}]
    count_faults("bad metrics")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"[]", "the row is a list, expected an object with the key"),
        (b"3", "the row is a number"),
        (b"{}", 'the key "step" is missing'),
        (b'{"step": null}', '"step" is null, expected a number'),
        (b'{"step": 1.5}', '"step" is a number'),
        (b'{"step": true}', '"step" is a boolean'),
        (b'{"step": 1, "loss": "low"}', '"loss" is a string, expected a number'),
        (b'{"step": 1, "loss": [1.0]}', '"loss" is a list, expected a number'),
        (b'{"step": 1, "step": 2}', 'the key "step" occurs twice'),
        (b'{"step": 1, "tokens": 1' + b"0" * 400 + b"}", '"tokens" has 401 digits; remove the line'),
        (b'{"step": ' + b"9" * 5000 + b"}", "not valid JSON (a number of thousands of digits)"),
        (b'{"step": 1, "loss": 2', "not valid JSON"),
        (b'{"step": 1, "\xff": 2}', "is not UTF-8"),
        (b'{"a":' * 10_000, "nested too deeply"),
        (b"\0\0\0", "not valid JSON"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, count_faults, line, problem):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 2.5}\n' + line + b'\n{"step": 3, "loss": 2.0}\n')
    with pytest.raises(FileError, match=r"metrics\.jsonl, line 2: ") as refused:
        read_metrics(path)
    assert problem in str(refused.value) and str(refused.value).isprintable()
    with pytest.raises(FileError, match=r"metrics\.jsonl, line 2: "):
        MetricsLog(tmp_path, after_step=3)
    assert line in path.read_bytes(), "a log that cannot be read is not written over"
    count_faults("bad metrics")


def test_plot(tmp_path):
    log = MetricsLog(tmp_path)
    for step in range(5):
        log.write(step, loss=5.0 - step, lr=0.1)
    log.write(4, validation_loss=1.5)
    assert plot_losses(log.path, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_tensorboard_events(tmp_path):
    pytest.importorskip("tensorboard", reason="install the extra: logging")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    MetricsLog(tmp_path, tensorboard=True).write(3, loss=1.5)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(3, 1.5)]
