"""Vector-wise absmax quantization and the search for outlier columns (arXiv 2208.07339, sections 2 and 3).

    X_i8 = round(127 · X / c),    c_i = max_j |X_ij|         one scale c_i per row        (eq. 1, one row at a time)
    X̂    = X_i8 · c / 127                                    so |X − X̂| ≤ c / 254

Why vector-wise. A product X·W needs scales that can be pulled out of the sum over its inner dimension: one per row of
X and one per column of W qualify, as (c_X)_i (c_W)_j multiplies the whole sum. A scale per *column of X* would not: it
changes inside the sum. So the finest scales an int8 product can undo are row-wise for X and column-wise for W.

`torch.nn.Linear` stores W transposed, (out, in): column-wise on the paper's W is row-wise on the stored weight.

Why outliers. A transformer beyond some 6.7B parameters has a handful of features (columns of X, at most 7 up to 13B)
whose values are about twenty times all others, in nearly every token. They enter every row's c_i, leave the other
features with a twentieth of the codes, and the model's perplexity collapses. Being few, they are multiplied in 16 bits.

Letters: n rows (tokens), d columns (features).
"""

import torch
from torch import Tensor

from native import columns_reaching, quantize_rows

INT8_MAX = 127
"""Codes are symmetric, −127…127: −128 stays unused, so that negating a value negates its code."""

SMALLEST_ABSMAX = 2.0**-119
"""Floor of the scales: an all-zero row gives zero codes, never 0/0, and 127 / absmax still fits float32 (< 2^128)."""


THRESHOLD = 6.0
"""α, from which on a feature is an outlier: enough for hardly any loss at any size (section 3.2)."""


def quantize_rowwise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Give each row the scale under which its largest entry becomes ±127.

    Args:
        x: (..., d), float.

    Returns:
        codes: (..., d) int8, within ±127; ties round to the even code.
        absmax: (...) float32, the row's max |x|, at least 2⁻¹¹⁹.

    A row that holds a NaN or an infinity has a non-finite absmax, so whatever is dequantized from it is non-finite too;
    its codes mean nothing. Other rows are not affected.

    >>> codes, absmax = quantize_rowwise(torch.tensor([[1.0, -2.0], [0.5, 0.1], [0.0, 0.0]]))
    >>> codes.tolist()
    [[64, -127], [127, 25], [0, 0]]
    >>> absmax[:2].tolist()
    [2.0, 0.5]
    """
    if x.ndim == 2 and (fast := quantize_rows(x)) is not None:
        return fast
    largest = x.abs().amax(dim=-1) if x.shape[-1] else x.new_zeros(x.shape[:-1])
    absmax = largest.float().clamp(min=SMALLEST_ABSMAX)  # clamp lets NaN pass
    # 16-bit x times a float32 scale is a float32 product: the code is rounded once from full precision.
    codes = torch.mul(x, (INT8_MAX / absmax)[..., None]).round_().to(torch.int8)
    return codes, absmax


def quantize_columnwise(x: Tensor) -> tuple[Tensor, Tensor]:
    """The same with one scale per column: x (..., d, k) -> codes (..., d, k) int8, absmax (..., k) float32.

    >>> codes, absmax = quantize_columnwise(torch.tensor([[1.0, -2.0], [0.5, 0.1]]))
    >>> codes.tolist(), absmax.tolist()
    ([[127, -127], [64, 6]], [1.0, 2.0])
    """
    codes, absmax = quantize_rowwise(x.mT)
    return codes.mT, absmax


def dequantize_rowwise(codes: Tensor, absmax: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """X̂ = codes · absmax / 127, computed in float32 and rounded once to dtype. Shapes: (..., d), (...) -> (..., d).

    >>> dequantize_rowwise(torch.tensor([[64, -127]], dtype=torch.int8), torch.tensor([2.0]))
    tensor([[ 1.0079, -2.0000]])
    """
    return codes.float().mul_((absmax / INT8_MAX)[..., None]).to(dtype)


def outlier_columns(x: Tensor, threshold: float) -> Tensor:
    """Columns in which some entry reaches the threshold: {j : max_i |x_ij| ≥ threshold}.

    Args:
        x: (..., d); all leading dimensions together are the rows.
        threshold: `THRESHOLD` in the paper; 0 means "no decomposition" and finds nothing.

    Returns:
        (o,) int64, ascending. A column that holds a NaN counts (a NaN isn't below the threshold), so with a threshold
        every non-finite value takes the 16-bit path and shows in its own row of the product. A tensor on the meta
        device has no values, hence no outliers.

    Note that the columns are chosen over all rows: what one token contains can move a column of every other token
    from 8 to 16 bits. The product changes by no more than its quantization error, but it does change.

    >>> outlier_columns(torch.tensor([[1.0, -8.0, 6.0], [2.0, 0.0, 1.0]]), threshold=6.0)
    tensor([1, 2])
    """
    if threshold == 0 or x.numel() == 0 or x.is_meta:
        return torch.empty(0, dtype=torch.int64, device=x.device)
    rows = x.reshape(-1, x.shape[-1])
    if (fast := columns_reaching(rows, threshold)) is not None:
        return fast
    largest = rows.abs().amax(dim=0)  # (d,)
    # Compared in float32: bf16 would first round the threshold.
    return (~(largest.float() < threshold)).nonzero().squeeze(1)
