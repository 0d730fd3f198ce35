"""Attention as functions, and the ways to compute it. All give the numbers of `attention_reference`, to rounding.

    Attention(Q, K, V) = softmax(Q Kᵀ / √D) V              (arXiv 1706.03762, eq. 1; masked scores are −∞)

    one query, or a dense mask      PyTorch's kernel                               `attend`
    causal, on a CPU                C, which keeps O and log Σ exp S, never S      `attend_causally` (native.attention)
    documents, CPU without C        PyTorch's kernel, a document at a time         `attend_one_by_one`
    documents, GPU, 16 bits         PyTorch's kernel for rows of many documents    `attend_varlen`
    documents, anything else        PyTorch's kernel with a dense mask             `Documents.mask`
    causal, anything else           PyTorch's kernel                               `attend`

H query heads share G ≤ H key/value heads, H / G neighbours each.

Letters: B batch, T queries, S keys, H query heads, G key/value heads, D head size, N documents.
"""

import inspect
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from llama.documents import Documents
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


class _BlockwiseAttention(torch.autograd.Function):
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
        return _BlockwiseAttention.apply(queries, keys, values, documents.spans)
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
