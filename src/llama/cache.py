"""The keys and values of the tokens seen so far, so that each new token costs one row instead of a whole sequence.

One tensor holds the keys of all layers and one the values, allocated once. Rows may be padded on the left, so that
prompts of different lengths end at the same place: `padding` counts each row's pad positions, and attention skips them.

Letters: B batch, G key/value heads, S capacity in tokens, D head size.
"""

import torch
from torch import Tensor

from llama.config import LlamaConfig


class KVCache:
    """Preallocated keys and values, 2 · n_layers · B · G · S · D elements.

    Args:
        config: shape of the model it serves.
        batch_size: rows B.
        max_len: capacity S in tokens, padding included.
        dtype, device: of the stored keys and values.
        padding: (B,) int64, left-pad positions of each row; None means none.

    Attributes:
        length: tokens stored so far, in every row.
    """

    def __init__(
        self,
        config: LlamaConfig,
        batch_size: int,
        max_len: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        padding: Tensor | None = None,
    ) -> None:
        shape = (config.n_layers, batch_size, config.n_kv_heads, max_len, config.head_dim)
        # Zeros, not garbage: a masked position contributes 0 · value, and 0 · NaN would be NaN.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.padding = padding
        self.length = 0

    @property
    def max_len(self) -> int:
        """Capacity in tokens."""
        return self.keys.shape[3]

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store the next T tokens of one layer, (B, G, T, D) each; return all its keys and values so far.

        Raises:
            ValueError: more tokens than the cache has room for.
        """
        end = self.length + keys.shape[2]
        if end > self.max_len:
            raise ValueError(f"the cache holds {self.max_len} tokens, {end} are needed: give it a larger max_len")
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, n_tokens: int) -> None:
        """Count the tokens that every layer has now stored."""
        self.length += n_tokens

    def truncate(self, length: int) -> None:
        """Forget all tokens from `length` on."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate a cache of {self.length} tokens to {length}")
        self.length = length

    def reorder(self, rows: Tensor) -> None:
        """Let row i continue what row `rows[i]` holds (beam search). rows: int64, any number of them."""
        keys = self.keys[..., : self.length, :][:, rows]
        values = self.values[..., : self.length, :][:, rows]
        if len(rows) != self.keys.shape[1]:
            shape = (self.keys.shape[0], len(rows), *self.keys.shape[2:])
            self.keys, self.values = self.keys.new_zeros(shape), self.values.new_zeros(shape)
        self.keys[..., : self.length, :] = keys
        self.values[..., : self.length, :] = values
        if self.padding is not None:
            self.padding = self.padding[rows]
