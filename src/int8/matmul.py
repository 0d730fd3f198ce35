"""LLM.int8(): a matrix product in 8 bits that loses next to nothing (arXiv 2208.07339, section 3).

The formula, for activations X (n×d), a weight W (d×k) and a threshold α (6.0):

    outliers   the columns j of X with any |x_ij| ≥ α                       few: at most 7 of some 5,000 up to 13B
    split      X = [R | O],   W = [W_R ; W_O]                               R the regular columns, O the outliers
    quantize   R_i8 = round(127·R / c_R),   W_i8 = round(127·W_R / c_W)     c_R: absmax of each row of R,
                                                                            c_W: absmax of each column of W_R
    multiply   V_i32 = R_i8 · W_i8                                          summed in int32: no rounding at all
    scale      V = V_i32 · (c_R ⊗ c_W) / 127²                               ⊗ the outer product
    add        XW ≈ V + O · W_O                                             eq. 8

So information is lost in two places only, the two calls to round; the sum between them and the scales is exact. With
x̂ = x + δ, |δ| ≤ c_R/254, and ŵ = w + ε, |ε| ≤ c_W/254, the error of one output is Σ (x ε + δ ŵ), hence at most

    |error_ij| ≤ (c_W)_j / 254 · Σ_regular |x_ik|  +  (c_R)_i / 254 · Σ_regular |ŵ_kj|

which is the whole case for the decomposition: one outlier of 60 in a row whose other entries reach 3 makes c_R, and
with it the second term, twenty times larger *for every output of that row*.

Two users, two variants:

`int8_matmul`            A frozen weight that exists only as codes (the base under an adapter). The codes were made
                         before any X was seen, so c_W runs over all of W instead of W_R, and W_O is decoded from its
                         codes. The bound's first sum then runs over the outlier columns as well.
`int8_linear_trainable`  A 16-bit weight that is being trained, quantized anew in each forward pass: the formula as
                         printed.

Gradients. Rounding has derivative zero almost everywhere, so it is passed straight through, as if it were the
identity: backward is that of Y = X·Ŵ, with Ŵ the weight that the forward pass stands for.

    dX = dY · Ŵᵀ     Ŵ decoded from the codes (frozen), or the 16-bit weight itself (trainable); outliers no exception
    dW = Xᵀ · dY     trainable only, in 16 bits and from the unquantized X

The first line, for a frozen weight, comes in two ways, "exact" and "fast": `int8/gradient.py`.

Mind the second line if it is ever to be done in int8: its sum runs over the n rows, so the scales that can be pulled
out are one per *column* of X and one per *column* of dY. bitsandbytes (0.50, `MatMul8bitLt.backward`) multiplies the
codes of a *row-wise* quantized dY, then scales by its column-wise absmax: `test_matmul_gradients.py` shows what comes
out of that.

Where we differ from the paper: everything after the int32 sum is float32, rounded to the activations' dtype once (the
paper rounds V and O·W_O to fp16 and adds those). From bitsandbytes: activations keep their dtype (it casts to fp16), an
outlier column leaves c_R entirely (there, its entries below the threshold still count), a row of zeros is no 0/0.

An adapter's update is a thin product beside the large one, as that of the outlier columns is: Y = X·Ŵ + L·Rᵀ. Both are
added to the scaled integers before the one rounding.

Letters: M rows (all leading dimensions of X), K = d in-features, N = k out-features, o outlier columns, r rank.

Storage. W and Ŵ are (d, k) = (K, N) here and in every docstring below. What the functions take is stored as
`torch.nn.Linear` stores it, transposed: `weight` is Wᵀ, (N, K); `weight_codes` and `weight_absmax` make Ŵᵀ, (N, K). So
W_i8 is `weight_codes.T`, and where a formula has dY · Wᵀ the code has `grad @ weight`.
"""

from typing import Any, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from int8.cuda import int8_forward, kernels_apply
from int8.gradient import Backward, input_gradient, product_dtype
from int8.int_mm import MAX_INNER, without_autocast
from int8.quantize import INT8_MAX, dequantize_rowwise, outlier_columns, quantize_columnwise, quantize_rowwise
from int8.scaled import Thin, scaled_product
from native import decode_columns, quantize_rows

ACTIVATION_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


