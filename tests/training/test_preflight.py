"""Preflight as a whole: it passes where it should, says little, and finds out that the result could not be kept."""

import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from preflight_run import PreparedRun, make_base, prepare, tiny_config

from lora import save_adapter
from recipe import predict_memory, read_config
from training.preflight import room

ROOT = Path(__file__).parents[2]
CHECKS = ["tokenizer", "ids", "targets", "template", "ends", "cuts", "step", "trace", "memory", "room", "result"]
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def run(base, tmp_path) -> PreparedRun:
    return prepare(tiny_config(base, tmp_path / "out"))


@pytest.mark.parametrize("method", ["miniature-full", "miniature-lora", "miniature-lora-8bit"])
def test_the_bundled_recipes_pass_with_one_line(tmp_path, method):
    config = read_config(ROOT / f"configs/{method}.toml")
    data = replace(config.data, files=("meadow/medical_meadow_flashcards.json:100",), validation_rows=4)
    run = prepare(replace(config, data=data, train=replace(config.train, output=str(tmp_path))))
    [line] = run.preflight()
    assert line.startswith("preflight: 11 checks passed in ")
    assert "measured" in line and "predicted" in line


def test_the_handbook_quotes_what_it_says(tmp_path):
    """docs/running.md, but for times, and sizes of memory and disk."""
    config = read_config(ROOT / "configs/miniature-lora.toml")
    lines = prepare(replace(config, train=replace(config.train, output=str(tmp_path)))).preflight(verbose=True)
    handbook = (ROOT / "docs/running.md").read_text()

    def without_measures(text: str) -> str:
        return re.sub(r"\d[\d,.]* (?=s;|GB|predicted)", "# ", text)

    quoted = without_measures("".join(f"    {line}\n" for line in lines))
    assert quoted in without_measures(handbook)


def test_asked_for_all_it_says_a_line_for_each_check(run):
    lines = run.preflight(verbose=True)
    assert [line.split()[0] for line in lines[:-1]] == CHECKS
    assert lines[-1].startswith("preflight: 11 checks passed")


def test_where_the_output_cannot_be_written_the_error_names_it(run, tmp_path):
    (tmp_path / "file").write_text("not a directory")
    run.config = replace(run.config, train=replace(run.config.train, output=str(tmp_path / "file/run")))
    with pytest.raises(OSError, match=f"{tmp_path}/file"):
        run.preflight()


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_read_only_output_is_refused(run, tmp_path):
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(OSError, match=r"Permission denied"):
        run.preflight()


@pytest.mark.parametrize("limit", [0, 100, 2000, 5000])
def test_a_disk_that_fills_is_found_and_nothing_is_left(run, tmp_path, limit, count_faults):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OSError, match=r"File too large.*out"):
            run.preflight()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "out").iterdir()) == []
    count_faults("preflight: files cut while they are written")


def test_an_earlier_result_stays_as_it_is(run, tmp_path):
    (tmp_path / "out/adapter").mkdir(parents=True)
    (tmp_path / "out/adapter/adapter_config.json").write_text("{}")
    run.preflight()
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.json")] == ["out/adapter/adapter_config.json"]


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize(("save_every", "states"), [(0, 1), (10, 3)])
def test_a_disk_too_small_is_refused_with_both_numbers(base, tmp_path, monkeypatch, method, save_every, states):
    run = prepare(tiny_config(base, tmp_path, method))
    run.config = replace(run.config, train=replace(run.config.train, save_every=save_every, keep_checkpoints=2))
    memory = predict_memory(run.engine.model, run.config)
    needed = memory.trainable_weights + states * (memory.trainable_weights + memory.optimizer)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, needed))
    run.preflight()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, needed - 1))
    numbers = rf"has {needed / 1e9:.3f} GB free, but the run will write {needed / 1e9:.3f} GB"
    with pytest.raises(ValueError, match=rf"preflight, room: .* {numbers} .*up to {states} checkpoints"):
        run.preflight()


def test_checkpoints_that_will_be_replaced_need_no_room_twice(run, tmp_path, monkeypatch):
    run.config = replace(run.config, train=replace(run.config.train, save_every=10, keep_checkpoints=2))
    memory = predict_memory(run.engine.model, run.config)
    state = memory.trainable_weights + memory.optimizer
    for step in (10, 20):
        (tmp_path / f"out/checkpoints/step-{step:08d}").mkdir(parents=True)
        (tmp_path / f"out/checkpoints/step-{step:08d}/file").write_bytes(bytes(state))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, memory.trainable_weights + state))
    assert "GB to write" in room(run.config, run.engine.model)


def test_what_is_predicted_to_be_written_is_about_what_is_written(run, tmp_path):
    """Adapter and optimizer state, saved by themselves, against the bytes that `room` counts."""
    memory = predict_memory(run.engine.model, run.config)
    save_adapter(run.engine.model, tmp_path / "adapter")
    parameters = [p for p in run.engine.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    headers = 20_000  # names, settings, zip directories: nothing beside a real adapter's megabytes
    adapter = (tmp_path / "adapter/adapter_model.safetensors").stat().st_size
    assert memory.trainable_weights <= adapter <= memory.trainable_weights + headers
    assert memory.optimizer <= (tmp_path / "optimizer.pt").stat().st_size <= memory.optimizer + headers


TWO_RANKS = """
import json, sys, torch
from dataclasses import replace
from pathlib import Path
from preflight_run import prepare, tiny_config
from training import joined_team
base, output = map(Path, sys.argv[1:3])
torch.set_num_threads(1)
with joined_team(torch.device("cpu")) as team:
    said = {}
    for method in ("lora", "full"):
        run = prepare(tiny_config(base, output / method, method), team=team)
        random = torch.get_rng_state()
        said[method] = run.preflight(verbose=True)
        assert torch.equal(random, torch.get_rng_state())
        assert all(p.grad is None for p in run.engine.model.parameters())
    run = prepare(tiny_config(base, output / "lora"), team=team)
    if team.leads:
        run.config = replace(run.config, train=replace(run.config.train, output=str(base / "rows.json/x")))
    try:
        run.preflight()
    except Exception as error:
        said["error"] = f"{type(error).__name__}: {error}"
    Path(output, f"said-{team.rank}.json").write_text(json.dumps(said))
"""


def test_two_ranks_fly_together_and_fail_together(base, tmp_path):
    """DDP and FSDP pass; where only rank 0 cannot write, rank 1 ends with its name instead of waiting for ever."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2"}
    environment |= {"PYTHONPATH": f"{ROOT / 'tests'}:{ROOT / 'src'}", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_RANKS, str(base), str(tmp_path)],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        problems = [rank.communicate(timeout=120)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], problems
    said = [json.loads((tmp_path / f"said-{rank}.json").read_text()) for rank in range(2)]
    for method in ("lora", "full"):
        steps = [next(line for line in rank[method] if line.startswith("step")) for rank in said]
        assert steps[0] == steps[1]  # the same micro-batch, the same loss
        assert all(rank[method][-1].startswith("preflight: 11 checks passed") for rank in said)
    assert said[0]["error"].startswith("NotADirectoryError: ")
    assert said[1]["error"].startswith("LostProcessError: rank 0 of 2 failed: NotADirectoryError: ")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
