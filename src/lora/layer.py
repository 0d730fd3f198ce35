"""A low-rank update beside a frozen linear layer.

    h = W₀ x + ΔW x = W₀ x + (α/r) B A x        (LoRA, arXiv 2106.09685, eq. 3 with the scale of section 4.1)

A is r×d, B is k×r, r ≪ min(d, k): instead of the d·k weights of W₀ only r·(d + k) train. With row vectors, y = xW, the
same update reads Δφ = A·B with A ∈ R^{d×r} and B ∈ R^{r×k}: these are the transposes of `lora_A` and `lora_B` here,
which keep the orientation of `nn.Linear.weight` and of PEFT's files.

At the start A is random and B zero, so that ΔW = 0. Where we differ from section 4.1: A is drawn from
U(−1/√d, 1/√d), as the authors' code and PEFT do (Kaiming's uniform with a = √5), not from a Gaussian.

Letters: B batch, T tokens, d input features, k output features, r rank.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, Self, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora.config import check_hyperparameters, lora_scaling
from lora.update import compress
from native import RowMatrix


@runtime_checkable
class AddsThinProduct(Protocol):
    """A base that adds left rightᵀ to its own product before rounding: left (..., r), right (k, r)."""

    def plus_product(self, x: Tensor, left: Tensor, right: Tensor) -> Tensor: ...


def lora_reference(
    x: Tensor, weight: Tensor, lora_A: Tensor, lora_B: Tensor, scaling: float, bias: Tensor | None = None
) -> Tensor:
    """Eq. 3 with the whole of ΔW built: what `LoraLinear` must equal without dropout.

    Args:
        x: (..., d).
        weight: W₀, (k, d).
        lora_A, lora_B: (r, d) and (k, r).
        scaling: α/r.
        bias: (k,), the base's.

    Returns:
        (..., k).

    >>> W = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> A, B = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0], [-1.0]])
    >>> lora_reference(torch.tensor([3.0, 1.0]), W, A, B, scaling=2.0)  # Ax = 5, so (3, 1) + 2·(5, −5)
    tensor([13., -9.])
    """
    delta = scaling * (lora_B @ lora_A)  # (k, d)
    h = x @ weight.T + x @ delta.T
    return h if bias is None else h + bias


class LoraLinear(nn.Module):
    """A frozen linear layer plus its trainable low-rank update.

    The base is any module with `in_features` and `out_features`, of 16 bits or 8. One that can add a thin product to
    its own before it rounds (`AddsThinProduct`) is asked to; any other is called, and B (A x) is added to its output.
    A and B are float32 on the base's device whatever the base's dtype, since an optimizer's small steps would vanish in
    bf16's 8 significant bits; casting the model to 16 bits casts the base alone. A x is computed in the activation's
    dtype, and so is B (A x), unless the base adds it. As long as B is 0 the output equals the base's, value by value.

    Args:
        base: maps (..., d) to (..., k).
        r, alpha, dropout, rslora: as in `LoraConfig`.
        generator: source of A's initial values. They are drawn on its device, by default the CPU, so that a seed gives
            the same adapter everywhere.

    Attributes:
        lora_A, lora_B: (r, d) and (k, r).
        enabled: False lets the base answer alone; see `adapters_disabled`.
        unmerged_weight: the base's own weight, kept while the update is merged into it; otherwise None.

    Raises:
        ValueError: a number is out of range, or the base is itself a LoraLinear.

    Shapes: (B, T, d) -> (B, T, k), with any number of leading dimensions.

    >>> layer = LoraLinear(nn.Linear(3, 2), r=1, alpha=2, dropout=0.0)
    >>> x = torch.ones(1, 3)
    >>> torch.equal(layer(x), layer.base(x))
    True
    """

    def __init__(
        self,
        base: nn.Module,
        r: int,
        alpha: float,
        dropout: float,
        rslora: bool = False,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_hyperparameters(r, alpha, dropout)
        if isinstance(base, LoraLinear):
            raise ValueError("the base is already a LoraLinear: give its .base, or a plain linear layer")
        if not is_linear_like(base):
            raise ValueError(f"{type(base).__name__} lacks in_features or out_features: LoRA adapts linear layers only")
        self.base = base
        self.in_features, self.out_features = features(base)
        self.r, self.alpha, self.dropout, self.rslora = r, alpha, dropout, rslora
        self.scaling = lora_scaling(r, alpha, rslora)
        self.enabled = True
        self.unmerged_weight: Tensor | None = None

        device = _device_of(base)
        initial = torch.empty(r, self.in_features, dtype=torch.float32, device=generator.device if generator else "cpu")
        nn.init.kaiming_uniform_(initial, a=math.sqrt(5), generator=generator)
        self.lora_A = nn.Parameter(initial.to(device))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, r, dtype=torch.float32, device=device))
        self.train(base.training)  # a new module starts in training mode: in a model being evaluated it would drop out

    @property
    def merged(self) -> bool:
        """Whether the update is part of the base's weight at present."""
        return self.unmerged_weight is not None

    def forward(self, x: Tensor) -> Tensor:
        """W₀ x + (α/r) B A dropout(x); just the base while merged or disabled."""
        if self.merged or not self.enabled:
            return self.base(x)
        compressed = compress(x, self.lora_A, self.scaling, self.dropout if self.training else 0.0)  # (..., r)
        if isinstance(self.base, AddsThinProduct):
            return self.base.plus_product(x, compressed, self.lora_B)
        h = self.base(x)  # (..., k)
        update = F.linear(compressed, self.lora_B.to(x.dtype))  # (..., k)
        return h + update.to(h.dtype)  # an int8 base may answer in another dtype than it was asked in

    def row_matrix(self) -> RowMatrix | None:
        """What this layer multiplies a single bfloat16 row by; None if its base does not say, or dropout is on."""
        base_matrix = getattr(self.base, "row_matrix", None)
        matrix = base_matrix() if callable(base_matrix) else None
        if not isinstance(matrix, RowMatrix) or (self.training and self.dropout):
            return None
        if self.merged or not self.enabled:
            return matrix
        lora_A, lora_B = (part.detach().to(torch.bfloat16) for part in (self.lora_A, self.lora_B))
        return replace(matrix, lora_A=lora_A, lora_B=lora_B, lora_scale=self.scaling)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Let `.to()` and its relatives move A and B, but not narrow them below float32."""

        def move(parameter: Tensor) -> Tensor:
            moved = fn(parameter)
            return moved if moved.dtype.itemsize >= torch.float32.itemsize else parameter.to(moved.device)

        if recurse:
            self.base._apply(fn)
        return super()._apply(move, recurse=False)

    def extra_repr(self) -> str:
        return f"r={self.r}, alpha={self.alpha:g}, dropout={self.dropout:g}, rslora={self.rslora}"


def is_linear_like(module: nn.Module) -> bool:
    """Whether the module says how many features it takes and gives."""
    return all(isinstance(getattr(module, name, None), int) for name in ("in_features", "out_features"))


def features(linear: nn.Module) -> tuple[int, int]:
    """(d, k) of a linear-like module."""
    return int(getattr(linear, "in_features")), int(getattr(linear, "out_features"))  # noqa: B009  (not of every Module)


def _device_of(module: nn.Module) -> torch.device:
    tensors = [*module.parameters(), *module.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")