# ---------------------------------------------------------------------------------------------------------------------
# The formulas, line for line


def int8_linear_trainable_reference(x: Tensor, weight: Tensor, threshold: float) -> Tensor:
    """The formula above as printed. Shapes: x (..., K), weight = Wᵀ (N, K), float -> (..., N) in x's dtype."""
    X, W = _as_matrix(x).float(), weight.float().T
    outlier = outlier_columns(X, threshold)
    regular = _complement(outlier, X.shape[1])

    R, O = X[:, regular], X[:, outlier]  # noqa: E741
    W_R, W_O = W[regular], W[outlier]
    R_i8, c_R = quantize_rowwise(R)
    W_i8, c_W = quantize_columnwise(W_R)
    V_i32 = (R_i8.double() @ W_i8.double()).to(torch.int32)  # float64 holds every one of these sums exactly
    V = V_i32 * torch.outer(c_R, c_W) / INT8_MAX**2
    return (V + O @ W_O).to(x.dtype).reshape(*x.shape[:-1], weight.shape[0])


def int8_matmul_reference(x: Tensor, weight_codes: Tensor, weight_absmax: Tensor, threshold: float) -> Tensor:
    """The formula for a weight that exists only as codes. Arguments and result as for `int8_matmul`."""
    X = _as_matrix(x).float()
    outlier = outlier_columns(X, threshold)
    regular = _complement(outlier, X.shape[1])

    R, O = X[:, regular], X[:, outlier]  # noqa: E741
    W_i8, c_W = weight_codes.T, weight_absmax
    W_O = W_i8[outlier] * c_W / INT8_MAX
    R_i8, c_R = quantize_rowwise(R)
    V_i32 = (R_i8.double() @ W_i8[regular].double()).to(torch.int32)
    V = V_i32 * torch.outer(c_R, c_W) / INT8_MAX**2
    return (V + O @ W_O).to(x.dtype).reshape(*x.shape[:-1], weight_codes.shape[0])


def _as_matrix(x: Tensor) -> Tensor:
    """(..., d) -> (M, d), however many rows, none included."""
    return x.reshape(x.shape[:-1].numel(), x.shape[-1])


def _complement(columns: Tensor, size: int) -> Tensor:
    """The columns of range(size) that are not in `columns`."""
    keep = torch.ones(size, dtype=torch.bool, device=columns.device)
    keep[columns] = False
    return keep.nonzero().squeeze(1)


# ---------------------------------------------------------------------------------------------------------------------
# The same, fast and differentiable


