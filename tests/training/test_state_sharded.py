"""Checkpoints of runs whose parameters are cut by rows over processes: exact there, in one process, and back."""

import shutil
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from tiny_runs import SAME, everything, make, same, train, vouch_again
from torch import Tensor

from files import DamagedFileError, StoredTensor, UnsuitableFileError, read_safetensors, write_safetensors
from optim8bit import AdamW8bit
from training import RunPosition, load_state, save_state
from training.manifest import verify
from training.optimizer_state import optimizer_tensors

BLOCK = 96
N_RANKS = 2
"""Of 31 rows 16 and 15; of 64 and 96 as many each."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of one process, and what two ranks made beside it; they have checked the most themselves."""
    folder = tmp_path_factory.mktemp("ranks")
    model, optimizer = make(0, AdamW8bit, block_size=BLOCK)
    train(model, optimizer, 2)
    save_state(folder / "alone", model, optimizer, RunPosition(2, 10, SAME), keep=1)
    run_ranks(Path(__file__).parent / "state_ranks.py", N_RANKS, folder)
    return folder


@pytest.mark.parametrize("optimizer", [AdamW8bit, torch.optim.AdamW])
def test_one_process_goes_on_from_two(folder, optimizer):
    expected = read_safetensors(folder / "whole" / f"{optimizer.__name__}.safetensors")
    [checkpoint] = (folder / optimizer.__name__).iterdir()
    model, own = make(1, optimizer, **({"block_size": BLOCK} if optimizer is AdamW8bit else {}))
    train(model, own, 1)
    assert load_state(checkpoint, model, own, SAME) == RunPosition(2, 10, SAME)
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    moments, steps = optimizer_tensors(parameters, own)
    found = parameters | moments | {f"{name}.step": torch.tensor(step) for name, step in steps.items()}
    assert found.keys() == expected.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in expected.items()
    )
    train(model, own, 1)


def test_shards_that_are_missing_swapped_or_damaged_are_named(folder, tmp_path, count_faults):
    [original] = (folder / "AdamW8bit").iterdir()
    checkpoint = Path(shutil.copytree(original, tmp_path / original.name))
    shards = sorted(checkpoint.glob("shard-*"))
    assert len(shards) >= N_RANKS
    contents = {shard: shard.read_bytes() for shard in shards}
    for shard, content in contents.items():
        damages = [content[: len(content) * part // 16] for part in range(16)]
        damages += [content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :] for i in range(0, len(content), 997)]
        damages += [each for other, each in contents.items() if other != shard]
        for damage in damages:
            shard.write_bytes(damage)
            with pytest.raises(DamagedFileError, match=shard.name):
                verify(checkpoint)
        shard.unlink()
        with pytest.raises(DamagedFileError, match=rf"{shard.name}: it is missing"):
            verify(checkpoint)
        shard.write_bytes(content)
        count_faults("truncated files", 16)
        count_faults("missing or swapped files", len(shards))
        count_faults("flipped bytes", len(damages) - 15 - len(shards))
    verify(checkpoint)


def test_what_is_no_shard_of_this_run_is_refused_though_it_vouches_for_itself(folder, tmp_path):
    """A rank's rows under another rank's name, and a tensor of another shape."""
    [original] = (folder / "AdamW8bit").iterdir()
    model, optimizer = make(1, AdamW8bit, block_size=BLOCK)
    train(model, optimizer, 1)
    before = everything(model, optimizer)
    for forgery in ("twice", "shape"):
        checkpoint = Path(shutil.copytree(original, tmp_path / forgery / original.name))
        first, second, *_ = sorted(checkpoint.glob("shard-*"))
        if forgery == "twice":
            shutil.copy(first, second)
        else:
            tensors = {name: tensor[..., :1].clone() for name, tensor in read_safetensors(first).items()}
            write_safetensors(first, {name: StoredTensor.of(tensor) for name, tensor in tensors.items()})
        vouch_again(checkpoint)
        with pytest.raises((DamagedFileError, UnsuitableFileError), match=r"shard-|step-00000002, "):
            load_state(checkpoint, model, optimizer, SAME)
        assert same(everything(model, optimizer), before)
