"""The least time a LoRA step can take on a CPU: its large matrix products, at the rate they reach by themselves.

    seconds ≥ 2T · (P / rate_forward + (P − P₀) / rate_backward)  +  S · 4CV / rate_bf16

T tokens, P weights of the blocks' linear layers (frozen: no dW), P₀ those of the first block's q, k and v, below which
nothing needs a gradient (no dX), S supervised tokens, C model width, F hidden size, V vocabulary. A rate is what a
(T, C) · (C, F) product reaches in the same run, in operations per second. Attention, the adapters, and all that is not
a product are left out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from int8 import INT8_MAX
from llama import LlamaConfig

Width = Literal["bf16", "int8"]

REPEATED = 4
"""Products in one timed work, so that it takes a while."""


@dataclass(frozen=True)
class StepProducts:
    """The products of a step.

    Attributes:
        tokens, supervised: T and S.
    """

    config: LlamaConfig
    tokens: int
    supervised: int

    @property
    def operand_bytes(self) -> int:
        """Of the works' two factors, both in bfloat16 and in int8."""
        return 3 * self.config.dim * (self.tokens + self.config.hidden_dim)

    def works(self) -> dict[Width, Callable[[], None]]:
        """Works to be timed in turns with the steps, one for each width."""
        rows, inner, columns = self.tokens, self.config.dim, self.config.hidden_dim
        x, weight = torch.randn(rows, inner).bfloat16(), torch.randn(columns, inner).bfloat16()
        x_codes, weight_codes = (torch.randint(-INT8_MAX, INT8_MAX + 1, t.shape, dtype=torch.int8) for t in (x, weight))

        def bf16() -> None:
            for _ in range(REPEATED):
                torch.mm(x, weight.t())

        def int8() -> None:
            for _ in range(REPEATED):
                torch._int_mm(x_codes, weight_codes.t())

        return {"bf16": bf16, "int8": int8}

    def least_seconds(self, forward: Width, backward: Width, measured: Mapping[str, float]) -> float:
        """`least_seconds`, for products of those widths. measured: seconds of the two works."""
        operations = REPEATED * 2 * self.tokens * self.config.dim * self.config.hidden_dim
        rates = (operations / measured[width] for width in (forward, backward, "bf16"))
        return least_seconds(self.config, self.tokens, self.supervised, *rates)


def least_seconds(
    config: LlamaConfig, tokens: int, supervised: int, forward_rate: float, backward_rate: float, bf16_rate: float
) -> float:
    """The formula, rates in operations per second."""
    weights = config.n_layers * block_weights(config)
    blocks = 2 * tokens * (weights / forward_rate + (weights - input_weights(config)) / backward_rate)
    return blocks + supervised * 4 * config.dim * config.vocab_size / bf16_rate


def block_weights(config: LlamaConfig) -> int:
    """P / n_layers: q and o, k and v, and the three matrices of the feed-forward.

    >>> 32 * block_weights(LlamaConfig.named("7B"))
    6476005376
    """
    return input_weights(config) + config.dim**2 + 3 * config.dim * config.hidden_dim


def input_weights(config: LlamaConfig) -> int:
    """P₀: q, k and v of one block.

    >>> input_weights(LlamaConfig.named("7B"))
    50331648
    """
    return config.dim**2 + 2 * config.dim * config.n_kv_heads * config.head_dim