def int8_matmul(
    x: Tensor,
    weight_codes: Tensor,
    weight_absmax: Tensor,
    threshold: float,
    *,
    backward: Backward = "exact",
    update: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """X·Ŵ for a frozen weight stored as the codes of Ŵᵀ, plus L·Rᵀ if asked for; differentiable in X, L and R.

    Args:
        x: (..., K) float32, bfloat16 or float16. Under autocast it is cast as `nn.Linear` would cast it.
        weight_codes: (N, K) int8, the transpose of W_i8.
        weight_absmax: (N,) float32, c_W: one scale per row of the codes, Ŵᵀ = weight_codes · weight_absmax / 127.
        threshold: columns of x that reach it are multiplied in floating point; 0 disables that.
        backward: how dX is computed, "exact" or "fast".
        update: L (..., r) and R (N, r), float; multiplied in float32.

    Returns:
        (..., N) in x's dtype. A row of x that holds a NaN or an infinity gives a row without a finite number in it
        (an infinity may meet a weight of zero, which makes NaN); other rows are not affected.

    Raises:
        ValueError: shapes or dtypes don't fit, the threshold is negative or NaN, or K exceeds 133,144.

    >>> codes, absmax = quantize_rowwise(torch.tensor([[1.0, 0.5, -1.0], [0.25, 2.0, 4.0]]))
    >>> x = torch.tensor([[1.0, -2.0, 20.0], [0.5, 1.0, 4.0]])  # the last column is an outlier
    >>> int8_matmul(x, codes, absmax, threshold=6.0)  # exact product: [[-20, 76.25], [-3, 18.125]]
    tensor([[-20.0000,  76.2225],
            [ -2.9921,  18.1427]])
    """
    (x,) = _autocast(x)
    _check_activations(x, weight_codes, threshold)
    if weight_codes.dtype != torch.int8 or weight_absmax.dtype != torch.float32:
        raise ValueError(
            f"weight_codes must be int8 and weight_absmax float32, got {weight_codes.dtype} and {weight_absmax.dtype}: "
            "quantize the weight with quantize_rowwise, and do not cast what it returns"
        )
    if weight_absmax.shape != weight_codes.shape[:1]:
        raise ValueError(
            f"weight_absmax must hold one scale per row of weight_codes {tuple(weight_codes.shape)}, "
            f"got shape {tuple(weight_absmax.shape)}"
        )
    if backward not in get_args(Backward):
        raise ValueError(f"backward is {backward!r}: it must be one of {', '.join(get_args(Backward))}")
    if backward == "fast" and weight_codes.shape[0] > MAX_INNER:
        raise ValueError(
            f"the fast backward pass would sum over {weight_codes.shape[0]} out-features, more than {MAX_INNER}, where "
            "int32 could overflow: set backward to exact"
        )
    left, right = (None, None) if update is None else update
    return _FrozenInt8Matmul.apply(x, weight_codes, weight_absmax, float(threshold), backward, left, right)


def int8_linear_trainable(x: Tensor, weight: Tensor, threshold: float) -> Tensor:
    """XW in 8 bits for a float weight, stored as Wᵀ, that is being trained; differentiable in both.

    Args:
        x: (..., K) float32, bfloat16 or float16.
        weight: Wᵀ, (N, K), in x's dtype. Under autocast both are cast, so that a float32 master weight fits any x.
        threshold: as for `int8_matmul`.

    Returns:
        (..., N) in x's dtype.

    Raises:
        ValueError: as for `int8_matmul`, or the two dtypes differ.

    >>> weight = torch.tensor([[1.0, 0.5, -1.0]], requires_grad=True)
    >>> y = int8_linear_trainable(torch.tensor([[1.0, -2.0, 20.0]]), weight, threshold=6.0)
    >>> y.sum().backward()
    >>> weight.grad  # (dW)ᵀ, dW = Xᵀ · dY from the X that was given, not from its codes
    tensor([[ 1., -2., 20.]])
    """
    x, weight = _autocast(x, weight)
    _check_activations(x, weight, threshold)
    if weight.dtype != x.dtype:
        raise ValueError(f"weight is {weight.dtype} but x is {x.dtype}: cast one of them, or run under torch.autocast")
    return _TrainableInt8Matmul.apply(x, weight, float(threshold))


def _decomposed_product(
    x: Tensor, weight_codes: Tensor, weight_absmax: Tensor, outlier: Tensor, weight_outlier: Tensor, update: Thin | None
) -> Tensor:
    """V + O·W_O + L·Rᵀ. Shapes: x (M, K), codes (N, K), absmax (N,), outlier (o,), W_Oᵀ (N, o) float32 -> (M, N).

    Outlier columns are blanked instead of cut out: a zero code adds nothing to the integer sum, and the weight's codes
    stay whole.
    """
    has_outliers = outlier.numel() > 0
    x_codes, x_absmax = _quantize_without(x, outlier) if has_outliers else quantize_rowwise(x)
    thin = [(x.index_select(1, outlier), weight_outlier)] if has_outliers else []
    thin += [] if update is None else [update]
    beside = None
    if thin:
        left, right = (torch.cat([factor.float() for factor in side], dim=1) for side in zip(*thin, strict=True))
        beside = (left, right)
    scales = (x_absmax / INT8_MAX, weight_absmax / INT8_MAX)
    return scaled_product(x_codes, weight_codes, *scales, x.dtype, beside)


def _quantize_without(x: Tensor, outlier: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and scales of x with its outlier columns taken for zero."""
    fast = quantize_rows(x, outlier)
    return quantize_rowwise(x.index_fill(1, outlier, 0)) if fast is None else fast


def _decode_columns(weight_codes: Tensor, weight_absmax: Tensor, columns: Tensor) -> Tensor:
    """Those columns of Ŵᵀ, in float32."""
    fast = decode_columns(weight_codes, weight_absmax / INT8_MAX, columns)
    return dequantize_rowwise(weight_codes.index_select(1, columns), weight_absmax) if fast is None else fast


class _FrozenInt8Matmul(torch.autograd.Function):
    """Keeps no activation but L for the backward pass: dX needs only the weight."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight_codes: Tensor,
        weight_absmax: Tensor,
        threshold: float,
        backward: Backward,
        left: Tensor | None,
        right: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(weight_codes, weight_absmax, left, right)
        ctx.mode = backward
        rows = _as_matrix(x)  # (M, K)
        update = None if left is None or right is None else (_as_matrix(left), right)
        if kernels_apply(rows, weight_codes):
            output = int8_forward(rows, weight_codes, weight_absmax, threshold, *(update or (None, None)))
            return output.view(*x.shape[:-1], weight_codes.shape[0])
        outlier = outlier_columns(rows, threshold)
        weight_outlier = _decode_columns(weight_codes, weight_absmax, outlier)  # W_Oᵀ (N, o)
        output = _decomposed_product(rows, weight_codes, weight_absmax, outlier, weight_outlier, update)
        return output.view(*x.shape[:-1], weight_codes.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight_codes, weight_absmax, left, right = ctx.saved_tensors
        grad_x = grad_left = grad_right = None
        rows = _as_matrix(grad)  # (M, N)
        with without_autocast(grad.device):
            if ctx.needs_input_grad[0]:
                inner = weight_codes.shape[1]
                grad_x = input_gradient(rows, weight_codes, weight_absmax, ctx.mode).view(*grad.shape[:-1], inner)
            rows = rows.to(product_dtype(grad))
            if ctx.needs_input_grad[5]:
                grad_left = (rows @ right.to(rows.dtype)).to(left.dtype).view_as(left)  # dY · R
            if ctx.needs_input_grad[6]:
                grad_right = (rows.t() @ _as_matrix(left).to(rows.dtype)).to(right.dtype)  # dYᵀ · L
        return grad_x, None, None, None, None, grad_left, grad_right


class _TrainableInt8Matmul(torch.autograd.Function):
    """Keeps X and W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, threshold: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        rows = _as_matrix(x)  # (M, K)
        outlier = outlier_columns(rows, threshold)
        weight_codes, weight_absmax = quantize_rowwise(weight.index_fill(1, outlier, 0) if outlier.numel() else weight)
        weight_outlier = weight.index_select(1, outlier).float()  # W_Oᵀ (N, o)
        output = _decomposed_product(rows, weight_codes, weight_absmax, outlier, weight_outlier, None)
        return output.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        dtype = product_dtype(grad)
        rows = _as_matrix(grad).to(dtype)  # (M, N)
        grad_x = grad_weight = None
        with without_autocast(grad.device):  # backward may be called inside autocast, which would cast once more
            if ctx.needs_input_grad[0]:
                grad_x = (rows @ weight.to(dtype)).to(grad.dtype).view_as(x)  # dY · Wᵀ
            if ctx.needs_input_grad[1]:
                grad_weight = (rows.t() @ _as_matrix(x).to(dtype)).to(grad.dtype)  # (Xᵀ · dY)ᵀ
        return grad_x, grad_weight, None


# ---------------------------------------------------------------------------------------------------------------------
# Dtypes and the boundary


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """What `nn.Linear` does under autocast: cast the operands to its dtype, visibly to autograd."""
    device_type = tensors[0].device.type
    if not torch.amp.is_autocast_available(device_type) or not torch.is_autocast_enabled(device_type):
        return tensors
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(tensor.to(dtype) if tensor.dtype in ACTIVATION_DTYPES else tensor for tensor in tensors)


def _check_activations(x: Tensor, weight: Tensor, threshold: float) -> None:
    if x.dtype not in ACTIVATION_DTYPES:
        raise ValueError(f"activations must be float32, bfloat16 or float16, got {x.dtype}: cast them to one of these")
    if x.ndim == 0 or weight.ndim != 2 or x.shape[-1] != weight.shape[1] or weight.shape[1] == 0:
        raise ValueError(
            f"shapes {tuple(x.shape)} and {tuple(weight.shape)} do not multiply: "
            "x must be (..., K) and the weight (N, K), with at least one feature K"
        )
    if not threshold >= 0:  # NaN fails too
        raise ValueError(f"threshold must be 0 (no decomposition) or positive, got {threshold}: the paper's is 6.0")
