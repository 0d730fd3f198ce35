"""The low-rank update's two products, with dropout before the first and their gradients by hand.

    c = (α/r) · A D(x),    ΔW x = B c            D: dropout with probability p, D(x) = x ∘ mask / (1 − p)

    dB = dY cᵀ,    dc = Bᵀ dY,    dA = (α/r) · dc D(x)ᵀ,    dx = (α/r) · D(Aᵀ dc)         (one column per token)

x itself, which adapters of the same input share, is all that is kept for the backward pass: D(x) and the mask, which
autograd would keep for every adapter, are computed again from a seed.

Letters: d input features, k output features, r rank.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from native import drop


def compress(x: Tensor, lora_A: Tensor, scaling: float, p: float) -> Tensor:
    """c = (α/r) · A D(x), differentiable in x and A.

    Args:
        x: (..., d), any float dtype; the products are computed in it.
        lora_A: (r, d) float32.
        scaling: α/r.
        p: probability of dropping an element of x; 0 does not drop.

    Returns:
        (..., r) in x's dtype.
    """
    if torch.compiler.is_compiling():  # a compiler recomputes or keeps as it sees fit
        return scaling * F.linear(F.dropout(x, p), lora_A.to(x.dtype))
    seed = int(torch.randint(2**63 - 1, ())) if p else 0  # from torch's generator: reproducible, restored on resume
    return _Compress.apply(x, lora_A, scaling, p, seed)


class _Compress(torch.autograd.Function):
    """Keeps x, A and the seed. Checkpointing restores torch's generator, so that the same seed is drawn again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, lora_A: Tensor, scaling: float, p: float, seed: int) -> Tensor:
        ctx.save_for_backward(x, lora_A)
        ctx.settings = scaling, p, seed
        return scaling * F.linear(_dropped(x, p, seed), lora_A.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, lora_A = ctx.saved_tensors
        scaling, p, seed = ctx.settings
        grad = scaling * grad
        grad_x = grad_A = None
        if ctx.needs_input_grad[0]:
            # In x's dtype before it is dropped: the dtype decides who makes the mask.
            grad_x = _dropped((grad @ lora_A.to(grad.dtype)).to(x.dtype), p, seed)
        if ctx.needs_input_grad[1]:
            dropped = _dropped(x, p, seed).reshape(-1, x.shape[-1]).to(grad.dtype)  # which autocast may have changed
            grad_A = (grad.reshape(-1, grad.shape[-1]).t() @ dropped).to(lora_A.dtype)
        return grad_x, grad_A, None, None, None


def _dropped(x: Tensor, p: float, seed: int) -> Tensor:
    """D(x), the same places for the same seed; x itself without dropout."""
    if not p:
        return x
    fast = drop(x, p, seed)
    if fast is not None:
        return fast
    generator = torch.Generator(x.device).manual_seed(seed)
    mask = torch.empty(x.shape, dtype=torch.bool, device=x.device).bernoulli_(1 - p, generator=generator)
    return x * mask / (1 - p)
