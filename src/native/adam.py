"""One step of Adam for many parameters in one call, moments in 8 bits or float32; adam.c.

PyTorch takes some thirty operators for a parameter with 8-bit moments, and each writes what the next one reads. Here a
block of 256 values is decoded, updated and encoded in the processor's first cache, so that memory sees each number
once: 16.06 bytes are read or written per float32 parameter. The formulas are those of `optim8bit.step`, which
says what the numbers mean; the results agree in every bit.

Letters: N blocks, B values per block.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.compiler import is_compiling

from native.library import INT, POINTER, SIZE, load_library

DTYPES = (torch.float32, torch.bfloat16)

MAX_BLOCK = 4096
"""A block's numbers lie on the stack, five times in float32: 80 kilobytes at most."""


class AdamTensors(NamedTuple):
    """A parameter, its gradient and moments, of one shape; scales (N,) float32 if the moments are codes (uint8)."""

    weight: Tensor
    gradient: Tensor
    m: Tensor
    v: Tensor
    m_absmax: Tensor | None = None
    v_absmax: Tensor | None = None


def adam_applies(tensors: AdamTensors, block_size: int) -> bool:
    """Whether `adam_step` can take these: in the CPU's memory, in order, in dtypes that C knows; and C is there."""
    weight, gradient, m, v, *_ = tensors
    return (
        weight.is_cpu
        and weight.dtype in DTYPES
        and gradient.dtype == weight.dtype
        and m.dtype == (torch.float32 if tensors.m_absmax is None else torch.uint8)
        and weight.is_contiguous()
        and gradient.is_contiguous()
        and m.is_contiguous()
        and v.is_contiguous()
        and block_size <= MAX_BLOCK
        and not is_compiling()
        and _library() is not None
    )


def adam_step(
    parameters: Sequence[AdamTensors],
    scalars: Tensor,
    m_codec: Tensor,
    v_codec: Tensor,
    *,
    block_size: int,
    decoupled: bool,
) -> None:
    """Update weights and moments in place, in torch's threads; only where `adam_applies`.

    Args:
        scalars: (11,) float32, as `optim8bit.fast_step.Scalars` lists them.
        m_codec, v_codec: (576,) float32: values of the codes, largest number nearest to each, lines for the guess.
        decoupled: weight decay shrinks the weight instead of joining the gradient.
    """
    library = _library()
    assert library is not None
    rows, n_blocks = [], 0
    for weight, gradient, m, v, m_absmax, v_absmax in parameters:
        scales = (0, 0) if m_absmax is None or v_absmax is None else (m_absmax.data_ptr(), v_absmax.data_ptr())
        pointers = (weight.data_ptr(), gradient.data_ptr(), m.data_ptr(), v.data_ptr())
        size = weight.numel()
        rows += [*pointers, *scales, weight.dtype == torch.bfloat16, size, n_blocks]
        n_blocks += -(-size // block_size)
    table = (SIZE * len(rows))(*rows)
    tables = (scalars.data_ptr(), m_codec.data_ptr(), v_codec.data_ptr())
    library.adam_step(table, len(parameters), n_blocks, block_size, *tables, decoupled, torch.get_num_threads())
    increment_version([tensors.weight for tensors in parameters])  # autograd refuses a graph that kept the old weights


@cache
def _library() -> ctypes.CDLL | None:
    library = load_library(Path(__file__).with_suffix(".c"))
    if library is not None:
        library.adam_step.argtypes = [POINTER, SIZE, SIZE, SIZE, *[POINTER] * 3, INT, INT]
        library.adam_step.restype = None
    return library
