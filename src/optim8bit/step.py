"""One step of Adam on 8-bit moments: the formula, its reference, and the guard against underflow.

    m ← β₁ m + (1 − β₁) g        v ← β₂ v + (1 − β₂) g²              m, v dequantized, computed in float32
    p ← p − η · (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε)             with these m and v, not yet rounded again
    codes, absmax ← quantize(m, signed), quantize(v, unsigned)       (arXiv 2110.02861, §2; Adam: 1412.6980, alg. 1)

The guard. v spans the square of m's range on a map of the same seven decades: wherever |g| is below 4e-4 of its block's
largest, v rounds to 0 although m does not, and the next zero gradient divides by ε alone, a step of thousands of η. So
in the optimizer no positive v becomes code 0; it is kept at the map's smallest value. That makes v too large and the
step too small, never the reverse, and costs nothing: one other entry in the table of `nearest_code`. How long a step
can still be, and what of that is proven, is in docs/optim8bit.md.

Non-finite gradients. A NaN or ±Inf counts as a zero gradient, and a finite one is clamped to ±1.8e19 so that its square
is finite: one bad value spoils neither its element's moments nor its block's scale. It is containment, not a remedy: a
training loop ought to stop before the update.

Rounding. bf16 and fp16 parameters are updated in float32 and rounded to the nearest: a change below half a unit in the
last place (2⁻⁹ relative, in bf16) is lost. Keep float32 master weights where learning rates are that small.

Letters: N blocks (rows), B block size.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from optim8bit.blockwise import dequantize_blockwise_reference, n_blocks, quantize_blockwise_reference
from optim8bit.dynamic_map import SIGNED_ZERO

GRADIENT_LIMIT = 1.8e19  # the square root of float32's largest number, rounded down


class Moments8bit(NamedTuple):
    """Adam's two moments of one parameter: codes in its shape (uint8), scales (N,) float32."""

    m_codes: Tensor
    m_absmax: Tensor
    v_codes: Tensor
    v_absmax: Tensor

    @classmethod
    def zeros_like(cls, p: Tensor, block_size: int) -> "Moments8bit":
        def absmax() -> Tensor:
            return torch.zeros(n_blocks(p.numel(), block_size), dtype=torch.float32, device=p.device)

        m_codes = torch.full(p.shape, SIGNED_ZERO, dtype=torch.uint8, device=p.device)
        return cls(m_codes, absmax(), torch.zeros_like(m_codes), absmax())


def adam8bit_step_reference(
    p: Tensor,
    grad: Tensor,
    moments: Moments8bit,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = True,
    block_size: int = 256,
    guard: bool = True,
    gradient_scale: float = 1.0,
) -> tuple[Tensor, Moments8bit]:
    """The formula, line by line. Returns the new parameter, in p's dtype, and the new moments; changes nothing.

    Args:
        step: t, counted from 1.
        decoupled: weight decay shrinks p (AdamW) instead of adding λp to the gradient (L2).
        guard: False lets v underflow, as the plain quantizer does.
        gradient_scale: a factor of the gradient, such as clipping's.
    """
    beta1, beta2 = betas
    dtype, p, g = p.dtype, p.float(), grad.float() * gradient_scale
    if decoupled:
        p = p * (1 - lr * weight_decay)
    else:
        g = g + weight_decay * p
    g = torch.where(g.isfinite(), g, 0.0).clamp(-GRADIENT_LIMIT, GRADIENT_LIMIT)

    m = dequantize_blockwise_reference(moments.m_codes, moments.m_absmax, signed=True, block_size=block_size)
    v = dequantize_blockwise_reference(moments.v_codes, moments.v_absmax, signed=False, block_size=block_size)
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * (g * g)
    m_hat = m / (1 - beta1**step)
    v_hat = v / (1 - beta2**step)
    root = v_hat.double().sqrt().float()  # rounded to the nearest: a vector library's may be off in the last place
    p = p - lr * (m_hat / (root + eps))

    m_codes, m_absmax = quantize_blockwise_reference(m, signed=True, block_size=block_size)
    v_codes, v_absmax = quantize_blockwise_reference(v, signed=False, block_size=block_size)
    if guard:
        v_codes = torch.where(v > 0, v_codes.clamp(min=1), v_codes)
    return p.to(dtype), Moments8bit(m_codes, m_absmax, v_codes, v_absmax)
