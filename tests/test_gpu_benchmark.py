"""benchmarks/gpu: every section runs through on a CPU with tiny shapes, and a section that fails costs no other."""

import argparse
import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SECTIONS = ("ceilings", "memory", "linear", "lora", "optimizers", "steps", "decoding")


@pytest.fixture
def run(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.syspath_prepend(BENCHMARKS / "gpu")  # first, as when run.py is called
    return importlib.import_module("run")


@pytest.fixture
def options(tmp_path):
    return argparse.Namespace(
        device="cpu", tiny=True, skip_peers=True, out=tmp_path / "gpu.json", minutes=1.0, sections=list(SECTIONS)
    )


def test_the_sections_are_those_tested_here(run):
    assert tuple(run.SECTIONS) == SECTIONS


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_measures_every_row(run, options, name):
    run.run_section(name, options)
    entry = run.read(options.out)["sections"][name]
    assert entry["error"] is None
    assert entry["rows"]
    # The kernels of each single way need a GPU; what chooses among them does not.
    assert [row for row in entry["rows"] if row["note"] and "ours int8: " not in row["what"]] == []


def test_a_failing_section_keeps_its_rows_and_says_where_it_failed(run, options, monkeypatch):
    def measure(setting):
        yield {"what": "first"}
        raise RuntimeError("the device was lost")

    monkeypatch.setitem(run.SECTIONS, "linear", run.Section(measure, 1, "a section"))
    run.run_section("linear", options)
    entry = run.read(options.out)["sections"]["linear"]
    assert entry["rows"] == [{"what": "first"}]
    assert entry["error"].endswith("RuntimeError: the device was lost")
    assert str(Path(__file__).parent) not in entry["error"]


def test_a_section_that_is_stopped_keeps_its_rows_and_no_bar_is_met(run, options, monkeypatch, capsys):
    def stopped(name, limit):
        content = run.read(options.out)
        content["sections"][name] = run.new_entry() | {"rows": [{"ceiling": "copy", "rate": None, "note": "x"}]}
        run.write(options.out, content)
        return "stopped after 1 s"

    monkeypatch.setattr(run, "_in_child", stopped)
    options.sections = ["ceilings"]
    run.run_all(options)
    content = run.read(options.out)
    assert content["sections"]["ceilings"]["error"] == "stopped after 1 s"
    assert len(content["sections"]["ceilings"]["rows"]) == 1
    assert content["bars"] and all(bar["met"] is None for bar in content["bars"])
    assert "not measured" in capsys.readouterr().out


def test_bars_are_held_against_the_best_of_ours(run):
    steps = [
        {"setting": "2 × 256", "outliers": 6, "what": what, "÷ ours bf16": of_bf16, "÷ bitsandbytes": of_peer}
        for what, of_bf16, of_peer in (
            ("ours int8, exact", 1.2, 0.6),
            ("ours int8, fast", 0.9, 0.4),
            ("peer", 0.1, 0.1),
        )
    ]
    memory = [
        {"share GB": 8.9, "fits": False, "reserved GB": 8.9},
        {"share GB": 8.9, "fits": True, "reserved GB": 7.5},
    ]
    found = {row["bar"]: (row["measured"], row["met"]) for row in run.bars({"steps": steps, "memory": memory})}
    assert found["LoRA-8bit of 7B within, GB"] == (7.5, True)
    assert found["step of LoRA-8bit, 2 × 256, 6 outliers, ÷ ours bf16"] == (0.9, True)
    assert found["step of LoRA-8bit, 2 × 256, 6 outliers, ÷ bitsandbytes"] == (0.4, True)
    not_fitting = run.bars({"memory": memory[:1]})[0]
    assert (not_fitting["measured"], not_fitting["met"]) == (None, False)
