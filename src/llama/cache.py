"""The keys and values of the tokens seen so far, so that each new token costs one row instead of a whole sequence.

One tensor holds the keys of all layers and one the values, allocated once: storing a token is two small copies per
layer. Rows may be padded on the left, so that texts of different lengths end in the same column and the next token of
each goes to the same place: `padding` counts each row's pad positions, and attention skips them.

Rows can also come and go while others are decoded (`join`, `drop`); `realign` moves all rows along the columns.

Letters: B batch, G key/value heads, S capacity in tokens, D head size.
"""

import copy

import torch
from torch import Tensor

from llama.config import LlamaConfig
from native import RowBlocks


class KVCache:
    """Preallocated keys and values, 2 · n_layers · B · G · S · D elements.

    Args:
        config: shape of the model it serves.
        batch_size: rows B.
        max_len: capacity S in tokens, padding included.
        dtype, device: of the stored keys and values.
        padding: (B,) int64, left-pad positions of each row; None means none.

    Attributes:
        length: tokens stored so far, padding included, in every row.
        rows: how many rows are in use, the first ones; all B unless rows are dropped.
        padding: (rows,) int64 or None.
        row_blocks: where native code finds this cache and the blocks that fill it; see `llama.one_token`. A cache
            belongs to the weights that filled it: after a change of these, begin a new one.
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
        self.rows = batch_size
        self.length = 0
        self.row_blocks: RowBlocks | None = None

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
        self.check_length(end)
        all_keys, all_values = self.keys[layer, : self.rows, :, :end], self.values[layer, : self.rows, :, :end]
        all_keys[:, :, self.length :] = keys
        all_values[:, :, self.length :] = values
        return all_keys, all_values

    def advance(self, n_tokens: int) -> None:
        """Count the tokens that every layer has now stored."""
        self.length += n_tokens

    def truncate(self, length: int) -> None:
        """Forget all tokens from `length` on."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate a cache of {self.length} tokens to {length}")
        self.length = length

    def reorder(self, rows: Tensor) -> None:
        """Let row i continue what row `rows[i]` holds (beam search). rows: (n,) int64, n at most the cache's B.

        Raises:
            ValueError: more rows than the cache has room for.
        """
        self._check_rows(len(rows))
        for stored in (self.keys, self.values):
            for layer in stored:
                layer[: len(rows), :, : self.length] = layer[rows, :, : self.length]
        if self.padding is not None:
            self.padding = self.padding[rows]
        self.rows = len(rows)

    def drop(self, row: int) -> None:
        """Free one row; the last one takes its place. Nothing is allocated."""
        last = self.rows - 1
        for stored in (self.keys, self.values):
            stored[:, row, :, : self.length] = stored[:, last, :, : self.length]
        if self.padding is not None:
            padding = self.padding.clone()
            padding[row] = padding[last]
            self.padding = padding[:last]
        self.rows = last

    def join(self, n_rows: int, n_tokens: int, padding: Tensor | None = None) -> "KVCache":
        """Take `n_rows` more rows into use, each about to hold its first `n_tokens` tokens.

        Args:
            padding: (n_rows,) int64, how many of the n_tokens are left padding in each.

        Returns:
            An empty cache for these rows alone, over the same memory. A forward pass with it fills them in so that they
            end where the other rows end; without that pass they hold nothing of use.

        Raises:
            ValueError: more rows or tokens than the cache has room for.
        """
        first, end = self.rows, self.rows + n_rows
        self._check_rows(end)
        if first == 0:
            self.length, self.padding = 0, None
        if n_tokens > self.length:
            self.realign(n_tokens)
        before = self.length - n_tokens
        part = copy.copy(self)
        part.row_blocks = None
        part.keys, part.values = self.keys[:, first:end, :, before:], self.values[:, first:end, :, before:]
        part.rows, part.length, part.padding = n_rows, 0, padding

        if before or padding is not None or self.padding is not None:
            new = self._no_padding(n_rows) + before if padding is None else padding + before
            old = self._no_padding(first) if self.padding is None else self.padding
            self.padding = torch.cat((old, new))
        self.rows = end
        return part

    def realign(self, length: int) -> None:
        """Move the rows along the columns, so that all of them end in column `length` instead of `self.length`.

        Moved to the left, a row loses as many pad positions, which it must have; to the right, it gains them.

        Raises:
            ValueError: length exceeds the capacity.
        """
        self.check_length(length)
        shift, kept = length - self.length, min(length, self.length)
        for stored in (self.keys, self.values):
            for layer in stored[:, : self.rows]:  # one at a time: source and target overlap, so that a copy is needed
                layer[:, :, length - kept : length] = layer[:, :, self.length - kept : self.length].clone()
        if self.rows and shift:
            self.padding = (self._no_padding(self.rows) if self.padding is None else self.padding) + shift
        self.length = length

    def _no_padding(self, n_rows: int) -> Tensor:
        return torch.zeros(n_rows, dtype=torch.int64, device=self.keys.device)

    def check_length(self, length: int) -> None:
        if length > self.max_len:
            raise ValueError(f"the cache holds {self.max_len} tokens, {length} are needed: give it a larger max_len")

    def _check_rows(self, rows: int) -> None:
        if rows > (batch_size := self.keys.shape[1]):
            raise ValueError(f"the cache has {batch_size} rows, {rows} are needed: give it a larger batch_size")
