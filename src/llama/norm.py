"""RMSNorm: scale a vector to unit root mean square, then by a learned gain.

    ā_i = a_i / RMS(a) · g_i,    RMS(a) = √(1/n Σ a_i²)            (arXiv 1910.07467, eq. 4)

LayerNorm without its mean: nothing is subtracted and there is no bias. Every implementation adds ε under the root, so
that a zero vector stays zero. LLaMA normalises the input of each sub-layer (pre-norm) and the last block's output.

Backward, with n = a / RMS(a), a row's mean over its C elements, dg's sum over all rows:

    da = (dā∘g − n · mean(dā∘g∘n)) / RMS(a),    dg = Σ dā∘n

Only a is kept for it, in its own dtype: RMS(a) costs nothing to compute again where a is read anyway.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from native import elementwise


def rms_norm_reference(a: Tensor, gain: Tensor, eps: float) -> Tensor:
    """The formula, line for line, in the dtype given. Shapes: a (..., C), gain (C,) -> (..., C).

    >>> rms_norm_reference(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 10.0]), eps=0.0)  # RMS = √12.5
    tensor([ 0.8485, 11.3137])
    """
    mean_square = (a * a).sum(dim=-1, keepdim=True) / a.shape[-1]
    rms = torch.sqrt(mean_square + eps)
    return a / rms * gain


def rms_norm_plain(a: Tensor, gain: Tensor, eps: float) -> Tensor:
    """`rms_norm` by PyTorch's operators, which keep float32 copies of a on a CPU. Arguments and result as there."""
    return F.rms_norm(a, a.shape[-1:], eps=eps).type_as(a) * gain  # autocast would make the quotient float32


def rms_norm(a: Tensor, gain: Tensor, eps: float) -> Tensor:
    """The formula with the rounding of LLaMA's own code; differentiable in a and gain.

    The statistic and the quotient are float32 even where the input has 16 bits (a bf16 sum of 4096 squares has 2 or 3
    digits left); the quotient is rounded back to the input's dtype and only then multiplied by the gain.

    Shapes: a (..., C), gain (C,) -> (..., C), in a's dtype (promoted with the gain's, as by any product).
    """
    if torch.compiler.is_compiling():
        return rms_norm_plain(a, gain, eps)  # to be fused
    return _RMSNorm.apply(a, gain, eps)


class _RMSNorm(torch.autograd.Function):
    """Keeps a and the gain; RMS(a) is computed again."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, gain: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(a, gain)
        ctx.eps = eps
        fast = elementwise.rms_norm(a, gain, eps)
        return rms_norm_plain(a, gain, eps) if fast is None else fast

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (a, gain), needed = ctx.saved_tensors, ctx.needs_input_grad[:2]
        fast = elementwise.rms_norm_backward(dy, a, gain, ctx.eps, train_gain=needed[1])
        if fast is not None:
            return *fast, None
        a, gain = (x.detach().requires_grad_(need) for x, need in zip((a, gain), needed, strict=True))
        with torch.enable_grad():
            y = rms_norm_plain(a, gain, ctx.eps)
        y.backward(dy)
        return a.grad, gain.grad, None


class RMSNorm(nn.Module):
    """RMSNorm over the last dimension; see `rms_norm`.

    Args:
        dim: size C of the last dimension.
        eps: ε under the root.

    Shapes: (..., C) -> (..., C).
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, a: Tensor) -> Tensor:
        return rms_norm(a, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"
