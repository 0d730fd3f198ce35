"""Causal self-attention with rotary positions and grouped keys.

    Attention(Q, K, V) = softmax(Q Kᵀ / √D) V              (arXiv 1706.03762, eq. 1; masked scores are −∞)

Grouped-query attention (arXiv 2305.13245): H query heads share G ≤ H key/value heads, H / G neighbours each. LLaMA-1
has G = H; LLaMA-2-70B and TinyLlama do not.

A row may hold several documents, which see nothing of each other. On a CPU each costs what it would cost alone:
`native.attention` in C, or PyTorch's kernel once per document. On a GPU PyTorch has a kernel for it, in 16 bits.

Letters: B batch, T queries, S keys, H query heads, G key/value heads, D head size, C = H·D model width, N documents.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate, pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from llama.cache import KVCache
from llama.linear import Linear
from llama.rotary import rotate
from native.attention import attention_applies, attention_backward, attention_forward


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


@dataclass(frozen=True)
class Documents:
    """A batch's documents, as the lengths of consecutive runs of tokens, row after row. Made once per forward pass.

    Attributes:
        lengths: of N runs, padding included; their sum is B·T, and none goes beyond the end of a row.
        shape: (B, T).
        device: of the tokens.
    """

    lengths: tuple[int, ...]
    shape: tuple[int, int]
    device: torch.device

    @classmethod
    def from_ids(cls, ids: Tensor, device: torch.device) -> "Documents":
        """Runs of equal ids, (B, T) int64. Ids on a GPU are waited for; leave them in the CPU's memory.

        >>> Documents.from_ids(torch.tensor([[1, 1, 2, 0], [1, 1, 1, 1]]), torch.device("cpu")).lengths
        (2, 1, 1, 4)

        Raises:
            ValueError: an id other than 0 (padding) comes back in a row after another one.
        """
        ids = ids.cpu()
        begins = torch.ones_like(ids, dtype=torch.bool)
        begins[:, 1:] = ids[:, 1:] != ids[:, :-1]
        seen: set[tuple[int, int]] = set()
        for row, number in zip(begins.nonzero()[:, 0].tolist(), ids[begins].tolist(), strict=True):
            if number != 0 and (row, number) in seen:
                raise ValueError(
                    f"document {number} comes back in row {row} after another one: the tokens of a document must stand "
                    "together; give each run of tokens a number of its own"
                )
            seen.add((row, number))
        starts = [*begins.flatten().nonzero()[:, 0].tolist(), ids.numel()]
        lengths = tuple(end - start for start, end in pairwise(starts))
        return cls(lengths, (ids.shape[0], ids.shape[1]), device)

    @cached_property
    def spans(self) -> Tensor:
        """(N, 2) int64 on the CPU: first token, counted through all rows, and length; the longest first."""
        starts = accumulate(self.lengths[:-1], initial=0)
        return torch.tensor(sorted(zip(starts, self.lengths, strict=True), key=lambda span: -span[1]))

    @cached_property
    def borders(self) -> Tensor:
        """(N + 1,) int32 on the tokens' device: where documents begin, and the end."""
        return torch.tensor([*accumulate(self.lengths, initial=0)], dtype=torch.int32).to(self.device)

    @cached_property
    def mask(self) -> Tensor:
        """(B, 1, T, T) bool on the tokens' device, for kernels that know no documents."""
        numbers = torch.arange(len(self.lengths)).repeat_interleave(torch.tensor(self.lengths))
        return document_mask(numbers.view(self.shape).to(self.device))


