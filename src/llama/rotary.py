"""Rotary position embedding: turn each pair of a query or key by an angle proportional to its position.

    f(x, m) = R^d_{Θ,m} x,    θ_i = θ^{−2(i−1)/d},  i = 1 … d/2    (RoFormer, arXiv 2104.09864, eq. 14 and 15)

R is block-diagonal with the 2×2 rotations by m·θ_i on the pairs (x_{2i−1}, x_{2i}): neighbours, "interleaved". As
R_mᵀ R_n = R_{n−m}, the product of a rotated query and a rotated key knows only the distance between them.

Hugging Face's checkpoints pair x_i with x_{i+d/2} instead ("half-rotated") and reorder the rows of the projections to
match. In memory this project keeps the paper's layout, which is also Meta's; `hf_row_order` is the bridge.

Letters: B batch, T positions, H heads, D head size.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from native import elementwise


def rotary_frequencies(head_dim: int, theta: float, device: torch.device | str | None = None) -> Tensor:
    """θ_i for i = 1 … D/2, in radians per position, float32.

    >>> rotary_frequencies(4, 10_000.0)
    tensor([1.0000, 0.0100])
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    return theta**-exponents


def rotary_matrix_reference(position: int, head_dim: int, theta: float) -> Tensor:
    """R^d_{Θ,m} of eq. 15 as a (D, D) matrix in float64: what `rotate` must equal.

    >>> rotary_matrix_reference(1, 2, 10_000.0).round(decimals=4).tolist()
    [[0.5403, -0.8415], [0.8415, 0.5403]]
    """
    matrix = torch.zeros(head_dim, head_dim, dtype=torch.float64)
    for i in range(head_dim // 2):
        angle = torch.tensor(position * theta ** (-2 * i / head_dim), dtype=torch.float64)
        cos, sin = torch.cos(angle), torch.sin(angle)
        matrix[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = torch.stack([cos, -sin, sin, cos]).view(2, 2)
    return matrix


def rotary_table(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos(m·θ_i) and sin(m·θ_i) for each position m, computed once per forward pass and shared by all layers.

    Angles are float32: at position 2047 bf16 would be off by whole turns.

    Args:
        positions: (T,) or (B, T) int64. Any order, gaps and repeats included.

    Returns:
        cos, sin: each (T, 1, D/2) or (B, T, 1, D/2) float32; the 1 spans the heads.
    """
    angles = positions.unsqueeze(-1).float() * rotary_frequencies(head_dim, theta, positions.device)
    return angles.cos().unsqueeze(-2), angles.sin().unsqueeze(-2)


def rotate_plain(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotate` by PyTorch's operators. Arguments and result as there."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)  # (B, T, H, D/2) each
    turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
    return turned.flatten(-2).type_as(x)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """R^d_{Θ,m} x for every position and head: the sparse product of RoFormer's eq. 34. Differentiable in x.

    A gradient is turned back, R^d_{Θ,m}ᵀ = R^d_{Θ,−m}: nothing but the table is kept for it.

    Args:
        x: (B, T, H, D) queries or keys.
        cos, sin: from `rotary_table`.

    Returns:
        (B, T, H, D) in x's dtype, computed in float32.
    """
    if torch.compiler.is_compiling():
        return rotate_plain(x, cos, sin)  # to be fused
    return _Rotation.apply(x, cos, sin)


class _Rotation(torch.autograd.Function):
    """Keeps cos and sin only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        fast = elementwise.rotate_pairs(x, cos, sin, sign=1)
        return rotate_plain(x, cos, sin) if fast is None else fast

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        fast = elementwise.rotate_pairs(dy, cos, sin, sign=-1)
        return rotate_plain(dy, cos, -sin) if fast is None else fast, None, None


def hf_row_order(n_heads: int, head_dim: int) -> Tensor:
    """The order in which Hugging Face stores a query or key projection's rows: `hf_weight = meta_weight[order]`.

    Within each head, the first elements of all pairs, then the second ones. Inverse: `hf_weight[order.argsort()]`.

    >>> hf_row_order(2, 4).tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    rows = torch.arange(n_heads * head_dim, device="cpu")
    return rows.view(n_heads, head_dim // 2, 2).transpose(1, 2).reshape(-1)
