"""What an adapter is: its rank, its scale, its dropout, the modules it goes into."""

import math
import sys
from dataclasses import dataclass

from files import shown


@dataclass(frozen=True)
class LoraConfig:
    """Settings of one adapter.

    Attributes:
        r: rank of the update, the rows of A and the columns of B.
        alpha: α; the update is scaled by α/r.
        dropout: probability of zeroing an input of the adapter (never of the base) while training.
        targets: names of the linear modules to adapt: `wq`, its foreign name `q_proj`, or any longer dotted suffix of
            either (`layers.0.attention.wq`).
        rslora: scale by α/√r instead (arXiv 2312.03732), under which the update's size no longer shrinks with r.

    Raises:
        ValueError: a value is out of range, or targets is empty or a bare string.

    >>> LoraConfig(r=8, alpha=16, dropout=0.05, targets=("q_proj", "v_proj")).scaling
    2.0
    """

    r: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]
    rslora: bool = False

    def __post_init__(self) -> None:
        check_hyperparameters(self.r, self.alpha, self.dropout)
        if isinstance(self.targets, str):
            raise ValueError(f"LoRA targets must be a sequence of names, got the string {self.targets!r}: wrap it")
        if not self.targets or not all(isinstance(name, str) and name for name in self.targets):
            raise ValueError(f"LoRA targets must name at least one module, got {shown(self.targets)}: try ('wq', 'wv')")
        # A list (from JSON or TOML) would make the frozen value unhashable; a name given twice says nothing more.
        object.__setattr__(self, "targets", tuple(dict.fromkeys(self.targets)))

    @property
    def scaling(self) -> float:
        """The factor before BA."""
        return lora_scaling(self.r, self.alpha, self.rslora)


def lora_scaling(r: int, alpha: float, rslora: bool) -> float:
    """α/r, or α/√r for rsLoRA.

    >>> lora_scaling(16, 16, False), lora_scaling(16, 16, True)
    (1.0, 4.0)
    """
    return alpha / math.sqrt(r) if rslora else alpha / r


def check_hyperparameters(r: int, alpha: float, dropout: float) -> None:
    """Raise a ValueError that names whichever of an adapter's numbers is out of range."""
    if isinstance(r, bool) or not isinstance(r, int) or r < 1:
        raise ValueError(f"LoRA rank r = {shown(r)} must be a whole number from 1 up")
    if not _is_real(alpha) or not 0 < alpha <= sys.float_info.max:
        raise ValueError(f"LoRA alpha = {shown(alpha)} must be positive and finite")
    if not _is_real(dropout) or not 0 <= dropout < 1:
        raise ValueError(f"LoRA dropout = {shown(dropout)} must lie in [0, 1): at 1 the adapter would see nothing")


def _is_real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
