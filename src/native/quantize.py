"""Row-wise int8 quantization, outlier columns, decoding, the scaling of an int8 product: each in one pass.

PyTorch takes five operations for the first (magnitudes, their maximum, a product, rounding, a cast), and each writes
and reads the whole matrix. The formulas are those of `int8.quantize` and `int8.matmul`, which call these where they
apply; the results agree in every bit. None is returned where C does not apply: no compiler, another device or dtype.

Letters: M rows, K columns of the left matrix, N columns of the product.
"""

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.compiler import is_compiling

from native.library import FLOAT, INT, POINTER, SIZE, load_library

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

MAX_COLUMNS = 2**17
"""A row in float32 and the columns' maxima lie on the stack: a megabyte at most."""


def columns_reaching(x: Tensor, threshold: float) -> Tensor | None:
    """(o,) int64: the columns of x (M, K) in which some |x| is not below the threshold."""
    library = _library() if _usable(x) else None
    if library is None:
        return None
    x, reaches = x.contiguous(), torch.empty(x.shape[1], dtype=torch.bool)
    sizes = (*x.shape, TYPES[x.dtype], threshold, torch.get_num_threads())
    library.mark_columns(x.data_ptr(), reaches.data_ptr(), *sizes)
    return reaches.nonzero().squeeze(1)


def quantize_rows(
    x: Tensor, blank: Tensor | None = None, column_scale: Tensor | None = None
) -> tuple[Tensor, Tensor] | None:
    """(codes (M, K) int8, absmax (M,) float32) of x (M, K).

    Args:
        blank: (o,) int64, columns taken for zero.
        column_scale: (K,) float32, multiplied into x first, in float32.
    """
    library = _library() if _usable(x) else None
    if library is None:
        return None
    x = x.contiguous()
    codes, absmax = torch.empty(x.shape, dtype=torch.int8), torch.empty(x.shape[0], dtype=torch.float32)
    scale = None if column_scale is None else column_scale.contiguous()
    blanks = (0, 0) if blank is None else (blank.data_ptr(), blank.numel())
    library.quantize_rows(
        x.data_ptr(),
        0 if scale is None else scale.data_ptr(),
        codes.data_ptr(),
        absmax.data_ptr(),
        *x.shape,
        TYPES[x.dtype],
        *blanks,
        torch.get_num_threads(),
    )
    return codes, absmax


def scale_product(
    product: Tensor,
    row_scale: Tensor,
    column_scale: Tensor | None,
    out: Tensor,
    thin: tuple[Tensor, Tensor] | None = None,
) -> bool:
    """out (M, N) = product (M, N) int32 · column_scale (N,) · row_scale (M,), computed in float32.

    Args:
        column_scale: None for ones.
        out: float32 or bfloat16, contiguous.
        thin: (M, o) and (N, o) float32, whose product is added before the rounding.

    Returns:
        Whether C applies; if not, nothing is written.
    """
    usable = product.device.type == "cpu" and out.dtype in (torch.float32, torch.bfloat16) and not is_compiling()
    library = _library() if usable and out.is_contiguous() else None
    if library is None:
        return False
    left, right = (torch.empty(0), torch.empty(0, 0)) if thin is None else thin
    # `right` as (o, N): front to back for each row of the product
    parts = [None if x is None else x.contiguous() for x in (product, row_scale, column_scale, left, right.t())]
    pointers = [0 if part is None else part.data_ptr() for part in parts]
    sizes = (*product.shape, out.dtype == torch.bfloat16, torch.get_num_threads())
    library.scale_product(*pointers, right.shape[1], out.data_ptr(), *sizes)
    return True


def decode_columns(codes: Tensor, scale: Tensor, columns: Tensor) -> Tensor | None:
    """(N, o) float32: the columns (o,) int64 of codes (N, K) int8, each row times its scale (N,) float32."""
    usable = codes.device.type == "cpu" and codes.is_contiguous() and not is_compiling()
    library = _library() if usable else None
    if library is None:
        return None
    scale, columns = scale.contiguous(), columns.contiguous()
    y = torch.empty(codes.shape[0], columns.numel(), dtype=torch.float32)
    pointers = [tensor.data_ptr() for tensor in (codes, scale, columns, y)]
    library.decode_columns(*pointers, *codes.shape, columns.numel(), torch.get_num_threads())
    return y


def decode_slice(codes: Tensor, scale: Tensor, first: int, out: Tensor) -> bool:
    """out (N, width) float32 or bfloat16 = columns first … first + width of codes (N, K) int8, rows times scale (N,).

    Returns:
        Whether C applies; if not, nothing is written.
    """
    usable = codes.device.type == "cpu" and codes.is_contiguous() and out.is_contiguous() and not is_compiling()
    library = _library() if usable and out.dtype in (torch.float32, torch.bfloat16) else None
    if library is None:
        return False
    scale = scale.contiguous()
    pointers = [tensor.data_ptr() for tensor in (codes, scale, out)]
    sizes = (*codes.shape, first, out.shape[1], out.dtype == torch.bfloat16)
    library.decode_slice(*pointers, *sizes, torch.get_num_threads())
    return True


def _usable(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in TYPES and 0 < x.shape[1] <= MAX_COLUMNS and not is_compiling()


@cache
def _library() -> ctypes.CDLL | None:
    library = load_library(Path(__file__).with_suffix(".c"))
    if library is not None:
        library.mark_columns.argtypes = [POINTER, POINTER, SIZE, SIZE, INT, FLOAT, INT]
        library.quantize_rows.argtypes = [*[POINTER] * 4, SIZE, SIZE, INT, POINTER, SIZE, INT]
        library.scale_product.argtypes = [*[POINTER] * 5, SIZE, POINTER, SIZE, SIZE, INT, INT]
        library.decode_slice.argtypes = [*[POINTER] * 3, *[SIZE] * 4, INT, INT]
        library.decode_columns.argtypes = [POINTER, POINTER, POINTER, POINTER, SIZE, SIZE, SIZE, INT]
        for name in ("mark_columns", "quantize_rows", "scale_product", "decode_columns", "decode_slice"):
            getattr(library, name).restype = None
    return library
