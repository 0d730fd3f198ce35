"""Block-wise quantization: one scale per block of B values, one byte per value.

    N_b = max |T_b|,    code_i = argmin_j |q_j − T_i / N_b|,    T_i ≈ q_{code_i} · N_b   (arXiv 2110.02861, eq. 4 and 5)

q is the dynamic map. A block of its own scale confines an outlier's damage to B − 1 neighbours. The tensor is read as a
flat sequence; the last block may be shorter. Exact consequences, each tested: a block depends on no other; quantizing
is monotone within a block; multiplying a block by a power of two multiplies its scale and leaves its codes.

Three things to know:
- A non-finite value is quantized as 0 and is left out of N_b: it harms neither its neighbours nor the scale.
- There is no code for −1: a block whose extreme is negative gets it back as −0.99296875·N_b. So a second round trip
  finds a smaller N_b, and quantizing is not idempotent in values.
- Values under the unsigned map ought to be ≥ 0; a negative one is nearest to code 0, though it counts in N_b.

Letters: N blocks, B block size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from optim8bit.dynamic_map import cached_map, carry_table, nearest_code, nearest_code_reference


def n_blocks(numel: int, block_size: int) -> int:
    """How many blocks, and so scales, `numel` values have: the quotient rounded up.

    >>> n_blocks(513, 256)
    3
    """
    return -(-numel // block_size)


@torch.no_grad()
def quantize_blockwise(x: Tensor, *, signed: bool, block_size: int = 256) -> tuple[Tensor, Tensor]:
    """Quantize x to one byte per value.

    Args:
        x: any shape, strides and floating dtype; computed in float32.
        signed: which dynamic map; the unsigned one has twice the resolution for values that are never negative.

    Returns:
        codes: uint8, in x's shape, contiguous.
        absmax: (N,) float32, the N_b.

    Raises:
        ValueError: x is not floating, or block_size < 1.

    >>> codes, absmax = quantize_blockwise(torch.tensor([0.5, -2.0, 0.0, 30.0]), signed=True, block_size=2)
    >>> codes.tolist(), absmax.tolist()
    ([201, 0, 127, 255], [2.0, 30.0])
    """
    rows = _rows(x, block_size)
    absmax = rows.abs().amax(dim=1) if rows.numel() else rows.new_zeros(0)
    unit = rows / safe_scale(absmax).unsqueeze(1)
    if not signed:
        unit = unit.clamp(min=0)
    codes = nearest_code(unit, carry_table(signed, x.device), signed)  # (N, B)
    return codes.flatten()[: x.numel()].view(x.shape), absmax


@torch.no_grad()
def dequantize_blockwise(
    codes: Tensor, absmax: Tensor, *, signed: bool, block_size: int = 256, dtype: torch.dtype = torch.float32
) -> Tensor:
    """q_code · N_b: the values that codes stand for, in codes' shape. One float32 product, then one cast to `dtype`.

    Raises:
        ValueError: codes are not uint8, or absmax does not have one entry per block.

    >>> dequantize_blockwise(torch.tensor([255, 0, 127], dtype=torch.uint8), torch.tensor([8.0]), signed=True)
    tensor([ 8.0000, -7.9437,  0.0000])
    """
    _check_codes(codes, absmax, block_size)
    values = cached_map(signed, codes.device).index_select(0, codes.flatten().int())
    scales = absmax.float().repeat_interleave(block_size)[: values.numel()]
    return (values * scales).view(codes.shape).to(dtype)


def quantize_blockwise_reference(x: Tensor, *, signed: bool, block_size: int = 256) -> tuple[Tensor, Tensor]:
    """The formula block by block: what `quantize_blockwise` must equal bit for bit."""
    _check_input(x, block_size)
    codes, absmax = [], []
    for block in x.detach().float().flatten().split(block_size):
        if block.numel() == 0:  # split yields one empty piece of an empty tensor
            break
        finite = torch.where(block.isfinite(), block, 0.0)
        scale = finite.abs().max()
        absmax.append(scale)
        unit = finite / scale if scale > 0 else finite
        codes.append(nearest_code_reference(unit, signed))
    if not absmax:
        return torch.empty_like(x, dtype=torch.uint8), x.new_zeros(0, dtype=torch.float32)
    return torch.cat(codes).view(x.shape), torch.stack(absmax)


def dequantize_blockwise_reference(
    codes: Tensor, absmax: Tensor, *, signed: bool, block_size: int = 256, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The formula value by value: what `dequantize_blockwise` must equal bit for bit."""
    values = cached_map(signed, codes.device)[codes.flatten().long()]
    block_of = torch.arange(codes.numel(), device=codes.device) // block_size
    return (values * absmax.float()[block_of]).view(codes.shape).to(dtype)


def safe_scale(absmax: Tensor) -> Tensor:
    """absmax, with 1 in place of 0: an all-zero block is divided by 1."""
    return absmax + (absmax == 0)


def _rows(x: Tensor, block_size: int) -> Tensor:
    """x as float32 blocks (N, B): the last one padded with zeros, non-finite values replaced by 0."""
    _check_input(x, block_size)
    flat = x.float().flatten().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return F.pad(flat, (0, -flat.numel() % block_size)).view(-1, block_size)


def _check_input(x: Tensor, block_size: int) -> None:
    if not x.is_floating_point():
        raise ValueError(f"cannot quantize a {x.dtype} tensor: convert it to a floating dtype first")
    if block_size < 1:
        raise ValueError(f"block_size is {block_size}: it must be at least 1 (256 is the usual size)")


def _check_codes(codes: Tensor, absmax: Tensor, block_size: int) -> None:
    if codes.dtype != torch.uint8:
        raise ValueError(f"codes are {codes.dtype}: pass the uint8 tensor that quantize_blockwise returned")
    if block_size < 1 or absmax.shape != (expected := n_blocks(codes.numel(), block_size),):
        raise ValueError(
            f"{codes.numel()} codes in blocks of {block_size} do not match absmax of shape {tuple(absmax.shape)}: "
            "pass the block_size and the absmax of the quantization" + ("" if block_size < 1 else f" ({expected},)")
        )
