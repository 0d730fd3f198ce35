"""Causal self-attention with rotary positions and grouped keys.

    Attention(Q, K, V) = softmax(Q Kᵀ / √D) V              (arXiv 1706.03762, eq. 1; masked scores are −∞)

Grouped-query attention (arXiv 2305.13245): H query heads share G ≤ H key/value heads, H / G neighbours each. LLaMA-1
has G = H; LLaMA-2-70B and TinyLlama do not.

Letters: B batch, T queries, S keys, H query heads, G key/value heads, D head size, C = H·D model width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama.cache import KVCache
from llama.linear import Linear
from llama.rotary import rotate


def attention_reference(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Eq. 1 head by head, nothing fused; scores and softmax in float32.

    Args:
        queries: (B, H, T, D).
        keys, values: (B, G, S, D).
        mask: bool, broadcastable to (B, H, T, S); True where a query may look.

    Returns:
        (B, H, T, D) in the values' dtype.
    """
    group = queries.shape[1] // keys.shape[1]
    heads = []
    for h in range(queries.shape[1]):
        q, k, v = queries[:, h], keys[:, h // group], values[:, h // group]
        scores = (q @ k.transpose(-1, -2)).float() / math.sqrt(q.shape[-1])  # (B, T, S)
        head_mask = mask.expand(mask.shape[0], queries.shape[1], *mask.shape[2:])[:, h]
        weights = torch.softmax(scores.masked_fill(~head_mask, -math.inf), dim=-1)
        heads.append(weights.type_as(v) @ v)
    return torch.stack(heads, dim=1)


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Eq. 1 by PyTorch's kernels. Shapes as for `attention_reference`; mask None is causal: all keys for one query."""
    if queries.shape[2] > 1:
        grouped = queries.shape[1] != keys.shape[1]  # G < H
        return F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped
        )
    # Heads that share keys stand where the queries of one head would: nothing is repeated, each key is read once.
    by_group = queries.view(queries.shape[0], keys.shape[1], -1, queries.shape[3])  # (B, G, H/G, D)
    return F.scaled_dot_product_attention(by_group, keys, values, attn_mask=mask).view_as(queries)


def causal_mask(n_queries: int, n_keys: int, device: torch.device | str | None = None) -> Tensor:
    """(1, 1, T, S) bool: the last query sees the last key, each earlier one a key less.

    >>> causal_mask(2, 3)[0, 0].int().tolist()
    [[1, 1, 0], [1, 1, 1]]
    """
    queries = torch.arange(n_keys - n_queries, n_keys, device=device)
    return (torch.arange(n_keys, device=device) <= queries[:, None])[None, None]


def document_mask(documents: Tensor) -> Tensor:
    """(B, 1, T, T) bool for rows that hold several documents: causal, and never across a document's border.

    Args:
        documents: (B, T) int64, one id per document; padding is a document of its own.
    """
    same = documents[:, None, :, None] == documents[:, None, None, :]
    return same & causal_mask(documents.shape[1], documents.shape[1], documents.device)


def padding_mask(n_queries: int, n_keys: int, padding: Tensor) -> Tensor:
    """(B, 1, T, S) bool for left-padded rows: causal, and never onto a pad position.

    A pad position sees itself, since a softmax over nothing would be NaN; nobody reads what it computes.

    Args:
        padding: (B,) int64, pad positions at the start of each row.
    """
    key = torch.arange(n_keys, device=padding.device)
    query = torch.arange(n_keys - n_queries, n_keys, device=padding.device)[:, None]
    real = key >= padding[:, None, None, None]
    return causal_mask(n_queries, n_keys, padding.device) & (real | (key == query))


class Attention(nn.Module):
    """LLaMA's attention: project, rotate queries and keys, attend, project back. No biases.

    Args:
        dim: model width C.
        n_heads, n_kv_heads: H and G.
        layer: index of the layer, its place in a KV cache.

    Shapes: (B, T, C) -> (B, T, C).
    """

    def __init__(self, dim: int, n_heads: int, n_kv_heads: int, layer: int) -> None:
        super().__init__()
        self.head_dim = dim // n_heads
        self.layer = layer
        self.wq = Linear(dim, n_heads * self.head_dim)
        self.wk = Linear(dim, n_kv_heads * self.head_dim)
        self.wv = Linear(dim, n_kv_heads * self.head_dim)
        self.wo = Linear(n_heads * self.head_dim, dim)

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """Attend from each of T tokens to itself and those before it.

        Args:
            x: (B, T, C).
            rotation: cos and sin of the tokens' positions, from `rotary_table`.
            mask: bool (B or 1, 1, T, S); None means causal: over the T tokens given, or one token seeing all.
            cache: earlier keys and values; the T tokens' own are added to it.
        """
        queries = rotate(self.wq(x).unflatten(-1, (-1, self.head_dim)), *rotation)  # (B, T, H, D)
        keys = rotate(self.wk(x).unflatten(-1, (-1, self.head_dim)), *rotation)  # (B, T, G, D)
        values = self.wv(x).unflatten(-1, (-1, self.head_dim))
        queries, keys, values = (heads.transpose(1, 2) for heads in (queries, keys, values))  # (B, H or G, T, D)
        if cache is not None:
            keys, values = cache.update(self.layer, keys, values)  # (B, G, S, D)
        attended = attend(queries, keys, values, mask)  # (B, H, T, D)
        return self.wo(attended.transpose(1, 2).flatten(2))  # (B, T, C)
