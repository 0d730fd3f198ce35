"""SwiGLU: a feed-forward layer whose one half gates the other.

    SwiGLU(x, W, V, b, c, β) = Swish_β(xW + b) ⊗ (xV + c),    Swish_β(z) = z·σ(βz)    (arXiv 2002.05202, eq. 5)
    FFN(x) = SwiGLU(x, W₁, W₃)·W₂                                                     (eq. 6)

LLaMA takes β = 1 (SiLU) and no biases. Meta names W `w1` (gate), V `w3` (up) and the way back `w2` (down).

Backward of y = Swish(z) ⊗ u, with σ = σ(z):

    dz = dy ⊗ u ⊗ σ·(1 + z·(1 − σ)),    du = dy ⊗ zσ

Only z and u are kept for it, and Swish(z) is computed again: one of three tensors of the hidden width less.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from llama.linear import Linear
from native import elementwise


def swiglu_reference(
    x: Tensor, w: Tensor, v: Tensor, b: Tensor | float = 0.0, c: Tensor | float = 0.0, beta: float = 1.0
) -> Tensor:
    """Eq. 5 in the paper's row-vector notation. Shapes: x (..., C), w and v (C, hidden) -> (..., hidden).

    >>> swiglu_reference(torch.tensor([1.0]), torch.tensor([[2.0]]), torch.tensor([[3.0]]))  # 2·σ(2) · 3
    tensor([5.2848])
    """
    gate = x @ w + b
    swish = gate * torch.sigmoid(beta * gate)
    return swish * (x @ v + c)


def silu_product_plain(gate: Tensor, up: Tensor) -> Tensor:
    """`silu_product` by PyTorch's operators, which keep the SiLU beside its two arguments."""
    return F.silu(gate) * up


def silu_product(gate: Tensor, up: Tensor) -> Tensor:
    """SiLU(gate) ⊗ up, differentiable in both; any shape. The SiLU is rounded to the gate's dtype, then the product."""
    if torch.compiler.is_compiling():
        return silu_product_plain(gate, up)  # to be fused
    return _SiluProduct.apply(gate, up)


class _SiluProduct(torch.autograd.Function):
    """Keeps gate and up; the SiLU is computed again."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        fast = elementwise.silu_product(gate, up)
        return silu_product_plain(gate, up) if fast is None else fast

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        fast = elementwise.silu_product_backward(dy, gate, up)
        if fast is not None:
            return fast
        return torch.ops.aten.silu_backward(dy * up, gate), dy * F.silu(gate)


class SwiGLU(nn.Module):
    """LLaMA's feed-forward layer: w2(SiLU(w1 x) ⊗ w3 x). Shapes: (..., C) -> (..., C).

    Args:
        dim: width C of the residual stream.
        hidden_dim: width of the gated hidden layer.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.w1 = Linear(dim, hidden_dim)
        self.w2 = Linear(hidden_dim, dim)
        self.w3 = Linear(dim, hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(silu_product(self.w1(x), self.w3(x)))
