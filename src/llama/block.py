"""One transformer block of LLaMA (arXiv 2302.13971, section 2.2): pre-norm, attention, SwiGLU, two residual sums.

h = x + Attention(RMSNorm(x))
y = h + SwiGLU(RMSNorm(h))
"""

from torch import Tensor, nn

from llama.attention import Attention
from llama.cache import KVCache
from llama.documents import Documents
from llama.norm import RMSNorm
from llama.swiglu import SwiGLU


class Block(nn.Module):
    """Attention and feed-forward around the residual stream. Shapes: (B, T, C) -> (B, T, C).

    Args:
        dim, n_heads, n_kv_heads, hidden_dim, norm_eps: as in `LlamaConfig`.
        layer: index of the block, counted from 0.
    """

    def __init__(self, dim: int, n_heads: int, n_kv_heads: int, hidden_dim: int, norm_eps: float, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(dim, norm_eps)
        self.attention = Attention(dim, n_heads, n_kv_heads, layer)
        self.ffn_norm = RMSNorm(dim, norm_eps)
        self.feed_forward = SwiGLU(dim, hidden_dim)

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor | Documents | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """See `Attention.forward` for the arguments."""
        h = x + self.attention(self.attention_norm(x), rotation, mask, cache)
        return h + self.feed_forward(self.ffn_norm(h))
