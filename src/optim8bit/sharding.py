"""Parameters cut by rows over several processes (`DTensor`, as FSDP2 makes them): this process's part, and its blocks.

Rank k of N holds rows k·⌈R/N⌉ up to the next rank's, as `torch.chunk` cuts: the last ranks may have fewer, or none. A
step of Adam is element by element, so each rank takes it on its own rows and nothing is sent. Only a scale is shared,
by the B values of a block: a block that two ranks share would need them to agree on it. So moments are codes only where
no block is shared, and then codes and scales are those of one process, bit for bit. Elsewhere they are float32.

    parameter    (R, C)          rows k·⌈R/N⌉ ...
    codes        (R, C)          the same rows
    absmax       (R, C / B)      the same rows, where a row is whole blocks: so at any N
                 (⌈RC / B⌉,)     where ⌈R/N⌉ rows are whole blocks, as many as a rank gets of so many scales

Letters: R rows, C columns (1 in a vector), B block size, N ranks.
"""

import sys
from math import prod
from typing import Any, TypeGuard

import torch
from torch import Tensor

from optim8bit.blockwise import n_blocks


def is_sharded(tensor: object) -> TypeGuard[Any]:
    """Whether it is a DTensor. Asked without importing those, which takes a second that a single process can save."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local_part(tensor: Tensor) -> Tensor:
    """The rows that lie here, sharing memory; an ordinary tensor is its own part."""
    if not is_sharded(tensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()


def check_cut_by_rows(p: Tensor) -> None:
    """Refuse a DTensor that is cut otherwise.

    Raises:
        ValueError: it is cut along another dimension, along several mesh dimensions, or holds partial sums.
    """
    if is_sharded(p):
        _shard_dimension(p)


def own_rows(whole: Tensor, p: Tensor) -> Tensor:
    """Of a tensor with p's rows those that p has here, as a view; all of them if p is an ordinary tensor."""
    if not is_sharded(p):
        return whole
    rows, dimension = whole.shape[0], _shard_dimension(p)
    if dimension is None:
        return whole
    chunk = -(-rows // p.device_mesh.size(dimension))
    start = min(p.device_mesh.get_local_rank(dimension) * chunk, rows)
    return whole[start : start + chunk]


def with_rows_of(p: Tensor, part: Tensor, shape: tuple[int, ...]) -> Tensor:
    """This process's part of a tensor of that shape, as a tensor cut like p; the part itself if p is not cut."""
    if not is_sharded(p):
        return part
    strides = tuple(prod(shape[i + 1 :]) for i in range(len(shape)))
    return type(p).from_local(
        part, p.device_mesh, p.placements, run_check=False, shape=torch.Size(shape), stride=strides
    )


def blocks_are_whole(p: Tensor, block_size: int) -> bool:
    """Whether no block of p's values lies on two processes."""
    if not is_sharded(p) or (dimension := _shard_dimension(p)) is None or p.device_mesh.size(dimension) == 1:
        return True
    if len(scales_shape(p, block_size)) == 2:
        return True
    return cuts_between_blocks(p.shape[0], prod(p.shape[1:]), p.device_mesh.size(dimension), block_size)


def cuts_between_blocks(rows: int, columns: int, ranks: int, block_size: int) -> bool:
    """Whether ranks that share the rows, and the scales of their blocks, have the same blocks of both.

    >>> cuts_between_blocks(128, 128, 2, 256), cuts_between_blocks(40, 200, 2, 256)  # 32 blocks each; 15.6
    (True, False)
    """
    values = -(-rows // ranks) * columns
    scales = -(-n_blocks(rows * columns, block_size) // ranks)
    return values == scales * block_size


def scales_shape(p: Tensor, block_size: int) -> tuple[int, ...]:
    """The shape of p's block scales: one row for each of a sharded matrix's, so that both are cut alike; else flat."""
    if is_sharded(p) and p.ndim == 2 and p.shape[1] % block_size == 0:
        return p.shape[0], p.shape[1] // block_size
    return (n_blocks(p.numel(), block_size),)


def _shard_dimension(p: Any) -> int | None:
    """The mesh dimension over which the rows are spread; None where each process has them all."""
    cut = [i for i, placement in enumerate(p.placements) if not placement.is_replicate()]
    if len(cut) > 1 or any(not p.placements[i].is_shard(0) for i in cut):
        raise ValueError(
            f"a parameter of shape {tuple(p.shape)} is placed as {p.placements}: 8-bit Adam takes tensors cut by rows "
            "over one dimension of the mesh, as torch.distributed.fsdp.fully_shard cuts them"
        )
    return cut[0] if cut else None
