"""Operands of LLM.int8() on any device, what X·Ŵ + L·Rᵀ and dY·Ŵᵀ are for them, and how far off float32 may be."""

import torch
from oracles import int8 as oracle
from torch import Tensor

from int8 import int8_matmul_reference, quantize_rowwise

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def draw(rows=24, inner=96, columns=40, *, dtype=torch.float32, outliers=6, rank=8, device="cpu") -> tuple[Tensor, ...]:
    """x with some columns twenty times the others, a weight's codes and scales, and the factors of an update."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, inner, generator=generator)
    x[:, torch.randperm(inner, generator=generator)[:outliers]] *= 20
    codes, absmax = quantize_rowwise(torch.randn(columns, inner, generator=generator) / inner**0.5)
    left, right = torch.randn(rows, rank, generator=generator), torch.randn(columns, rank, generator=generator) / 10
    tensors = (x.to(dtype), codes, absmax, left.to(dtype), right.to(dtype))
    return tuple(tensor.to(device) for tensor in tensors)


def allowed(x: Tensor, codes: Tensor, absmax: Tensor, left: Tensor, right: Tensor, threshold: float = 6.0) -> Tensor:
    """Twice what float32 arithmetic and the output's rounding may do to X·Ŵ + L·Rᵀ: here and in the reference."""
    x64, codes64, absmax64, left64, right64 = (t.double().cpu() for t in (x, codes, absmax, left, right))
    unit = torch.finfo(x.dtype).eps / 2
    product = oracle.llm_int8_frozen(x64.numpy(), codes64.T.numpy(), absmax64.numpy(), threshold)
    update = (left64 @ right64.T).abs(), left64.abs() @ right64.abs().T
    # The update's rounding, its sum of r terms, its addition to the product.
    beside = unit * update[0] + 2**-24 * ((left.shape[1] + 2) * update[1] + abs(torch.from_numpy(product.total)))
    return 2 * (torch.from_numpy(product.float32_rounding(unit)) + beside)


def expected_forward(x: Tensor, codes: Tensor, absmax: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return int8_matmul_reference(x.float(), codes, absmax, 6.0) + left.float() @ right.float().T


def expected_gradient(grad: Tensor, codes: Tensor, absmax: Tensor) -> tuple[Tensor, Tensor]:
    """dY·Ŵᵀ in float64, and how far off the rounding of G to int8 and float32 arithmetic may be."""
    G = grad.double() * absmax.double() / 127
    size = codes.double().abs()
    quantization = G.abs().amax(1, keepdim=True) / 254 * size.sum(0)
    exact = G @ codes.double()
    rounding = torch.finfo(grad.dtype).eps / 2 * exact.abs() + 8 * 2**-24 * (G.abs() @ size)
    return exact, 1.01 * (quantization + rounding)
