"""The product of two matrices of codes, scaled back to numbers, with a thin product beside it.

    Y = (A_i8 · B_i8ᵀ) ∘ (s ⊗ t) + L · Rᵀ

s is one scale per row of A, t one per row of B. L·Rᵀ has a short inner dimension: outlier columns, a low-rank update.
All of it is float32 after the integer sums, and rounded once.

Letters: M rows of A, N rows of B, K their inner dimension, o that of the thin product.
"""

import torch
from torch import Tensor

from int8.int_mm import integer_product
from native import scale_product

Thin = tuple[Tensor, Tensor]
"""L (M, o) and R (N, o), float32."""

THIN = 64
"""A thin product of so many columns is added on the way out of the integer one; a wider one is a pass of its own."""

ROWS = 1024
"""The int32 product, four bytes per number, exists for so many rows at a time."""


def scaled_product(
    codes: Tensor, weight: Tensor, row_scale: Tensor, column_scale: Tensor | None, dtype: torch.dtype, thin: Thin | None
) -> Tensor:
    """The formula above.

    Args:
        codes, weight: A_i8 (M, K) and B_i8 (N, K), int8 with any strides.
        row_scale, column_scale: s (M,) and t (N,), float32; without t it counts as ones.
        dtype: of the result.
        thin: L and R, if there is such a product.

    Returns:
        (M, N).
    """
    output = torch.empty(codes.shape[0], weight.shape[0], dtype=dtype, device=codes.device)
    for start in range(0, codes.shape[0], ROWS):
        rows = slice(start, start + ROWS)
        product = integer_product(codes[rows], weight)  # int32
        beside = None if thin is None else (thin[0][rows], thin[1])
        is_thin = beside is None or beside[1].shape[1] <= THIN
        if is_thin and scale_product(product, row_scale[rows], column_scale, output[rows], beside):
            continue
        # int32 times float32 is float32: the cast rounds sums beyond 2^24, a relative 2^-24.
        scaled = product.float() if column_scale is None else product * column_scale
        scaled.mul_(row_scale[rows, None])
        if beside is not None:
            # In place, hence (by autocast's rules) in float32 even under autocast.
            scaled.addmm_(beside[0], beside[1].t())
        output[rows] = scaled
    return output
