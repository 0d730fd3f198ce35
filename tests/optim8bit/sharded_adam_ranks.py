"""One of four ranks of `test_sharded_adam`: as two pairs and as one team, they take the steps of one process."""

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ranks import joined
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from optim8bit import Adam8bit, AdamW8bit

# Rows even and uneven, fewer than ranks, of whole blocks and not; vectors cut at blocks and not; small ones.
SHAPES = [
    (64, 256),
    (23, 512),
    (3, 2048),
    (1, 4096),
    (64, 128),
    (40, 200),
    (6, 896),
    (5, 1024),
    (4096,),
    (4099,),
    (30,),
]
SHAPES += [(6, 7), (1, 1)]
SPLIT = [(40, 200), (6, 896), (4099,)]
STEPS = 3


def drawn(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def make(dtype: torch.dtype, mesh: Any = None) -> list[nn.Parameter]:
    values = [drawn(shape, i, dtype) for i, shape in enumerate(SHAPES)]
    return [nn.Parameter(value if mesh is None else distribute_tensor(value, mesh, [Shard(0)])) for value in values]


def groups(parameters: list[nn.Parameter], in_32bit: list[tuple[int, ...]] = ()) -> list[dict[str, Any]]:
    """A group for each: the last one's options differ, and those of these shapes have float32 moments."""
    made = [{"params": [p], "bits": 32 if tuple(p.shape) in in_32bit else 8} for p in parameters]
    return [*made[:-1], made[-1] | {"weight_decay": 0.0}]


def give_gradients(parameters: list[nn.Parameter], step: int, mesh: Any = None) -> None:
    for i, p in enumerate(parameters):
        gradient = drawn(SHAPES[i], 1000 * step + i, p.dtype) * 0.01
        p.grad = gradient if mesh is None else distribute_tensor(gradient, mesh, [Shard(0)])


def rows(whole: Tensor, mesh: Any) -> Tensor:
    """This rank's, as torch cuts: the last ranks may have fewer, or none."""
    parts, place = whole.chunk(mesh.size()), mesh.get_local_rank()
    return parts[place] if place < len(parts) else whole[:0]


def same(sharded: Any, alone: Any, ours: list[nn.Parameter], plain: list[nn.Parameter], *, joined: bool) -> int:
    """How many state tensors were compared, bit for bit: each rank's rows, or joined those of all ranks."""
    compared, mesh = 0, ours[0].device_mesh
    for p, q in zip(ours, plain, strict=True):
        assert torch.equal(p.detach().to_local(), rows(q.detach(), mesh)), tuple(p.shape)
        state, expected = sharded.state[p], alone.state[q]
        assert state.keys() == expected.keys() and state["step"] == expected["step"]
        for name in sorted(state.keys() - {"step"}):
            assert isinstance(state[name], DTensor) and state[name].dtype == expected[name].dtype
            assert state[name].placements == p.placements and state[name].device_mesh == p.device_mesh
            whole = expected[name].view(state[name].shape)  # scales in rows, or in a row
            assert torch.equal(state[name].to_local(), rows(whole, mesh)), (name, tuple(p.shape))
            assert not joined or torch.equal(state[name].full_tensor(), whole), (name, tuple(p.shape))
            compared += 1
    return compared


def check_steps(mesh: Any, kind: type[Adam8bit], dtype: torch.dtype) -> None:
    parameters, plain = make(dtype, mesh), make(dtype)
    options = {"lr": 1e-2, "weight_decay": 0.1}
    sharded = kind(groups(parameters), **options)
    assert [tuple(p.shape) for p in sharded.split_blocks()] == SPLIT
    # What keeps float32 moments here is compared with one process's float32 moments.
    alone = kind(groups(plain, SPLIT), **options)
    assert alone.split_blocks() == []
    for step in range(1, STEPS + 1):
        give_gradients(parameters, step, mesh)
        give_gradients(plain, step)
        scale = torch.tensor(0.5) if step == 2 else 1.0
        sharded.step(gradient_scale=scale)
        alone.step(gradient_scale=scale)
    in_8bit = [shape for shape in SHAPES if torch.Size(shape).numel() >= 4096 and shape not in SPLIT]
    compared = same(sharded, alone, parameters, plain, joined=dtype == torch.bfloat16)
    assert compared == 4 * len(in_8bit) + 2 * (len(SHAPES) - len(in_8bit))
    bytes_here: list[Any] = [None] * mesh.size()
    dist.all_gather_object(bytes_here, sharded.state_bytes(), group=mesh.get_group())
    assert tuple(map(sum, zip(*bytes_here, strict=True))) == alone.state_bytes()
    for saved in (sharded.state_dict(), sharded.state_dict() | {"state": alone.state_dict()["state"]}):
        check_reload(saved, alone.state_dict(), parameters, plain, mesh, kind)


def check_reload(saved: Any, saved_alone: Any, parameters: Any, plain: Any, mesh: Any, kind: type[Adam8bit]) -> None:
    """From a state cut as it was, or from one process's whole one, the next step is that of one process."""
    ours, theirs = ([nn.Parameter(p.detach().clone()) for p in each] for each in (parameters, plain))
    sharded, alone = kind(groups(ours)), kind(groups(theirs))
    sharded.load_state_dict(saved)
    alone.load_state_dict(saved_alone)
    give_gradients(ours, STEPS + 1, mesh)
    give_gradients(theirs, STEPS + 1)
    sharded.step()
    alone.step()
    same(sharded, alone, ours, theirs, joined=False)


def check_refusals(mesh: Any) -> None:
    try:
        AdamW8bit([nn.Parameter(distribute_tensor(torch.zeros(8, 512), mesh, [Shard(1)]))])
    except ValueError as error:
        assert "cut by rows" in str(error), error
    else:
        raise AssertionError("columns were taken")
    p = nn.Parameter(distribute_tensor(torch.zeros(40, 200), mesh, [Shard(0)]))
    alone = nn.Parameter(torch.zeros(40, 200))
    alone.grad = torch.ones(40, 200)
    optimizer = AdamW8bit([alone])
    optimizer.step()
    saved = optimizer.state_dict()
    try:
        AdamW8bit([p]).load_state_dict(saved)
    except ValueError as error:
        assert "would lie on two processes" in str(error), error
    else:
        raise AssertionError("codes of split blocks were taken")


def check_copies(mesh: Any) -> None:
    """What is cut over one dimension of the mesh and copied over the other, or copied over both."""
    for placements in ([Replicate(), Shard(0)], [Replicate(), Replicate()]):
        q = nn.Parameter(torch.ones(40, 256))
        p = nn.Parameter(distribute_tensor(q.detach(), mesh, placements))
        q.grad = drawn((40, 256), 0, torch.float32)
        p.grad = distribute_tensor(q.grad, mesh, placements)
        sharded, alone = AdamW8bit([p]), AdamW8bit([q])
        sharded.step()
        alone.step()
        assert torch.equal(p.detach().full_tensor(), q.detach())
        for name, value in alone.state[q].items():
            ours = sharded.state[p][name]
            assert ours == value if name == "step" else torch.equal(ours.full_tensor().view(value.shape), value)


def main(rank: int, size: int, folder: Path) -> None:
    with joined(rank, size, folder):
        pairs = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "rows"))
        check_steps(pairs["rows"], AdamW8bit, torch.float32)
        check_steps(init_device_mesh("cpu", (4,)), Adam8bit, torch.bfloat16)
        check_refusals(pairs["rows"])
        check_copies(pairs)
        (folder / f"passed-{rank}").touch()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
