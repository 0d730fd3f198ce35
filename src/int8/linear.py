"""Int8Linear: a frozen linear layer that holds its weight as int8 codes and multiplies by LLM.int8().

    y = x Ŵ + b,    Ŵᵀ = weight_codes · weight_absmax / 127            (arXiv 2208.07339; see int8/matmul.py)

One byte per weight and four per output feature, so 7B parameters take 7 GB. The codes are plain named buffers: they
appear in `state_dict`, travel through safetensors, and are nothing special to distributed code.

A single row of float32 or bfloat16 on a CPU takes another product where there is a C compiler, weight-only: the weight
stays in 8 bits, the input keeps 16 (`native/rows.py`). It is closer to x Ŵ and needs no outliers.

A frozen weight is a fact, not a preference. Nothing here changes its value: not `.train()` or `.eval()`, and no cast
either. `.half()`, `.to(torch.bfloat16)` and the like leave all buffers as they are (a rounded absmax would scale a
whole row of the weight differently); the layer computes in whatever dtype its input has.
"""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from int8.gradient import Backward
from int8.matmul import int8_matmul
from int8.quantize import INT8_MAX, SMALLEST_ABSMAX, THRESHOLD, dequantize_rowwise
from native import RowMatrix, advise_huge_pages, single_row_product

# A weight is quantized this many elements at a time: temporaries stay at a few MB while a checkpoint streams in.
QUANTIZE_ELEMENTS = 2**20


class Int8Linear(nn.Module):
    """A drop-in for a frozen `nn.Linear`, made by `from_linear`; the constructor gives a zero weight to load into.

    Args:
        in_features: K.
        out_features: N.
        bias: whether there is one (kept in floating point, and frozen too).
        threshold: features of the input reaching this are multiplied in floating point; 0 disables that. Not looked at
            for a single row in C.
        backward: how the input's gradient is computed, "exact" or "fast"; see int8/gradient.py.
        device: of the buffers; "meta" gives sizes without memory.

    Buffers: weight_codes (N, K) int8, weight_absmax (N,) float32, bias (N,) or None.
    Shapes: (..., K) -> (..., N), in the input's dtype (under autocast, in autocast's).
    """

    weight_codes: Tensor
    weight_absmax: Tensor
    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = False,
        threshold: float = THRESHOLD,
        backward: Backward = "exact",
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if not threshold >= 0:
            raise ValueError(
                f"threshold must be 0 (no decomposition) or positive, got {threshold}: the paper's is {THRESHOLD}"
            )
        self.in_features = in_features
        self.out_features = out_features
        self.threshold = float(threshold)
        self.backward = backward
        codes = advise_huge_pages(torch.empty(out_features, in_features, dtype=torch.int8, device=device)).zero_()
        absmax = torch.zeros(out_features, dtype=torch.float32, device=device)
        self.register_buffer("weight_codes", codes)
        self.register_buffer("weight_absmax", absmax)
        self.register_buffer("bias", torch.zeros(out_features, device=device) if bias else None)

    @classmethod
    def from_linear(cls, linear: nn.Linear, threshold: float = THRESHOLD, backward: Backward = "exact") -> Self:
        """Quantize the weight of a linear layer, of any float dtype and on any device; the layer itself is left alone.

        Raises:
            ValueError: its weight isn't finite (no absmax could represent it).

        >>> linear = nn.Linear(3, 2, bias=False)
        >>> linear.weight.data = torch.tensor([[1.0, 0.5, -1.0], [0.25, 2.0, 4.0]])
        >>> layer = Int8Linear.from_linear(linear)
        >>> layer.weight_codes.tolist(), layer.weight_absmax.tolist()
        ([[127, 64, -127], [8, 64, 127]], [1.0, 4.0])
        """
        weight = linear.weight.detach()
        sizes = (linear.in_features, linear.out_features)
        layer = cls(*sizes, threshold=threshold, backward=backward, device=weight.device)
        if linear.bias is not None:
            layer.bias = linear.bias.detach().clone()
        if not weight.is_meta:
            _quantize_into(weight, layer.weight_codes, layer.weight_absmax)
        return layer.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        row = single_row_product(x, self)
        if row is not None:
            return row
        if torch.compiler.is_compiling() and x.numel() == self.in_features and not torch.is_grad_enabled():
            terms = x.reshape(-1).float() * self.weight_codes.float()  # weight-only; fused with its sum, never stored
            output = (terms.sum(-1) * (self.weight_absmax / INT8_MAX)).to(x.dtype).view(*x.shape[:-1], -1)
            return output if self.bias is None else output + self.bias.to(output.dtype)
        return self._product(x, None)

    def plus_product(self, x: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """x Ŵ + b + left rightᵀ: an adapter's update, added before the output is rounded (after, for one row by C).

        Shapes: x (..., K), left (..., r), right (N, r) -> (..., N), in x's dtype; differentiable in all three.
        """
        row = single_row_product(x, self)
        return self._product(x, (left, right)) if row is None else row + (left @ right.to(left.dtype).t()).to(row.dtype)

    def _product(self, x: Tensor, update: tuple[Tensor, Tensor] | None) -> Tensor:
        codes, absmax = self.weight_codes, self.weight_absmax
        output = int8_matmul(x, codes, absmax, self.threshold, backward=self.backward, update=update)
        return output if self.bias is None else output + self.bias.to(output.dtype)

    def row_matrix(self) -> RowMatrix | None:
        """What this layer multiplies a single row by; None if it adds a bias."""
        return RowMatrix(self.weight_codes, self.weight_absmax) if self.bias is None else None

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Ŵᵀ (N, K): the weight this layer stands for, as `nn.Linear` would store it."""
        return dequantize_rowwise(self.weight_codes, self.weight_absmax, dtype)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, threshold={self.threshold}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Let `.to()` and its relatives move the buffers, never cast them."""

        def move(buffer: Tensor) -> Tensor:
            moved = fn(buffer)
            return moved if moved.dtype == buffer.dtype else buffer.to(moved.device)

        return super()._apply(move, recurse)


def _quantize_into(weight: Tensor, codes: Tensor, absmax: Tensor) -> None:
    """`quantize_rowwise` of a weight (N, K), a group of rows at a time, written to codes (N, K) and absmax (N,)."""
    group = max(1, QUANTIZE_ELEMENTS // max(1, weight.shape[1]))
    # One buffer for all groups: the system maps, clears and unmaps fresh ones each time, slower than the arithmetic.
    wide = torch.promote_types(weight.dtype, torch.float32)
    buffer = torch.empty(min(group, weight.shape[0]), weight.shape[1], dtype=wide, device=weight.device)
    pieces = zip(weight.split(group), codes.split(group), absmax.split(group), strict=True)
    for rows, row_codes, row_absmax in pieces if weight.shape[1] else ():
        x = buffer[: len(rows)].copy_(rows)
        row_absmax.copy_(torch.maximum(x.amax(1), x.amin(1).neg_())).clamp_(min=SMALLEST_ABSMAX)
        row_codes.copy_(x.mul_((INT8_MAX / row_absmax)[:, None]).round_())
    if not absmax.isfinite().all():
        bad = (~absmax.isfinite()).nonzero().squeeze(1).tolist()
        raise ValueError(
            f"cannot quantize a weight with NaN or infinity, found in {len(bad)} of {weight.shape[0]} output rows "
            f"(first: {bad[0]}): the checkpoint is damaged, or the model diverged; load another one"
        )
