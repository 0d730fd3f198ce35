"""One rank of `test_state_sharded`: save and resume where every rank holds some rows of each parameter.

FOLDER/alone holds the checkpoint of one process; FOLDER/whole receives what the ranks saved, gathered, to compare.
"""

import resource
import sys
from pathlib import Path

import torch
from ranks import joined
from tiny_runs import BATCH, SAME, make
from torch import Tensor
from torch.distributed.tensor import DTensor

from files import DamagedFileError, StoredTensor, UnsuitableFileError, read_safetensors, write_safetensors
from optim8bit import AdamW8bit, dequantize_blockwise
from training import LostProcessError, RunPosition, Team, find_checkpoint, load_state, optimizer_step, save_state
from training.fsdp import Sharded
from training.manifest import read_run
from training.optimizer_state import optimizer_tensors
from training.state import trainable

BLOCK = 96
# w2 (64, 96) has rows of whole blocks; w1 and w3 (96, 64) are cut between blocks; those (64, 64) within one.
SPLIT = [f"layers.0.attention.w{letter}.weight" for letter in "qkvo"]
POSITION = RunPosition(2, 10, SAME)
CPU = torch.device("cpu")


def sharded(
    seed: int, team: Team, optimizer: type[torch.optim.Optimizer] = AdamW8bit
) -> tuple[Sharded, torch.optim.Optimizer]:
    """The run of `tiny_runs.make`, cut by rows."""
    options = {"block_size": BLOCK} if optimizer is AdamW8bit else {}
    model, _ = make(seed)
    engine = Sharded(model, team, CPU)
    return engine, optimizer(model.parameters(), lr=0.01, **options)  # type: ignore[call-arg]


def train(engine: Sharded, optimizer: torch.optim.Optimizer, steps: int) -> list[str]:
    return [optimizer_step(engine, optimizer, [BATCH], clip=1.0).loss.hex() for _ in range(steps)]


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach().clone()


def gathered(engine: Sharded, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Parameters, moments and step counts, all rows of them."""
    parameters = trainable(engine.model)
    moments, steps = optimizer_tensors(parameters, optimizer)
    tensors = {name: whole(tensor).detach() for name, tensor in (parameters | moments).items()}
    return tensors | {f"{name}.step": torch.tensor(step) for name, step in steps.items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


def different(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """The names of which one has other numbers than the other, or none."""
    return [
        name
        for name in sorted(a.keys() | b.keys())
        if name not in a or name not in b or not torch.equal(a[name], b[name])
    ]


def comes_back(folder: Path, team: Team) -> None:
    """Bit for bit, with all kinds of moments, and so do the steps after it."""
    for optimizer in (AdamW8bit, torch.optim.AdamW):
        engine, own = sharded(0, team, optimizer)
        train(engine, own, 2)
        saved = gathered(engine, own)
        checkpoint = save_state(folder / optimizer.__name__, engine.model, own, POSITION, keep=1, team=team)
        expected = train(engine, own, 2)
        other, others = sharded(1, team, optimizer)
        assert load_state(checkpoint, other.model, others, SAME, team=team) == POSITION
        assert equal(gathered(other, others), saved)
        assert train(other, others, 2) == expected
        if team.leads:
            (folder / "whole").mkdir(exist_ok=True)
            file = folder / "whole" / f"{optimizer.__name__}.safetensors"
            write_safetensors(file, {name: StoredTensor.of(tensor) for name, tensor in saved.items()})
        run = read_run(checkpoint)
        assert run.world_size == team.size and sum(name.startswith("shard-") for name in run.manifest) >= team.size


def goes_on_from_one_process(folder: Path, team: Team) -> None:
    """The same numbers; where a block would lie on two ranks, the moments' values in float32."""
    [checkpoint] = (folder / "alone").iterdir()
    files = [read_safetensors(checkpoint / f"{name}.safetensors") for name in ("trainable", "optimizer")]
    expected = files[0] | files[1]
    for name in (f"{parameter}.{key}" for parameter in SPLIT for key in ("exp_avg", "exp_avg_sq")):
        codes, absmax = expected.pop(f"{name}_codes"), expected.pop(f"{name}_absmax")
        signed = name.endswith("exp_avg")
        expected[name] = dequantize_blockwise(codes, absmax, signed=signed, block_size=BLOCK)
    engine, optimizer = sharded(1, team)
    train(engine, optimizer, 1)
    assert load_state(checkpoint, engine.model, optimizer, SAME, team=team) == POSITION
    found = gathered(engine, optimizer)
    assert all(found.pop(f"{name}.step") == 2 for name in trainable(engine.model))
    assert equal(found, expected), different(found, expected)
    train(engine, optimizer, 1)


def fails_together(folder: Path, team: Team) -> None:
    """When the disk is full for one rank, or one rank's file is damaged, nothing changes on any."""
    engine, optimizer = sharded(0, team)
    train(engine, optimizer, 1)
    save_state(folder / "full", engine.model, optimizer, RunPosition(1, 5, SAME), keep=1, team=team)
    before = gathered(engine, optimizer)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if team.rank == team.size - 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        save_state(folder / "full", engine.model, optimizer, POSITION, keep=1, team=team)
        raise AssertionError("a full disk went unnoticed")
    except (OSError, LostProcessError) as error:
        kind = OSError if team.rank == team.size - 1 else LostProcessError
        assert isinstance(error, kind), repr(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with team.together():  # rank 0 clears up
        assert not team.leads or [path.name for path in (folder / "full").iterdir()] == ["step-00000001"]
    checkpoint = find_checkpoint(folder / "full", "auto", team=team, say=lambda _: None)
    assert checkpoint is not None
    for name in sorted(path.name for path in checkpoint.iterdir()):
        with team.together():
            content = (checkpoint / name).read_bytes()
            if team.leads:
                (checkpoint / name).write_bytes(content[:-9] + bytes([content[-9] ^ 64]) + content[-8:])
        try:
            load_state(checkpoint, engine.model, optimizer, SAME, team=team)
            raise AssertionError(f"damage of {name} went unnoticed")
        except DamagedFileError as error:
            assert name in str(error)
        with team.together():
            if team.leads:
                (checkpoint / name).write_bytes(content)
    try:
        load_state(checkpoint, engine.model, optimizer, SAME | {"lora.r": "8"}, team=team)
        raise AssertionError("other settings went unnoticed")
    except UnsuitableFileError:
        pass
    assert equal(gathered(engine, optimizer), before)


if __name__ == "__main__":
    rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    with joined(rank, size, folder):
        team = Team(rank, size, rank)
        comes_back(folder, team)
        goes_on_from_one_process(folder, team)
        fails_together(folder, team)
