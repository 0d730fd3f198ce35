"""RMSNorm: scale a vector to unit root mean square, then by a learned gain.

    ā_i = a_i / RMS(a) · g_i,    RMS(a) = √(1/n Σ a_i²)            (arXiv 1910.07467, eq. 4)

LayerNorm without its mean: nothing is subtracted and there is no bias. Every implementation adds ε under the root, so
that a zero vector stays zero. LLaMA normalises the input of each sub-layer (pre-norm) and the last block's output.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def rms_norm_reference(a: Tensor, gain: Tensor, eps: float) -> Tensor:
    """The formula, line for line, in the dtype given. Shapes: a (..., C), gain (C,) -> (..., C).

    >>> rms_norm_reference(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 10.0]), eps=0.0)  # RMS = √12.5
    tensor([ 0.8485, 11.3137])
    """
    mean_square = (a * a).sum(dim=-1, keepdim=True) / a.shape[-1]
    rms = torch.sqrt(mean_square + eps)
    return a / rms * gain


class RMSNorm(nn.Module):
    """RMSNorm over the last dimension, with the rounding of LLaMA's own code.

    The statistic and the quotient are float32 whatever the input's dtype (a bf16 sum of 4096 squares has 2 or 3 digits
    left); the quotient is rounded back to the input's dtype and only then multiplied by the gain.

    Args:
        dim: size C of the last dimension.
        eps: ε under the root.

    Shapes: (..., C) -> (..., C), in the input's dtype (promoted with the gain's, as by any product).
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, a: Tensor) -> Tensor:
        normalised = F.rms_norm(a.float(), a.shape[-1:], eps=self.eps)
        return normalised.type_as(a) * self.weight

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"
