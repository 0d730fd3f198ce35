"""Save and resume: everything comes back bit for bit; what is damaged or of another run is refused unused."""

import os
import random
import resource
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from power_cut import PowerCut, cut_power
from tiny_runs import (
    FILES,
    OPTIMIZER,
    RANDOM,
    SAME,
    TRAINABLE,
    ThreadTeam,
    a_checkpoint,
    everything,
    kinds_of_state,
    make,
    run_team,
    same,
    train,
    vouch_again,
)
from torch import Tensor

import training.state
from files import DamagedFileError, UnsuitableFileError, read_safetensors
from llama import Llama, LlamaConfig
from optim8bit import AdamW8bit
from training import LostProcessError, RunPosition, find_checkpoint, load_state, save_state
from training.manifest import checkpoints, verify

DIGESTS = {"base": "a" * 64, "data": "b" * 64, "plan": "c" * 64, "tokenizer": "d" * 64}


@pytest.mark.parametrize(
    ("optimizer", "options", "kinds"),
    [
        (AdamW8bit, {}, {"exp_avg_codes", "exp_avg"}),
        (AdamW8bit, {"block_size": 64}, {"exp_avg_codes", "exp_avg"}),
        (torch.optim.AdamW, {}, {"exp_avg"}),
    ],
    ids=["8 bits", "8 bits, whole rows", "torch's"],
)
def test_a_resumed_run_is_bit_identical(tmp_path, optimizer, options, kinds):
    model, own = make(0, optimizer, **options)
    model.norm.weight.requires_grad_(False)
    train(model, own, 1)
    model.norm.weight.requires_grad_(True)  # so that not all counts are the same
    train(model, own, 2)
    assert kinds <= kinds_of_state(own)
    torch.manual_seed(7), random.seed(8), np.random.seed(9)
    random.gauss(), np.random.normal()  # both now keep a second number for the next call
    before = everything(model, own)
    save_state(tmp_path, model, own, RunPosition(3, 15, SAME), keep=2)
    assert same(everything(model, own), before)  # a save changes nothing
    draw = lambda: [*torch.rand(4).tolist(), random.gauss(), np.random.normal(), random.random(), np.random.rand()]  # noqa: E731
    drawn, expected = draw(), train(model, own, 3)

    other, others = make(1, optimizer, **options)
    train(other, others, 1)  # a state that must make room
    others.param_groups[0]["lr"] = 0.01
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    position = load_state(checkpoints(tmp_path)[-1], other, others, SAME)
    assert position == RunPosition(3, 15, SAME)
    assert same(everything(other, others), before)
    counts = {int(state["step"]) for state in others.state.values()}
    assert counts == {2, 3}
    assert draw() == drawn
    assert train(other, others, 3) == expected
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_the_optimizers_options_are_the_configs(tmp_path):
    a_checkpoint(tmp_path)
    model, optimizer = make(1)
    optimizer.param_groups[0]["lr"] = 0.5
    load_state(checkpoints(tmp_path)[0], model, optimizer, SAME)
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_a_parameter_that_was_never_updated_has_no_state(tmp_path):
    model, optimizer = make(0)
    checkpoint = save_state(tmp_path, model, optimizer, RunPosition(0, 0, SAME), keep=1)
    other, others = make(1)
    train(other, others, 1)
    load_state(checkpoint, other, others, SAME)
    assert not others.state and all(map(torch.equal, model.parameters(), other.parameters()))


def test_a_checkpoint_is_these_files_and_holds_no_pickle(tmp_path):
    checkpoint = a_checkpoint(tmp_path)
    assert {path.name for path in checkpoint.iterdir()} == set(FILES)
    assert (checkpoint / "config.toml").read_text() == "[optim]\nlr = 0.01\n"
    tensors = {name for file in (TRAINABLE, OPTIMIZER, RANDOM) for name in read_safetensors(checkpoint / file)}
    assert {"output.weight", "layers.0.feed_forward.w2.weight.exp_avg_codes", "torch", "python", "numpy"} <= tensors