class BlockwiseAttention(torch.autograd.Function):
    """Causal attention within documents that keeps, besides its arguments, its result O and L = log Σ exp S only.

    Neither scores S nor probabilities P = exp(S − L) are kept; the backward pass computes them again:

        dV = Pᵀ dO,    dP = dO Vᵀ,    dS = P ∘ (dP − rowsum(dO ∘ O)),    dQ = dS K / √D,    dK = dSᵀ Q / √D

    (FlashAttention, arXiv 2205.14135, appendix B.2). In C, see `native.attention`; once differentiable.
    """

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, spans: Tensor) -> Tensor:
        """Shapes: (B, T, H, D), (B, T, G, D) twice, (N, 2) -> (B, T, H, D)."""
        result = attention_forward(queries, keys, values, spans)
        assert result is not None, "to be used where attention_applies"
        ctx.save_for_backward(queries, keys, values, *result)
        ctx.spans = spans
        return result[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """dO -> dQ, dK, dV."""
        queries, keys, values, output, log_sum_exp = ctx.saved_tensors
        gradients = attention_backward(gradient, queries, keys, values, output, log_sum_exp, ctx.spans)
        assert gradients is not None
        return (*gradients, None)


def attend_causally(queries: Tensor, keys: Tensor, values: Tensor, documents: Documents | None = None) -> Tensor:
    """Eq. 1 where each of T tokens attends to itself and those before it in its document.

    Args:
        queries: (B, T, H, D); keys, values: (B, T, G, D). As projections give them, not as `attend` takes them.
        documents: None means that each row is one.

    Returns:
        (B, T, H, D).
    """
    if attention_applies(queries, keys, values):
        if documents is None:
            batch, tokens = queries.shape[:2]
            documents = Documents((tokens,) * batch, (batch, tokens), queries.device)
        return BlockwiseAttention.apply(queries, keys, values, documents.spans)
    if documents is not None and queries.device.type == "cpu":
        return attend_one_by_one(queries, keys, values, documents)
    if documents is not None and (kernel := varlen_kernel(queries.device.type, queries.dtype, queries.shape[3])):
        return attend_varlen(kernel, queries, keys, values, documents)
    queries, keys, values = (x.transpose(1, 2) for x in (queries, keys, values))  # (B, H or G, T, D)
    return attend(queries, keys, values, None if documents is None else documents.mask).transpose(1, 2)


def attend_one_by_one(queries: Tensor, keys: Tensor, values: Tensor, documents: Documents) -> Tensor:
    """`attend_causally` by PyTorch's kernel, one document after the other."""
    by_heads = (x.flatten(0, 1).transpose(0, 1)[None] for x in (queries, keys, values))  # (1, H or G, B·T, D)
    parts = (x.split(documents.lengths, dim=2) for x in by_heads)
    attended = [attend(q, k, v, None) for q, k, v in zip(*parts, strict=True)]
    return torch.cat(attended, dim=2)[0].transpose(0, 1).unflatten(0, documents.shape)


@cache
def varlen_kernel(device: str, dtype: torch.dtype, size: int) -> Callable[..., Any] | None:
    """PyTorch's kernel for rows of several documents, if it is there and computes for such tensors: on a GPU, 16 bits,
    D up to 256."""
    if device != "cuda" or dtype not in (torch.bfloat16, torch.float16) or size > 256 or size % 8:
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn  # here, as it loads parts of torch's compiler
    except ImportError:
        return None
    known = inspect.signature(varlen_attn).parameters  # torch 2.10 had no groups
    return varlen_attn if {"window_size", "enable_gqa"} <= known.keys() else None


def attend_varlen(
    kernel: Callable[..., Any], queries: Tensor, keys: Tensor, values: Tensor, documents: Documents
) -> Tensor:
    """`attend_causally` by PyTorch's kernel for rows of several documents, from `varlen_kernel`."""
    q, k, v = (x.flatten(0, 1) for x in (queries, keys, values))  # (B·T, H or G, D)
    borders, longest, grouped = documents.borders, max(documents.lengths), q.shape[1] != k.shape[1]
    causal = (-1, 0)  # keys seen before and after a query: all, none
    attended = kernel(q, k, v, borders, borders, longest, longest, window_size=causal, enable_gqa=grouped)
    return attended.view_as(queries)


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
        if isinstance(mask, Tensor) or (cache is not None and x.shape[1] == 1):
            attended = attend(queries.transpose(1, 2), all_keys, all_values, cast(Tensor | None, mask)).transpose(1, 2)
        else:
            attended = attend_causally(queries, keys, values, mask)  # (B, T, H, D)
        return self.wo(attended.flatten(2))  # (B, T, C)
