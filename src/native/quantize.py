"""Row-wise int8 quantization, the search for outlier columns, the scaling of an int8 product: each in one pass.

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

MAX_COLUMNS = 2**18
"""A row in float32 lies on the stack: a megabyte at most."""


def columns_reaching(x: Tensor, threshold: float) -> Tensor | None:
    """(o,) int64: the columns of x (M, K) in which some |x| is not below the threshold."""
    library = _library() if _usable(x) else None
    if library is None:
        return None
    x, reaches = x.contiguous(), torch.empty(x.shape[1], dtype=torch.bool)
    sizes = (*x.shape, TYPES[x.dtype], threshold, torch.get_num_threads())
    library.mark_columns(x.data_ptr(), reaches.data_ptr(), *sizes)
    return reaches.nonzero().squeeze(1)


def quantize_rows(x: Tensor, blank: Tensor | None = None) -> tuple[Tensor, Tensor] | None:
    """(codes (M, K) int8, absmax (M,) float32) of x (M, K), with the columns `blank` (o,) int64 taken for zero."""
    library = _library() if _usable(x) else None
    if library is None:
        return None
    x = x.contiguous()
    codes, absmax = torch.empty(x.shape, dtype=torch.int8), torch.empty(x.shape[0], dtype=torch.float32)
    blanks = (0, 0) if blank is None else (blank.data_ptr(), blank.numel())
    sizes = (*x.shape, TYPES[x.dtype])
    outputs = (codes.data_ptr(), absmax.data_ptr())
    library.quantize_rows(x.data_ptr(), *outputs, *sizes, *blanks, torch.get_num_threads())
    return codes, absmax


def scale_product(
    product: Tensor,
    row_scale: Tensor,
    column_scale: Tensor,
    dtype: torch.dtype,
    outliers: tuple[Tensor, Tensor] | None = None,
) -> Tensor | None:
    """product (M, N) int32 · column_scale (N,) · row_scale (M,), computed in float32, in dtype float32 or bfloat16.

    Args:
        outliers: (M, o) and (N, o) float32, whose product is added before the rounding.
    """
    usable = product.device.type == "cpu" and dtype in (torch.float32, torch.bfloat16) and not is_compiling()
    usable = usable and product.shape[1] <= MAX_COLUMNS
    library = _library() if usable else None
    if library is None:
        return None
    product, y = product.contiguous(), torch.empty(product.shape, dtype=dtype)
    scales = (row_scale.contiguous(), column_scale.contiguous())
    left, right = (torch.empty(0), torch.empty(0, 0)) if outliers is None else outliers
    left, right = left.contiguous(), right.t().contiguous()  # (M, o), (o, N)
    pointers = [tensor.data_ptr() for tensor in (product, *scales, left, right)]
    library.scale_product(
        *pointers, right.shape[0], y.data_ptr(), *product.shape, dtype == torch.bfloat16, torch.get_num_threads()
    )
    return y


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


def _usable(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in TYPES and 0 < x.shape[1] <= MAX_COLUMNS and not is_compiling()


@cache
def _library() -> ctypes.CDLL | None:
    library = load_library(Path(__file__).with_suffix(".c"))
    if library is not None:
        library.mark_columns.argtypes = [POINTER, POINTER, SIZE, SIZE, INT, FLOAT, INT]
        library.quantize_rows.argtypes = [POINTER, POINTER, POINTER, SIZE, SIZE, INT, POINTER, SIZE, INT]
        library.scale_product.argtypes = [*[POINTER] * 5, SIZE, POINTER, SIZE, SIZE, INT, INT]
        library.decode_columns.argtypes = [POINTER, POINTER, POINTER, POINTER, SIZE, SIZE, SIZE, INT]
        functions = (library.mark_columns, library.quantize_rows, library.scale_product, library.decode_columns)
        for function in functions:
            function.restype = None
    return library
