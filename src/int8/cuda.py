"""LLM.int8() for a frozen weight on a GPU: two operators of PyTorch, computed by Triton kernels.

    medalpaca::int8_forward          Y = X·Ŵ + L·Rᵀ, outliers in floating point         arXiv 2208.07339, eq. 8
    medalpaca::int8_input_gradient   dX ≈ (G_i8 · W_i8ᵀ) · c_G / 127,  G = dY · diag(c_W) / 127

The formulas stand in `int8.matmul`. Registered, each is one operator to `torch.compile` and to whatever else traces,
with a shape known without running. It is opaque on purpose (`custom_op`, not `triton_op`): inside, ways to multiply are
timed against each other (`int8.launch`), which cannot be traced.

Letters: M rows, K in-features, N out-features, r rank.
"""

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.library import custom_op

from int8.int_mm import MAX_INNER, integer_backend, integer_product, without_autocast
from int8.quantize import INT8_MAX, dequantize_rowwise, outlier_columns, quantize_rowwise

MIN_CAPABILITY = (8, 0)
"""Ampere, the first with TF32 and bfloat16."""


def kernels_apply(x: Tensor, weight_codes: Tensor) -> bool:
    """Whether the kernels can multiply these: on a GPU of Ampere's generation or later, with Triton installed."""
    sizes_suit = min(weight_codes.shape) > 0 and max(weight_codes.shape) <= MAX_INNER
    return x.is_cuda and sizes_suit and _device_suits(x.device)


def product_backend(device: torch.device | str) -> str:
    """How the products of a frozen int8 weight are computed on this device, for a program to print."""
    device = torch.device(device)
    return "Triton's kernels" if device.type == "cuda" and _device_suits(device) else integer_backend(device)


@cache
def _device_suits(device: torch.device) -> bool:
    return find_spec("triton") is not None and torch.cuda.get_device_capability(device) >= MIN_CAPABILITY


# ---------------------------------------------------------------------------------------------------------------------
# By PyTorch's operators: what the kernels are tested against, and what such an operator does on another device


@custom_op("medalpaca::int8_forward", mutates_args=())
def int8_forward(
    x: Tensor,
    weight_codes: Tensor,
    weight_absmax: Tensor,
    threshold: float,
    left: Tensor | None = None,
    right: Tensor | None = None,
) -> Tensor:
    """X·Ŵ + L·Rᵀ, computed in float32 after the integer product and rounded once. Not differentiable by itself.

    Shapes: x (M, K) float, weight_codes (N, K) int8, weight_absmax (N,) float32, left (M, r) and right (N, r) float
    -> (M, N) in x's dtype.
    """
    outlier = outlier_columns(x, threshold)
    codes, absmax = quantize_rowwise(x.index_fill(1, outlier, 0))
    output = integer_product(codes, weight_codes) * (weight_absmax / INT8_MAX)
    output *= (absmax / INT8_MAX)[:, None]
    with without_autocast(x.device):
        output += x[:, outlier].float() @ dequantize_rowwise(weight_codes[:, outlier], weight_absmax).t()
        if left is not None and right is not None:
            output += left.float() @ right.float().t()
    return output.to(x.dtype)


@custom_op("medalpaca::int8_input_gradient", mutates_args=())
def int8_input_gradient(grad: Tensor, weight_codes: Tensor, weight_absmax: Tensor) -> Tensor:
    """dX of X·Ŵ with both factors in int8. Not differentiable by itself.

    Shapes: grad (M, N) float, weight_codes (N, K) int8, weight_absmax (N,) float32 -> (M, K) in grad's dtype.
    """
    codes, absmax = quantize_rowwise(grad.float() * (weight_absmax / INT8_MAX))
    output = integer_product(codes, weight_codes.t()) * (absmax / INT8_MAX)[:, None]
    return output.to(grad.dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Without running, and by kernels


@int8_forward.register_fake
def _(
    x: Tensor,
    weight_codes: Tensor,
    weight_absmax: Tensor,
    threshold: float,
    left: Tensor | None = None,
    right: Tensor | None = None,
) -> Tensor:
    return x.new_empty(x.shape[0], weight_codes.shape[0])


@int8_input_gradient.register_fake
def _(grad: Tensor, weight_codes: Tensor, weight_absmax: Tensor) -> Tensor:
    return grad.new_empty(grad.shape[0], weight_codes.shape[1])


@int8_forward.register_kernel("cuda")
def _(
    x: Tensor,
    weight_codes: Tensor,
    weight_absmax: Tensor,
    threshold: float,
    left: Tensor | None = None,
    right: Tensor | None = None,
) -> Tensor:
    from int8.launch import forward  # here, as Triton is an extra

    return forward(x, weight_codes, weight_absmax, threshold, left, right)


@int8_input_gradient.register_kernel("cuda")
def _(grad: Tensor, weight_codes: Tensor, weight_absmax: Tensor) -> Tensor:
    from int8.launch import input_gradient

    return input_gradient(grad, weight_codes, weight_absmax)