# --- Which are kept ---


def test_only_the_newest_are_kept(tmp_path):
    model, optimizer = make(0)
    for step in (1, 2, 10):
        save_state(tmp_path, model, optimizer, RunPosition(step, 0, SAME), keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000002", "step-00000010"]
    assert not list(tmp_path.glob(".*"))


def test_the_one_just_written_is_never_dropped_for_later_ones(tmp_path):
    model, optimizer = make(0)
    for step in (10, 20, 3):
        save_state(tmp_path, model, optimizer, RunPosition(step, 0, SAME), keep=1)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000003"]


def test_old_ones_go_only_after_the_new_one_is_on_the_disk(tmp_path, monkeypatch):
    a_checkpoint(tmp_path, step=1)
    log = cut_power(monkeypatch, 10_000)
    a_checkpoint(tmp_path, step=2, keep=1)
    order = [call for call in log if call in ("fsync", "replace", "rmtree")]
    # Each of five files, the draft that holds their names; its own name; the folder that holds that.
    assert order == [*["fsync"] * 6, "replace", "fsync", "rmtree", "replace", "fsync", "rmtree"]
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


def test_keep_must_keep_something(tmp_path):
    for keep in (0, -1):
        with pytest.raises(ValueError, match=f"keep = {keep} .* at least 1"):
            save_state(tmp_path, *make(0), RunPosition(1, 0, SAME), keep=keep)
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_checkpoint_does_not_count(tmp_path):
    (tmp_path / "step-00000005").mkdir()
    assert checkpoints(tmp_path) == []


# --- Another run's ---


def refused_unchanged(
    checkpoint: Path,
    message: str,
    model: Llama,
    optimizer: torch.optim.Optimizer,
    kind: type[Exception] = DamagedFileError,
) -> None:
    """Loading is refused with this message; parameters, optimizer and random generators are as they were."""
    before = everything(model, optimizer)
    with pytest.raises(kind, match=message):
        load_state(checkpoint, model, optimizer, SAME)
    assert same(everything(model, optimizer), before)


def trained(seed: int, optimizer: type[torch.optim.Optimizer] = AdamW8bit) -> tuple[Llama, torch.optim.Optimizer]:
    """Another run, with a state that must not be lost."""
    model, own = make(seed, optimizer)
    train(model, own, 1)
    return model, own


def test_other_settings_are_refused_by_name(tmp_path):
    checkpoint = a_checkpoint(tmp_path)
    for may_change, ending in (
        ((), r"another --output$"),
        (("train.device", "data.folder"), "differ: data.folder, train"),
    ):
        with pytest.raises(UnsuitableFileError, match=rf"optim\.lr: 0\.01 then, 0\.02 now.*{ending}"):
            load_state(checkpoint, *make(1), {"optim.lr": "0.02"}, may_change=may_change)


def test_other_parameters_are_refused(tmp_path):
    checkpoint = a_checkpoint(tmp_path)
    model, optimizer = make(1)
    model.norm.weight.requires_grad_(False)
    refused_unchanged(checkpoint, r"norm\.weight: .* not trained here", model, optimizer, UnsuitableFileError)
    never_stepped = save_state(tmp_path, *make(0), RunPosition(3, 0, SAME), keep=1)
    refused_unchanged(never_stepped, r"norm\.weight: no parameter", model, optimizer, UnsuitableFileError)


def test_a_changed_shape_is_refused_with_both(tmp_path):
    checkpoint = a_checkpoint(tmp_path)
    model = Llama(LlamaConfig(32, 64, 1, 2, 2, 96)).init_weights(torch.Generator().manual_seed(1))
    message = r"run\.json, tok_embeddings\.weight: it is \(31, 64\) torch\.float32, but the model needs \(32, 64\)"
    refused_unchanged(checkpoint, message, model, AdamW8bit(model.parameters()), UnsuitableFileError)


def test_another_optimizers_state_is_refused(tmp_path):
    message = r"attention\.wq\.weight: the optimizer's state is \{'exp_avg_codes'.*but shape \(64, 64\) has"
    refused_unchanged(a_checkpoint(tmp_path), message, *trained(1, torch.optim.AdamW), UnsuitableFileError)


# --- Damage ---


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_and_a_cut_file_are_named(tmp_path, name, count_faults):
    checkpoint = a_checkpoint(tmp_path)
    file = checkpoint / name
    content = file.read_bytes()
    model, optimizer = trained(1)
    for sixteenth in range(16):
        position = len(content) * sixteenth // 16
        file.write_bytes(content[:position])
        refused_unchanged(checkpoint, rf"/{name}", model, optimizer)
        for bit in (0, 7):
            flipped = bytes([content[position] ^ 1 << bit])
            file.write_bytes(content[:position] + flipped + content[position + 1 :])
            refused_unchanged(checkpoint, rf"/{name}", model, optimizer)
    count_faults("truncated files", 16)
    count_faults("flipped bytes", 32)
    file.write_bytes(content)
    assert load_state(checkpoint, model, optimizer, SAME) == RunPosition(2, 10, SAME)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_swapped_file_is_named(tmp_path, name, count_faults):
    checkpoint = a_checkpoint(tmp_path)
    content = (checkpoint / name).read_bytes()
    (checkpoint / name).unlink()
    refused_unchanged(checkpoint, rf"/{name}: it is missing", *trained(1))
    torch.manual_seed(5), np.random.seed(5)
    other = a_checkpoint(tmp_path / "other", seed=5, step=3)
    (checkpoint / name).write_bytes((other / name).read_bytes())
    count_faults("missing or swapped files", 1)
    if name != "config.toml":  # which the two have in common
        assert (checkpoint / name).read_bytes() != content
        refused_unchanged(checkpoint, rf"/{name}: it is ", *trained(1))
        count_faults("missing or swapped files", 1)


def test_a_swapped_directory_and_a_file_too_many_are_named(tmp_path, count_faults):
    checkpoint = a_checkpoint(tmp_path)
    (checkpoint / "notes.txt").write_text("mine")
    refused_unchanged(checkpoint, r"/notes\.txt: it is no part of the checkpoint", *trained(1))
    (checkpoint / "notes.txt").unlink()
    moved = checkpoint.rename(tmp_path / "step-00000007")
    refused_unchanged(moved, r"run\.json: it is of step 2, but lies in step-00000007", *trained(1))
    load_state(moved.rename(tmp_path / "best"), *make(1), SAME)  # a name of one's own claims nothing
    count_faults("missing or swapped files", 2)


# --- Forgeries: what vouches for itself, and is nonsense ---


def rewritten(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def apply(file: Path) -> None:
        tensors = {name: tensor.clone() for name, tensor in read_safetensors(file).items()}
        change(tensors)
        training.state.write_safetensors(file, {n: training.state.StoredTensor.of(t) for n, t in tensors.items()})

    return apply


W1 = "layers.0.feed_forward.w1.weight"
CODES = f"{W1}.exp_avg_codes"


@pytest.mark.parametrize(
    ("name", "change", "place"),
    [
        (TRAINABLE, lambda tensors: tensors.pop("norm.weight"), "norm.weight"),
        (TRAINABLE, lambda tensors: tensors.update({"other": torch.zeros(2)}), "other"),
        (TRAINABLE, lambda tensors: tensors.update({"norm.weight": torch.zeros(2)}), "norm.weight"),
        (TRAINABLE, lambda tensors: tensors.update({"norm.weight": torch.zeros(64).double()}), "norm.weight"),
        (OPTIMIZER, lambda tensors: tensors.pop(CODES), CODES),
        (OPTIMIZER, lambda tensors: tensors.update({CODES: torch.zeros(96, 64)}), CODES),
        (OPTIMIZER, lambda tensors: tensors.update({f"{W1}.exp_avg": torch.zeros(96, 64)}), f"{W1}.exp_avg"),
        (OPTIMIZER, lambda tensors: tensors.update({f"{W1}.exp_avg_absmax": torch.zeros(5)}), f"{W1}.exp_avg_absmax"),
    ],
)
def test_tensors_of_other_forms_are_refused_by_name(tmp_path, name, change, place):
    checkpoint = a_checkpoint(tmp_path)
    rewritten(change)(checkpoint / name)
    vouch_again(checkpoint)
    message = rf"{name}, {place}: it is (not there|\(.*\) torch\.\w+), but .* is needed".replace(".", r"\.", 1)
    refused_unchanged(checkpoint, message, *trained(1), UnsuitableFileError)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer_steps": {}},
        {"optimizer_steps": {W1: 2}},
        {"optimizer_steps": {"other": 2}},
        {"tensors": {}},
        {"tensors": {"other": "(2,) torch.float32"}},
    ],
    ids=str,
)
def test_steps_and_tensors_of_other_parameters_are_refused(tmp_path, changes):
    checkpoint = a_checkpoint(tmp_path)
    vouch_again(checkpoint, **changes)
    refused_unchanged(checkpoint, r"run\.json, ", *trained(1), UnsuitableFileError)


