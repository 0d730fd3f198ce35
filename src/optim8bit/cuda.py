"""The step of `optim8bit.step` as one Triton kernel for all parameters: needs a CUDA device, and Triton.

One program handles TILE blocks of one parameter. It finds them in a table of its own (parameter, first block) and the
parameter's addresses in another, so that 448 small tensors cost one launch. Memory sees, per parameter in float32:

    weight 4 + 4, gradient 4, codes 2 + 2, scales 16/256, tables 8/(256·TILE)   =  16.06 bytes    (10.06 in bfloat16)

Neighbouring threads read neighbouring numbers. The look-ups go to tables of 1 KB (values) and, of 64 KB, the 12 KB that
numbers above 2⁻²⁴ use (carries), which stay in the first cache. The host waits for nothing: learning rate and gradient
scale can be tensors on the device, and the addresses travel from pinned memory.

Every rounding is the reference's: no product is fused with a sum, divisions and square root round to the nearest. It is
tested in Triton's interpreter, and has never been timed on a GPU.

Letters: N blocks, B block size, P parameters, T programs.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from native.adam import AdamTensors
from optim8bit.dynamic_map import SIGNED_ZERO
from optim8bit.step import GRADIENT_LIMIT

TILE = 4  # blocks of 256 that a program handles: 8 numbers for each of its 128 threads
KINDS = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def adam_8bit_step_(
    parameters: Sequence[AdamTensors],
    scalars: Tensor,
    m_codec: tuple[Tensor, Tensor, Tensor],
    v_codec: tuple[Tensor, Tensor, Tensor],
    *,
    block_size: int,
    decoupled: bool,
) -> None:
    """One step in place on parameters with 8-bit moments, as `fast_step.step_`; one launch for each dtype.

    Args:
        m_codec, v_codec: as `fast_step.Codec`; the last part is not used.
    """
    by_dtype: dict[tuple[torch.dtype, torch.dtype], list[AdamTensors]] = {}
    for tensors in parameters:
        by_dtype.setdefault((tensors.weight.dtype, tensors.gradient.dtype), []).append(tensors)
    for alike in by_dtype.values():
        columns = [list(column) for column in zip(*alike, strict=True)]
        _adam_8bit_step(*columns, scalars, *m_codec[:2], *v_codec[:2], block_size, decoupled)


@torch.library.custom_op(
    "medalpaca::adam_8bit_step", mutates_args=("weights", "m_codes", "v_codes", "m_absmax", "v_absmax")
)
def _adam_8bit_step(
    weights: list[Tensor],
    gradients: list[Tensor],
    m_codes: list[Tensor],
    v_codes: list[Tensor],
    m_absmax: list[Tensor],
    v_absmax: list[Tensor],
    scalars: Tensor,
    m_values: Tensor,
    m_carries: Tensor,
    v_values: Tensor,
    v_carries: Tensor,
    block_size: int,
    decoupled: bool,
) -> None:
    device = scalars.device
    parts = zip(weights, gradients, m_codes, v_codes, m_absmax, v_absmax, strict=True)
    rows = [[*(tensor.data_ptr() for tensor in tensors), tensors[0].numel()] for tensors in parts]
    table = torch.tensor(rows, dtype=torch.int64, device="cpu")  # (P, 7)
    if device.type == "cuda":
        table = table.pin_memory().to(device, non_blocking=True)
    programs = _programs(tuple(row[-1] for row in rows), block_size, device)
    if programs.shape[0] == 0:
        return
    _kernel[(programs.shape[0],)](
        programs,
        table,
        scalars,
        m_values,
        m_carries,
        v_values,
        v_carries,
        WEIGHT=KINDS[weights[0].dtype],
        GRADIENT=KINDS[gradients[0].dtype],
        DECOUPLED=decoupled,
        BLOCK=block_size,
        WIDTH=triton.next_power_of_2(block_size),
        TILE=TILE,
        LIMIT=GRADIENT_LIMIT,
        ZERO=SIGNED_ZERO,
        num_warps=4,
        enable_fp_fusion=False,
    )


@lru_cache(maxsize=8)
def _programs(sizes: tuple[int, ...], block_size: int, device: torch.device) -> Tensor:
    """(T, 2) int32: each program's parameter and first block."""
    tiles = torch.tensor([-(-size // (block_size * TILE)) for size in sizes])
    parameter = torch.repeat_interleave(torch.arange(len(sizes)), tiles)
    first = torch.arange(len(parameter)) - (tiles.cumsum(0) - tiles)[parameter]
    return torch.stack([parameter, first * TILE], dim=1).int().to(device)


@triton.jit
def _kernel(  # type: ignore[no-untyped-def]
    programs,
    table,
    scalars,
    m_values,
    m_carries,
    v_values,
    v_carries,
    WEIGHT: tl.constexpr,
    GRADIENT: tl.constexpr,
    DECOUPLED: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    LIMIT: tl.constexpr,
    ZERO: tl.constexpr,
):
    program = tl.program_id(0)
    row = table + 7 * tl.load(programs + 2 * program)
    weight = tl.load(row).to(tl.pointer_type(WEIGHT))
    gradient = tl.load(row + 1).to(tl.pointer_type(GRADIENT))
    m_codes = tl.load(row + 2).to(tl.pointer_type(tl.uint8))
    v_codes = tl.load(row + 3).to(tl.pointer_type(tl.uint8))
    m_scales = tl.load(row + 4).to(tl.pointer_type(tl.float32))
    v_scales = tl.load(row + 5).to(tl.pointer_type(tl.float32))
    size = tl.load(row + 6)

    block = tl.load(programs + 2 * program + 1).to(tl.int64) + tl.arange(0, TILE)  # (TILE,)
    column = tl.arange(0, WIDTH)
    at = block[:, None] * BLOCK + column[None, :]  # (TILE, WIDTH)
    inside = (column[None, :] < BLOCK) & (at < size)
    exists = block * BLOCK < size

    p = tl.load(weight + at, inside, other=0.0).to(tl.float32)
    g = tl.load(gradient + at, inside, other=0.0).to(tl.float32) * tl.load(scalars + 10)
    m = _decoded(m_codes + at, inside, m_scales + block, exists, m_values)
    v = _decoded(v_codes + at, inside, v_scales + block, exists, v_values)

    if DECOUPLED:
        p = p * tl.load(scalars + 9)
    else:
        g = g + p * tl.load(scalars + 8)
    g = tl.where(tl.abs(g) < float("inf"), g, 0.0)
    g = tl.minimum(tl.maximum(g, -LIMIT), LIMIT)
    m = m * tl.load(scalars + 1) + g * tl.load(scalars + 2)
    v = v * tl.load(scalars + 3) + g * g * tl.load(scalars + 4)
    m, v = tl.where(inside, m, 0.0), tl.where(inside, v, 0.0)  # what code 0 means to m is no zero
    m_hat = tl.math.div_rn(m, tl.zeros_like(m) + tl.load(scalars + 5))
    v_hat = tl.math.div_rn(v, tl.zeros_like(v) + tl.load(scalars + 6))
    p = p - tl.math.div_rn(m_hat, tl.math.sqrt_rn(v_hat) + tl.load(scalars + 7)) * tl.load(scalars)
    tl.store(weight + at, p.to(WEIGHT), inside)

    m_absmax, v_absmax = tl.max(tl.abs(m), 1), tl.max(v, 1)
    tl.store(m_scales + block, m_absmax, exists)
    tl.store(v_scales + block, v_absmax, exists)
    rank = _rank(tl.abs(m), m_absmax, m_carries)
    code = tl.maximum(tl.where(m < 0, ZERO - rank, ZERO + rank), 0)  # there is no code for −1
    tl.store(m_codes + at, code.to(tl.uint8), inside)
    tl.store(v_codes + at, _rank(v, v_absmax, v_carries).to(tl.uint8), inside)


@triton.jit
def _decoded(codes, inside, scales, exists, values):  # type: ignore[no-untyped-def]
    """(TILE, WIDTH): what a moment's codes stand for."""
    code = tl.load(codes, inside, other=0).to(tl.int32)
    return tl.load(values + code) * tl.load(scales, exists, other=0.0)[:, None]


@triton.jit
def _rank(magnitude, absmax, carries):  # type: ignore[no-untyped-def]
    """(TILE, WIDTH) int32: how many codes above zero is the one nearest to magnitude / absmax; see dynamic_map.py."""
    scale = tl.where(absmax == 0, 1.0, absmax)
    bits = tl.math.div_rn(magnitude, tl.zeros_like(magnitude) + scale[:, None]).to(tl.int32, bitcast=True)
    return (tl.load(carries + (bits >> 16)) + (bits & 0xFFFF)) >> 16
