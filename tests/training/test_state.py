"""Save and resume: everything comes back bit for bit; what is damaged or of another run is refused unused."""

import copy
import json
import os
import pickle
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from power_cut import PowerCut, cut_power

from data import Example, collate
from files import sha256_of
from llama import Llama, LlamaConfig
from optim8bit import AdamW8bit
from training import RunPosition, checkpoints, load_state, optimizer_step, save_state

FILES = ("trainable.safetensors", "optimizer.pt", "random.pt", "run.json")
CONFIG = LlamaConfig(31, 64, 1, 2, 2, 96)
BATCH = collate([[Example([1, 5, 6, 7, 2], [False, True, True, True, True])]], pad_id=0)
SAME = {"optim.lr": "0.01"}


def make(seed: int) -> tuple[Llama, AdamW8bit]:
    model = Llama(CONFIG).init_weights(torch.Generator().manual_seed(seed), std=0.2)
    return model, AdamW8bit(model.parameters(), lr=0.01)


def train(model: Llama, optimizer: torch.optim.Optimizer, steps: int) -> list[str]:
    return [optimizer_step(model, optimizer, [BATCH], clip=1.0).loss.hex() for _ in range(steps)]


def test_resumed_run_is_bit_identical(tmp_path):
    model, optimizer = make(0)
    train(model, optimizer, 3)
    torch.manual_seed(7)
    save_state(tmp_path, model, optimizer, RunPosition(3, 15, SAME), keep=2)
    expected_random = torch.rand(4)
    expected = train(model, optimizer, 3)

    other, other_optimizer = make(1)
    torch.manual_seed(0)
    progress = load_state(checkpoints(tmp_path)[-1], other, other_optimizer, SAME)
    assert progress == RunPosition(3, 15, SAME)
    assert torch.equal(torch.rand(4), expected_random)
    assert train(other, other_optimizer, 3) == expected
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_only_the_newest_are_kept(tmp_path):
    model, optimizer = make(0)
    for step in (1, 2, 10):
        save_state(tmp_path, model, optimizer, RunPosition(step, 0, SAME), keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000002", "step-00000010"]
    assert not list(tmp_path.glob(".*"))


def test_other_settings_are_refused_by_name(tmp_path):
    model, optimizer = make(0)
    save_state(tmp_path, model, optimizer, RunPosition(1, 0, SAME), keep=1)
    with pytest.raises(ValueError, match=r"optim\.lr: 0\.01 then, 0\.02 now"):
        load_state(checkpoints(tmp_path)[0], model, optimizer, {"optim.lr": "0.02"})


def test_a_setting_that_did_not_exist_counts_as_what_was_done_then(tmp_path):
    model, optimizer = make(0)
    save_state(tmp_path, model, optimizer, RunPosition(1, 0, SAME), keep=1)
    load_state(checkpoints(tmp_path)[0], model, optimizer, SAME | {"int8.backward": "'exact'"})
    with pytest.raises(ValueError, match=r"int8\.backward: 'exact' then, 'fast' now"):
        load_state(checkpoints(tmp_path)[0], model, optimizer, SAME | {"int8.backward": "'fast'"})


def test_other_parameters_are_refused(tmp_path):
    model, optimizer = make(0)
    save_state(tmp_path, model, optimizer, RunPosition(1, 0, SAME), keep=1)
    model.norm.weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"norm\.weight"):
        load_state(checkpoints(tmp_path)[0], model, optimizer, SAME)


def test_an_unfinished_checkpoint_does_not_count(tmp_path):
    (tmp_path / "step-00000005").mkdir()
    assert checkpoints(tmp_path) == []


def test_keep_must_keep_something(tmp_path):
    for keep in (0, -1):
        with pytest.raises(ValueError, match=f"keep = {keep} .* at least 1"):
            save_state(tmp_path, *make(0), RunPosition(1, 0, SAME), keep=keep)
    assert list(tmp_path.iterdir()) == []


# --- Damage ---


def a_checkpoint(folder: Path, seed: int = 0, step: int = 2) -> Path:
    model, optimizer = make(seed)
    train(model, optimizer, 2)
    return save_state(folder, model, optimizer, RunPosition(step, 10, SAME), keep=2)


