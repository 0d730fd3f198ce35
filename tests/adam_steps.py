"""What the tests of the 8-bit Adam step share: gradients, and the fast step with the reference's signature."""

import torch
from torch import Tensor

from native.adam import AdamTensors
from optim8bit import Moments8bit, dequantize_blockwise
from optim8bit.fast_step import scalars_at_step, step_

LR = 1e-3
OPTIONS = {"lr": LR, "betas": (0.9, 0.999), "eps": 1e-8}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fast_step(
    p: Tensor,
    grad: Tensor,
    moments: Moments8bit,
    *,
    step: int,
    weight_decay: float = 0.0,
    decoupled: bool = True,
    block_size: int = 256,
    gradient_scale: float = 1.0,
) -> tuple[Tensor, Moments8bit]:
    """The in-place step on copies, with the reference's signature."""
    p, moments = p.clone(), Moments8bit(*(t.clone() for t in moments))
    scalars = scalars_at_step(step, weight_decay=weight_decay, gradient_scale=gradient_scale, **OPTIONS)
    m_codes, m_absmax, v_codes, v_absmax = moments
    tensors = AdamTensors(p, grad.to(p.dtype), m_codes, v_codes, m_absmax, v_absmax)
    step_([tensors], scalars, decoupled=decoupled, block_size=block_size)
    return p, moments


def decoded(moments: Moments8bit, block_size: int = 256) -> tuple[Tensor, Tensor]:
    return (
        dequantize_blockwise(moments.m_codes, moments.m_absmax, signed=True, block_size=block_size),
        dequantize_blockwise(moments.v_codes, moments.v_absmax, signed=False, block_size=block_size),
    )


def uneven_gradients(shape: tuple[int, ...], steps: int) -> list[Tensor]:
    """Log-normal in scale over the elements, one in ten zero."""
    g = generator(3)
    scale = (2 * torch.randn(shape, generator=g)).exp()
    return [scale * torch.randn(shape, generator=g) * (torch.rand(shape, generator=g) > 0.1) for _ in range(steps)]
