"""Dropout with a mask that nobody keeps: it is a function of a seed and of each element's place.

    y = x ∘ mask / (1 − p),    mask_mk = [h(seed, m, k) ≥ p · 2³²]

h gives 32 bits that look random: the place, put through multiplications and shifts (a counter-based generator, as in
Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011). The backward pass computes the same mask again.

Letters: M rows, K columns.
"""

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.compiler import is_compiling

from native.library import FLOAT, INT, POINTER, SIZE, load_library


def drop(x: Tensor, p: float, seed: int) -> Tensor | None:
    """x (..., K) float32 or bfloat16, each element zero with probability p < 1, else times 1 / (1 − p).

    Args:
        seed: 64 bits; the same seed drops the same places, whatever the threads.

    Returns:
        In x's shape and dtype; None where C does not apply.
    """
    usable = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and not is_compiling()
    library = _library() if usable and x.ndim and x.numel() else None
    if library is None:
        return None
    x = x.contiguous()
    y, columns = torch.empty_like(x), x.shape[-1]
    sizes = (x.numel() // columns, columns, x.dtype == torch.bfloat16)
    limit = min(round(p * 2**32), 2**32 - 1)
    library.drop(x.data_ptr(), y.data_ptr(), *sizes, seed, limit, 1 / (1 - p), torch.get_num_threads())
    return y


@cache
def _library() -> ctypes.CDLL | None:
    library = load_library(Path(__file__).with_suffix(".c"))
    if library is not None:
        library.drop.argtypes = [POINTER, POINTER, SIZE, SIZE, INT, ctypes.c_uint64, ctypes.c_uint32, FLOAT, INT]
        library.drop.restype = None
    return library