def refused_unchanged(checkpoint: Path, message: str, model: Llama, optimizer: torch.optim.Optimizer) -> None:
    """Loading is refused with this message; parameters, optimizer and random generator are as they were."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state, random_state = copy.deepcopy(optimizer.state_dict()["state"]), torch.get_rng_state()
    with pytest.raises(ValueError, match=message):
        load_state(checkpoint, model, optimizer, SAME)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert str(optimizer.state_dict()["state"]) == str(state)


def vouch_again(checkpoint: Path) -> None:
    """Let run.json vouch for the files as they are, as one who forges a checkpoint would."""
    content = json.loads((checkpoint / "run.json").read_text())
    content["sha256"] |= {name: sha256_of(checkpoint / name) for name in FILES[:3]}
    (checkpoint / "run.json").write_text(json.dumps(content))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("sixteenth", range(16))
def test_a_flipped_byte_and_a_cut_file_are_named(tmp_path, name, sixteenth):
    checkpoint = a_checkpoint(tmp_path)
    file = checkpoint / name
    content = file.read_bytes()
    position = len(content) * sixteenth // 16
    model, optimizer = make(1)
    file.write_bytes(content[:position])
    refused_unchanged(checkpoint, name.replace(".", r"\."), model, optimizer)
    if name == "run.json":  # elsewhere a byte may change without harm (a space), or spoil the JSON
        position = content.index(b'"tokens": 10') + len(b'"tokens": 1')
    file.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
    refused_unchanged(checkpoint, name.replace(".", r"\."), model, optimizer)
    file.write_bytes(content)
    assert load_state(checkpoint, model, optimizer, SAME) == RunPosition(2, 10, SAME)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_swapped_file_is_named(tmp_path, name):
    checkpoint = a_checkpoint(tmp_path)
    content = (checkpoint / name).read_bytes()
    (checkpoint / name).unlink()
    refused_unchanged(checkpoint, rf"{name} is missing", *make(1))
    other = a_checkpoint(tmp_path / "other", seed=5, step=3)
    (checkpoint / name).write_bytes((other / name).read_bytes())
    if (checkpoint / name).read_bytes() != content:  # the generator's state may well be the same
        refused_unchanged(checkpoint, "is damaged", *make(1))


@pytest.mark.parametrize("content", [b"{}", b"[]", b"{", b"\xff", b'{"step": 1, "tokens": 2, "fingerprint": {}}'])
def test_a_run_file_of_another_kind_is_refused(tmp_path, content):
    checkpoint = a_checkpoint(tmp_path)
    (checkpoint / "run.json").write_bytes(content)
    refused_unchanged(checkpoint, r"run\.json", *make(1))


def test_a_changed_shape_is_refused_with_both(tmp_path):
    checkpoint = a_checkpoint(tmp_path)
    model = Llama(LlamaConfig(32, 64, 1, 2, 2, 96)).init_weights(torch.Generator().manual_seed(1))
    message = r"trainable\.safetensors: tok_embeddings\.weight is \(31, 64\) .*needs \(32, 64\)"
    refused_unchanged(checkpoint, message, model, AdamW8bit(model.parameters()))


def other_state(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def apply(checkpoint: Path) -> None:
        content = torch.load(checkpoint / "optimizer.pt", weights_only=True)
        torch.save(change(content) or content, checkpoint / "optimizer.pt")

    return apply


@pytest.mark.parametrize("make_optimizer", [AdamW8bit, torch.optim.AdamW])
@pytest.mark.parametrize(
    "change",
    [
        lambda content: [content],
        lambda content: content.pop("state"),
        lambda content: content.pop("param_groups"),
        lambda content: content["param_groups"][0]["params"].pop(),
        lambda content: content["state"].update({99: {}}),
        lambda content: content["state"].update({0: [1]}),
        lambda content: next(iter(content["state"].values())).update(exp_avg=torch.zeros(5)),
    ],
    ids=["list", "no state", "no groups", "a parameter less", "a parameter more", "state no object", "shape"],
)
def test_an_optimizer_state_of_other_parameters_is_refused(tmp_path, make_optimizer, change):
    model = make(0)[0]
    optimizer = make_optimizer(model.parameters(), lr=0.01)
    train(model, optimizer, 2)
    checkpoint = save_state(tmp_path, model, optimizer, RunPosition(2, 10, SAME), keep=1)
    other_state(change)(checkpoint)
    vouch_again(checkpoint)
    model = make(1)[0]
    refused_unchanged(checkpoint, r"optimizer\.pt", model, make_optimizer(model.parameters()))


@pytest.mark.parametrize("content", [[], {"cuda": []}, {"cpu": torch.zeros(3, dtype=torch.uint8), "cuda": []}])
def test_a_state_of_no_random_generator_is_refused(tmp_path, content):
    checkpoint = a_checkpoint(tmp_path)
    torch.save(content, checkpoint / "random.pt")
    vouch_again(checkpoint)
    refused_unchanged(checkpoint, r"random\.pt is not the state", *make(1))


def test_generators_of_gpus_that_are_not_here_are_refused(tmp_path):
    checkpoint = a_checkpoint(tmp_path)
    many = [torch.zeros(16, dtype=torch.uint8)] * 99
    torch.save({"cpu": torch.get_rng_state(), "cuda": many}, checkpoint / "random.pt")
    vouch_again(checkpoint)
    refused_unchanged(checkpoint, r"random\.pt has the generators of 99 GPUs, but there are \d+ here", *make(1))


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("name", ["optimizer.pt", "random.pt"])
@pytest.mark.parametrize("archived", [True, False])
def test_no_code_runs_from_a_checkpoint(tmp_path, name, archived):
    checkpoint = a_checkpoint(tmp_path)
    trap = {"state": Canary(tmp_path / "canary")}
    torch.save(trap, checkpoint / name) if archived else (checkpoint / name).write_bytes(pickle.dumps(trap))
    vouch_again(checkpoint)
    refused_unchanged(checkpoint, name.replace(".", r"\."), *make(1))
    assert not (tmp_path / "canary").exists()


# --- Interruptions ---


def test_a_power_cut_leaves_whole_checkpoints(tmp_path, monkeypatch):
    """Whenever it comes, those there are load, and the newest is the old or the new one."""
    steps = []
    model, optimizer = make(3)
    for step in (1, 2):
        a_checkpoint(tmp_path / "before", seed=step, step=step)
    for n in range(1, 200):
        folder = shutil.copytree(tmp_path / "before", tmp_path / str(n))
        with monkeypatch.context() as patched:
            cut_power(patched, n)
            try:
                save_state(folder, model, optimizer, RunPosition(3, 10, SAME), keep=2)
            except PowerCut:
                pass
            else:
                break
        for checkpoint in checkpoints(folder):
            position = load_state(checkpoint, *make(4), SAME)
            assert checkpoint.name == f"step-{position.step:08d}"
        steps.append(position.step)
        save_state(folder, model, optimizer, RunPosition(3, 10, SAME), keep=2)  # and the next save clears up
        assert sorted(path.name for path in folder.iterdir()) == ["step-00000002", "step-00000003"]
    assert steps == sorted(steps) and set(steps) == {2, 3} and len(steps) > 20


def test_a_full_disk_leaves_the_old_checkpoint_alone(tmp_path):
    checkpoint = a_checkpoint(tmp_path)
    before = {name: (checkpoint / name).read_bytes() for name in FILES}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (10_000, len(before["trainable.safetensors"])):  # the weights, then the optimizer, do not fit
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(OSError, match=r"while saving.*step-00000003"):
                save_state(tmp_path, *two_float_states(), RunPosition(3, 10, SAME), keep=1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert [path.name for path in tmp_path.iterdir()] == [checkpoint.name]
        assert {name: (checkpoint / name).read_bytes() for name in FILES} == before


def two_float_states() -> tuple[Llama, torch.optim.Optimizer]:
    """A model and an optimizer whose state is larger than it."""
    model = make(0)[0]
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer, 1)  # type: ignore[arg-type]
    return model, optimizer
