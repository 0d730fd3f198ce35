"""Causal self-attention with rotary positions and grouped keys: project, rotate, attend, project.

    Attention(Q, K, V) = softmax(Q Kᵀ / √D) V              (arXiv 1706.03762, eq. 1; masked scores are −∞)

Grouped-query attention (arXiv 2305.13245): H query heads share G ≤ H key/value heads, H / G neighbours each. LLaMA-1
has G = H; LLaMA-2-70B and TinyLlama do not.

Eq. 1 itself is in attend.py, who sees whom in masks.py and documents.py.

Letters: B batch, T queries, S keys, H query heads, G key/value heads, D head size, C = H·D model width.
"""

from typing import cast

from torch import Tensor, nn

from llama.attend import attend, attend_causally
from llama.cache import KVCache
from llama.documents import Documents
from llama.linear import Linear
from llama.rotary import rotate


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
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor | Documents | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Attend from each of T tokens to itself and those before it.

        Args:
            x: (B, T, C).
            rotation: cos and sin of the tokens' positions, from `rotary_table`.
            mask: bool (B or 1, 1, T, S), or the rows' documents; None means causal: over the T tokens given, or one
                token seeing all.
            cache: earlier keys and values; the T tokens' own are added to it.
        """
        queries = rotate(self.wq(x).unflatten(-1, (-1, self.head_dim)), *rotation)  # (B, T, H, D)
        keys = rotate(self.wk(x).unflatten(-1, (-1, self.head_dim)), *rotation)  # (B, T, G, D)
        values = self.wv(x).unflatten(-1, (-1, self.head_dim))
        all_keys, all_values = keys.transpose(1, 2), values.transpose(1, 2)  # (B, G, T, D)
        if cache is not None:
            all_keys, all_values = cache.update(self.layer, all_keys, all_values)  # (B, G, S, D)
        # Without a mask, several tokens are the first in their cache: their own keys are all there are.
        if isinstance(mask, Tensor) or (cache is not None and x.shape[1] == 1):
            attended = attend(queries.transpose(1, 2), all_keys, all_values, cast(Tensor | None, mask)).transpose(1, 2)
        else:
            attended = attend_causally(queries, keys, values, mask)  # (B, T, H, D)
        return self.wo(attended.flatten(2))  # (B, T, C)
