"""dX = dY · Ŵᵀ of a frozen weight that exists only as codes: exact in dY's dtype, or fast in 8 bits.

    "exact"   decode Ŵ a slice at a time, multiply in dY's dtype
    "fast"    G = dY · diag(c_W) / 127,    dX ≈ (G_i8 · W_i8ᵀ) · c_G / 127

In Ŵᵀ = diag(c_W) · W_i8ᵀ / 127 the scales stand on the side of the inner dimension, so they cannot be pulled out of
the sum, but they can be pushed into dY before its rows are quantized; then the codes serve as they are, and no scale of
theirs has to be undone. The one error is that of G's rounding, noise of about 1 % of dX:

    |error_ik| ≤ (c_G)_i / 254 · Σ_n |W_i8|_kn

SwitchBack (arXiv 2304.13013, section 2.2) trains with such gradients: int8 forward and for dX, 16 bits for dW. Beside a
frozen weight there is no dW. What it does to a loss curve is in docs/speed.md.

Letters and storage as in int8/matmul.py: M rows, K in-features, N out-features; `weight_codes` is W_i8ᵀ, (N, K).
"""

from typing import Literal

import torch
from torch import Tensor

from int8.cuda import int8_input_gradient, kernels_apply
from int8.quantize import INT8_MAX, quantize_rowwise
from int8.scaled import scaled_product
from native import decode_slice, quantize_rows

Backward = Literal["exact", "fast"]

DECODE_ELEMENTS = 2**22
"""The exact way decodes the weight in slices of this many elements (8 MB of bf16): long enough for an efficient
product, and never the whole weight, which would cost the memory that int8 has saved."""


def input_gradient_reference(grad: Tensor, weight_codes: Tensor, weight_absmax: Tensor, backward: Backward) -> Tensor:
    """dX for a frozen weight. Shapes: grad (M, N), codes (N, K), absmax (N,) -> (M, K) in grad's dtype."""
    W_i8, c_W = weight_codes.T, weight_absmax
    if backward == "exact":
        W = W_i8 * c_W / INT8_MAX
        return (grad.float() @ W.T).to(grad.dtype)
    G = grad.float() * c_W / INT8_MAX
    G_i8, c_G = quantize_rowwise(G)
    V_i32 = (G_i8.double() @ W_i8.T.double()).to(torch.int32)
    return (V_i32 * c_G[:, None] / INT8_MAX).to(grad.dtype)


def input_gradient(grad: Tensor, weight_codes: Tensor, weight_absmax: Tensor, backward: Backward) -> Tensor:
    """dX = dY · Ŵᵀ for a frozen weight. Shapes: grad (M, N), codes (N, K), absmax (N,) -> (M, K) in grad's dtype."""
    if backward == "exact":
        return _times_decoded(grad, weight_codes, weight_absmax)
    if kernels_apply(grad, weight_codes):
        return int8_input_gradient(grad, weight_codes, weight_absmax)
    scale = weight_absmax / INT8_MAX
    fast = quantize_rows(grad, column_scale=scale)
    codes, absmax = quantize_rowwise(grad.float() * scale) if fast is None else fast  # G_i8, c_G
    return scaled_product(codes, weight_codes.t(), absmax / INT8_MAX, None, grad.dtype, None)


def _times_decoded(grad: Tensor, weight_codes: Tensor, weight_absmax: Tensor) -> Tensor:
    """dY · Ŵᵀ with Ŵᵀ = dequantize_rowwise(codes, absmax, dY's dtype), the stored matrix, a slice at a time.

    The slices are columns of Ŵᵀ, and each gives its own columns of dX: the result is that of one product, without ever
    holding the float weight.
    """
    (columns, inner), dtype = weight_codes.shape, product_dtype(grad)
    grad, to = grad.to(dtype), grad.dtype
    grad_x = torch.empty(grad.shape[0], inner, dtype=dtype, device=grad.device)
    width = max(1, DECODE_ELEMENTS // max(1, columns))
    # One buffer for all slices: fresh memory of this size would cost more in page faults than the decoding.
    buffer = torch.empty(columns * min(width, inner), dtype=dtype, device=grad.device)
    scale = weight_absmax / INT8_MAX
    for start, output in zip(range(0, inner, width), grad_x.split(width, dim=1), strict=True):
        weight = buffer[: columns * output.shape[1]].view(columns, -1)
        if not decode_slice(weight_codes, scale, start, weight):
            torch.mul(weight_codes[:, start : start + width], scale[:, None], out=weight)
        torch.mm(grad, weight, out=output)
    return grad_x.to(to)


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype to multiply in: x's own, except for float16 on CPUs, which emulate it, far slower than float32."""
    return torch.float32 if x.dtype == torch.float16 and x.device.type == "cpu" else x.dtype
