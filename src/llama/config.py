"""The shape of a LLaMA, and the published shapes by name.

    hidden_dim = multiple_of · ⌈ ⌊multiplier · ⌊2·4·C/3⌋⌋ / multiple_of ⌉

LLaMA (arXiv 2302.13971, section 2.2) shrinks the hidden size of the SwiGLU from 4C to 2/3·4C, so its three matrices
hold as many parameters as the two of an ordinary feed-forward layer. Table 2 there gives the shapes of 7B to 65B; those
of LLaMA-2 are from arXiv 2307.09288, that of TinyLlama from arXiv 2401.02385.
"""

import math
import sys
from dataclasses import dataclass, fields

CEILINGS = {
    "vocab_size": 2**24,
    "dim": 2**18,
    "n_layers": 1024,
    "n_heads": 2**12,
    "n_kv_heads": 2**12,
    "hidden_dim": 2**20,
    "max_seq_len": 2**31,
}
"""The largest sizes that are taken: at least eight times those of any published LLaMA (3.1's 405B has 126 blocks of
width 16,384). A shape may come from a file that nobody vouches for: the bare skeleton of 2⁶² blocks would not end."""


@dataclass(frozen=True)
class LlamaConfig:
    """Shape of a LLaMA. Field names are those of Meta's `params.json`, spelled out where it only implies them.

    Attributes:
        vocab_size: number of token ids V.
        dim: width of the residual stream C.
        n_layers: number of blocks.
        n_heads: number of query heads H; C must divide by it into an even head size.
        n_kv_heads: number of key and value heads G; each serves H / G query heads (arXiv 2305.13245).
        hidden_dim: width of the SwiGLU's hidden layer.
        norm_eps: ε under the root of RMSNorm; 1e-6 in LLaMA-1, 1e-5 in LLaMA-2.
        rope_theta: base of the rotary frequencies (RoFormer's 10000).
        max_seq_len: the context the model was trained for, in tokens.
        tie_embeddings: whether the output head shares the embedding's weight.

    Raises:
        ValueError: a size is not a whole number from 1 to its `CEILINGS`, or heads do not divide.

    >>> LlamaConfig.named("7B").hidden_dim, LlamaConfig.named("7B").n_parameters
    (11008, 6738415616)
    """

    vocab_size: int
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    hidden_dim: int
    norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    max_seq_len: int = 2048
    tie_embeddings: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            check_size(field.name, getattr(self, field.name), "LlamaConfig")
        if self.dim % self.n_heads or self.head_dim % 2:
            raise ValueError(
                f"LlamaConfig: dim = {self.dim} over n_heads = {self.n_heads} must give a whole, even head size "
                "(the rotary embedding turns pairs)"
            )
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"LlamaConfig: n_heads = {self.n_heads} must be a multiple of n_kv_heads = {self.n_kv_heads}"
            )

    @property
    def head_dim(self) -> int:
        """Size of one attention head, D = C / H."""
        return self.dim // self.n_heads

    @property
    def n_parameters(self) -> int:
        """Number of weights, a tied head counted once."""
        attention = 2 * self.dim * self.dim + 2 * self.dim * self.n_kv_heads * self.head_dim
        block = attention + 3 * self.dim * self.hidden_dim + 2 * self.dim
        embeddings = self.vocab_size * self.dim * (1 if self.tie_embeddings else 2)
        return embeddings + self.n_layers * block + self.dim

    @classmethod
    def named(cls, name: str) -> "LlamaConfig":
        """The published shape of that name; see `NAMED`.

        Raises:
            ValueError: no such name; the message lists those there are.
        """
        if name not in NAMED:
            raise ValueError(f"no LLaMA is named {name!r}; the names are {', '.join(NAMED)}")
        return NAMED[name]


def check_size(name: str, value: object, origin: str) -> None:
    """Raise a ValueError unless `value` is one that the field `name` of a `LlamaConfig` can have.

    >>> check_size("dim", 2**62, "config.json")
    Traceback (most recent call last):
    ValueError: config.json: dim = 4611686018427387904 must be a whole number from 1 to 262144
    """
    if name == "tie_embeddings":
        if not isinstance(value, bool):
            raise ValueError(f"{origin}: {name} = {value!r} must be True or False")
    elif ceiling := CEILINGS.get(name):
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= ceiling:
            raise ValueError(f"{origin}: {name} = {value!r} must be a whole number from 1 to {ceiling}")
    elif not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= sys.float_info.max:
        raise ValueError(f"{origin}: {name} = {value!r} must be positive and finite")


def swiglu_hidden_dim(dim: int, multiple_of: int, multiplier: float = 1.0) -> int:
    """The hidden size Meta's code derives from `dim`, `multiple_of` and `ffn_dim_multiplier` (formula above).

    >>> swiglu_hidden_dim(4096, 256), swiglu_hidden_dim(8192, 4096, 1.3)
    (11008, 28672)
    """
    two_thirds = int(2 * 4 * dim / 3)
    return multiple_of * math.ceil(int(multiplier * two_thirds) / multiple_of)


def _llama_1(dim: int, n_layers: int, n_heads: int) -> LlamaConfig:
    hidden_dim = swiglu_hidden_dim(dim, multiple_of=256)
    return LlamaConfig(32_000, dim, n_layers, n_heads, n_heads, hidden_dim, norm_eps=1e-6, max_seq_len=2048)


def _llama_2(dim: int, n_layers: int, n_heads: int, n_kv_heads: int, hidden_dim: int) -> LlamaConfig:
    return LlamaConfig(32_000, dim, n_layers, n_heads, n_kv_heads, hidden_dim, norm_eps=1e-5, max_seq_len=4096)


NAMED = {
    "7B": _llama_1(4096, 32, 32),
    "13B": _llama_1(5120, 40, 40),
    "33B": _llama_1(6656, 60, 52),
    "65B": _llama_1(8192, 80, 64),
    "LLaMA-2-7B": _llama_2(4096, 32, 32, 32, swiglu_hidden_dim(4096, 256)),
    "LLaMA-2-13B": _llama_2(5120, 40, 40, 40, swiglu_hidden_dim(5120, 256)),
    "LLaMA-2-70B": _llama_2(8192, 80, 64, 8, swiglu_hidden_dim(8192, 4096, 1.3)),
    "TinyLlama-1.1B": LlamaConfig(32_000, 2048, 22, 32, 4, 5632, norm_eps=1e-5, max_seq_len=2048),
}
"""The published shapes. A bare size is LLaMA-1's."""
