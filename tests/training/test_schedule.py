"""The learning rate: by hand, and against the log of a real Alpaca-LoRA run."""

import csv

import pytest

from training import learning_rate_factor, warmup_steps


def test_cosine_by_hand():
    at = [learning_rate_factor(t, total_steps=110, warmup_steps=10, schedule="cosine") for t in (0, 5, 10, 60, 110)]
    assert at == pytest.approx([0.0, 0.5, 1.0, 0.5, 0.0])


def test_linear_by_hand():
    at = [learning_rate_factor(t, total_steps=110, warmup_steps=10, schedule="linear") for t in (0, 10, 35, 110)]
    assert at == pytest.approx([0.0, 1.0, 0.75, 0.0])


def test_constant_without_warmup():
    assert learning_rate_factor(0, total_steps=5, warmup_steps=0, schedule="constant") == 1.0


def test_unknown_schedule():
    with pytest.raises(ValueError, match=r"'step'.*linear, cosine, constant"):
        learning_rate_factor(1, total_steps=2, warmup_steps=0, schedule="step")


def test_warmup_from_steps_or_ratio():
    assert warmup_steps(1000, steps=100) == 100
    assert warmup_steps(1000, ratio=0.0301) == 31  # rounded up
    assert warmup_steps(1000) == 0


def test_against_a_real_alpaca_lora_run(real_data, check_bound):
    """Peak 3e-4, linear, 100 warm-up steps, 1,164 in all.

    Its mixed precision skipped an update between steps 20 and 30: from there on the schedule lags the steps by one.
    """
    with open(real_data / "curves" / "alpaca_lora_7b.csv", newline="") as file:
        logged = {int(row["step"]): float(row["value"]) for row in csv.DictReader(file) if row["tag"].endswith("_rate")}
    assert len(logged) == 116
    for step, lr in logged.items():
        taken = step - (step >= 30)
        factor = learning_rate_factor(taken, total_steps=1164, warmup_steps=100, schedule="linear")
        error = abs(3e-4 * factor - lr) / 3e-4
        check_bound("schedule: vs a real run's log, of the peak", error, 1e-7)  # it logged float32