def test_a_manifest_without_the_files_that_are_needed_is_refused(tmp_path):
    for name in (OPTIMIZER, RANDOM):
        checkpoint = a_checkpoint(tmp_path)
        (checkpoint / name).unlink()
        vouch_again(checkpoint)
        refused_unchanged(checkpoint, name, *trained(1), FileNotFoundError)


# --- Interruptions ---


def mostly_frozen(seed: int) -> tuple[Llama, torch.optim.Optimizer]:
    """A run of few writes: two parameters, one of which has 8-bit moments."""
    model, optimizer = make(seed)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in (W1, "norm.weight"))
    train(model, optimizer, 1)
    return model, optimizer


def trained_parts(model: Llama, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {n: tensor for n, tensor in everything(model, optimizer).items() if n.startswith((W1, "norm.weight"))}


@pytest.mark.parametrize(("existing", "new"), [((1, 2), 3), ((1, 2), 2), ((2,), 2)])
def test_a_power_cut_leaves_whole_checkpoints(tmp_path, monkeypatch, count_faults, existing, new):
    """Whenever it comes, those there load, and the newest is the old or the new one; the same step over again, too."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # which takes most of the time
    found = []
    model, optimizer = mostly_frozen(3)
    for step in existing:
        save_state(tmp_path / "before", *mostly_frozen(step), RunPosition(step, 10, SAME), keep=2, config_text="old")
    (tmp_path / "before" / ".saving-step-00000009").mkdir()
    news = trained_parts(model, optimizer)
    for n in range(1, 200):
        folder = shutil.copytree(tmp_path / "before", tmp_path / str(n))
        with monkeypatch.context() as patched:
            cut_power(patched, n)
            try:
                save_state(folder, model, optimizer, RunPosition(new, 10, SAME), keep=2)
            except PowerCut:
                pass
            else:
                break
        newest = find_checkpoint(folder, "auto", say=lambda _: None)
        assert newest is not None and newest == checkpoints(folder)[-1]
        for checkpoint in checkpoints(folder):
            verify(checkpoint)
        state = mostly_frozen(4)
        assert newest.name == f"step-{load_state(newest, *state, SAME).step:08d}"
        found.append(same(trained_parts(*state), news))
        save_state(folder, model, optimizer, RunPosition(new, 10, SAME), keep=2)  # and the next save clears up
        expected = sorted({*existing, new})[-2:]
        assert sorted(path.name for path in folder.iterdir()) == [f"step-{step:08d}" for step in expected]
    assert found == sorted(found) and set(found) == {False, True} and len(found) > 20
    count_faults("power cuts", len(found))


def test_a_full_disk_leaves_the_old_checkpoint_alone(tmp_path):
    checkpoint = a_checkpoint(tmp_path)
    before = {name: (checkpoint / name).read_bytes() for name in FILES}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (10_000, len(before[TRAINABLE])):  # the weights, then the optimizer, do not fit
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(OSError, match=r"while saving.*step-00000003"):
                save_state(tmp_path, *trained(0, torch.optim.AdamW), RunPosition(3, 10, SAME), keep=1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert [path.name for path in tmp_path.iterdir()] == [checkpoint.name]
        assert {name: (checkpoint / name).read_bytes() for name in FILES} == before


def test_a_disk_with_too_little_room_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    checkpoint = a_checkpoint(tmp_path)
    needed = sum((checkpoint / name).stat().st_size for name in (TRAINABLE, OPTIMIZER))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed, total=2 * needed))
    with pytest.raises(
        OSError, match=rf"No space left on device: [\d,]+ bytes are needed, {needed:,} are free.*'{tmp_path}'"
    ):
        save_state(tmp_path, *trained(0), RunPosition(3, 10, SAME), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.name]


# --- A team, each of whose ranks holds the whole model ---


def test_a_teams_checkpoint_is_that_of_one(tmp_path):
    position = RunPosition(2, 10, SAME)
    states = [trained(0) for _ in range(2)]
    one = save_state(tmp_path / "one", *states[0], position, keep=1)
    paths = run_team(2, lambda team: save_state(tmp_path / "two", *states[team.rank], position, keep=1, team=team))
    assert paths[0] == paths[1]
    for name in (TRAINABLE, OPTIMIZER, RANDOM):
        assert (one / name).read_bytes() == (paths[0] / name).read_bytes(), name
    others = [make(1) for _ in range(2)]
    assert run_team(2, partial(loaded, one, others)) == [position, position]
    assert all(same(everything(*other), everything(*states[0])) for other in others)


@pytest.mark.parametrize(
    ("rank", "place"), [(0, "drafted"), (0, "measured"), (1, "measured"), (0, "publish"), (0, "remove_folder")]
)
def test_a_save_that_fails_on_one_rank_fails_on_all(tmp_path, monkeypatch, rank, place):
    checkpoint = a_checkpoint(tmp_path)
    plain = getattr(training.state, place)

    def broken(*arguments: object) -> object:
        if place == "measured" and bool(arguments[1]) == (rank == 1):  # rank 0 has files, rank 1 none
            return plain(*arguments)
        raise OSError(28, "No space left on device", "the disk")

    monkeypatch.setattr(training.state, place, broken)
    states = [trained(0) for _ in range(2)]
    position = RunPosition(3, 10, SAME)
    errors = run_team(2, lambda team: save_state(tmp_path, *states[team.rank], position, keep=1, team=team))
    assert isinstance(errors[rank], OSError) and errors[rank].errno == 28
    assert isinstance(errors[1 - rank], LostProcessError)
    assert f"rank {rank} of 2 failed: OSError: " in str(errors[1 - rank])
    left = [checkpoint.name, "step-00000003"] if place == "remove_folder" else [checkpoint.name]
    assert sorted(path.name for path in tmp_path.iterdir()) == left
    assert load_state(checkpoint, *make(1), SAME).step == 2


def loaded(checkpoint: Path, states: list[tuple[Llama, torch.optim.Optimizer]], team: ThreadTeam) -> RunPosition:
    return load_state(checkpoint, *states[team.rank], SAME, team=team)


def test_what_one_rank_finds_damaged_no_rank_loads(tmp_path):
    checkpoint = a_checkpoint(tmp_path)
    names = sorted(set(FILES) - {"run.json"})
    for name in names:  # the even ones are rank 0's to read, the odd ones rank 1's
        content = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        states = [trained(1) for _ in range(2)]
        before = [everything(*state) for state in states]
        errors = run_team(2, partial(loaded, checkpoint, states))
        assert all(isinstance(error, DamagedFileError) for error in errors)
        assert str(errors[0]) == str(errors[1]) and f"{name}: it is damaged" in str(errors[0])
        assert all(same(everything(*state), old) for state, old in zip(states, before, strict=True))
        (checkpoint / name).write_bytes(content)
