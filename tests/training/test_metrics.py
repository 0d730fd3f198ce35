"""metrics.jsonl: lines survive a crash and a resume; the plot is a picture."""

import json

import pytest

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
