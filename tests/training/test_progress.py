"""What the terminal shows: every figure within 80 columns; plain lines where there is no terminal."""

import io
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console

from training import peak_memory_gb, progress, training_progress

FIGURES = {"loss": 2.345, "lr": 2e-5, "tokens_per_second": 12_345.6, "memory_gb": 8.9}


def test_all_figures_fit_into_80_columns(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda quiet: Console(file=screen, force_terminal=True, width=80))
    with training_progress(12_345, done=12_000) as bar:
        bar.update(12_001, **FIGURES)
        with bar.validating(3) as advance:
            advance()
        bar.say("step 12001: validation loss 1.2")
    shown = screen.getvalue()
    for figure in ("12001/12345", "loss 2.345", "lr 2.0e-05", "12,346 tok/s", "8.9 GB", "ETA", "validation loss 1.2"):
        assert figure in shown


def test_plain_lines_without_a_terminal(capsys):
    with training_progress(40) as bar:
        for step in range(1, 41):
            bar.update(step, **FIGURES)
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert len(lines) == 20 and lines[-1].startswith("step 40/40  loss 2.345")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="compares with Linux's own figure")
def test_peak_memory_is_the_kernels_in_gigabytes():
    kernel = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert kernel and peak_memory_gb(torch.device("cpu")) == pytest.approx(int(kernel[1]) * 1024 / 1e9, rel=0.01)
