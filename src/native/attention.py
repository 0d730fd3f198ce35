"""Causal attention of training, forward and backward, at the speed of the processor's products.

    S = Q Kᵀ / √D,    P_ts = exp(S_ts − L_t) for s ≤ t of t's document, else 0,    L_t = log Σ_s exp S_ts,    O = P V

    dV = Pᵀ dO,    dP = dO Vᵀ,    dS = P ∘ (dP − rowsum(dO ∘ O)),    dQ = dS K / √D,    dK = dSᵀ Q / √D

FlashAttention's order of work (arXiv 2205.14135, algorithm 1; 2307.08691, algorithms 1 and 2): S and P exist block by
block, in the cache; the forward pass keeps L, the backward pass computes P again. In bfloat16, P and dS are rounded to
bfloat16 before they are multiplied; scores, exponentials and all sums are float32.

Documents are runs of tokens that see nothing of each other. Work is shared out by document and key/value head, the
longest document first; no two threads add to the same sum. Layouts are those that projections give, (B, T, H, D): there
is nothing to transpose.

None is returned where C does not apply: no compiler, another device or dtype, D odd or above 256.

Letters: B rows, T tokens, H query heads, G key/value heads, D head size, N documents.
"""

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.compiler import is_compiling

from native.library import INT, POINTER, SIZE, load_library

SOURCES = tuple(Path(__file__).with_name(name) for name in ("attention.c", "attention_backward.c"))

MAX_HEAD_DIM = 256
"""Largest D: a packed row lies on the stack."""


def attention_applies(queries: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Whether the functions below compute for these tensors, (B, T, H, D) and (B, T, G, D) twice, or return None."""
    size, tensors = queries.shape[-1], (queries, keys, values)
    return (
        all(x.ndim == 4 and x.device.type == "cpu" and x.dtype == queries.dtype for x in tensors)
        and queries.dtype in (torch.float32, torch.bfloat16)
        and keys.shape == values.shape == (*queries.shape[:2], keys.shape[2], size)
        and queries.numel() > 0
        and queries.shape[2] % keys.shape[2] == size % 2 == 0
        and size <= MAX_HEAD_DIM
        and not is_compiling()
        and _library() is not None
    )


def attention_forward(queries: Tensor, keys: Tensor, values: Tensor, documents: Tensor) -> tuple[Tensor, Tensor] | None:
    """O and L of the formulas above.

    Args:
        queries: (B, T, H, D) float32 or bfloat16.
        keys, values: (B, T, G, D) in the same dtype; query heads h·H/G … (h + 1)·H/G − 1 share key/value head h.
        documents: (N, 2) int64: first token and length of each, the longest first. Tokens are counted through all rows.

    Returns:
        O (B, T, H, D) in the dtype of the queries, undefined outside documents; L (H, B·T) float32.
    """
    if not attention_applies(queries, keys, values):
        return None
    library, threads = _library(), torch.get_num_threads()
    assert library is not None
    q, k, v = map(_plain_rows, (queries, keys, values))
    sizes = _sizes(q, k, v, documents)
    y = torch.empty(q.shape, dtype=q.dtype)
    log_sum_exp = torch.empty(sizes.heads, sizes.tokens)
    scratch = torch.empty(threads * library.attention_forward_words(int(documents[0, 1]), sizes.size))
    tensors = _Forward(*(x.data_ptr() for x in (q, k, v, y, log_sum_exp)))
    shape = (documents.data_ptr(), len(documents), sizes, scratch.data_ptr())
    library.attention_forward(tensors, *shape, q.dtype == torch.bfloat16, threads)
    return y, log_sum_exp


def attention_backward(
    gradient: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    output: Tensor,
    log_sum_exp: Tensor,
    documents: Tensor,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """dQ, dK and dV from dO and what the forward pass took and gave; shapes and dtypes as there."""
    if not attention_applies(queries, keys, values):
        return None
    library, threads = _library(), torch.get_num_threads()
    assert library is not None and gradient.shape == output.shape == queries.shape
    assert gradient.dtype == output.dtype == queries.dtype
    q, k, v = map(_plain_rows, (queries, keys, values))
    gradient, output = gradient.contiguous(), output.contiguous()
    sizes = _sizes(q, k, v, documents)
    dq = torch.empty(q.shape, dtype=q.dtype)
    shared = (*k.shape[:2], sizes.groups * sizes.parts, sizes.size)
    dk, dv = (torch.empty(shared, dtype=q.dtype if sizes.parts == 1 else torch.float32) for _ in range(2))
    scratch = torch.empty(threads * library.attention_backward_words(int(documents[0, 1]), sizes.size))
    tensors = _Backward(*(x.data_ptr() for x in (q, k, v, output, gradient, log_sum_exp, dq, dk, dv)))
    shape = (documents.data_ptr(), len(documents), sizes, scratch.data_ptr())
    library.attention_backward(tensors, *shape, q.dtype == torch.bfloat16, threads)
    if sizes.parts > 1:  # each query head has summed for itself
        dk, dv = (x.unflatten(2, (sizes.groups, -1)).sum(3).to(q.dtype) for x in (dk, dv))
    return dq, dk, dv


def _plain_rows(x: Tensor) -> Tensor:
    """x (B, T, heads, D) itself if tokens follow each other at one distance, each with its heads side by side."""
    rows, tokens, _, size = x.shape
    plain = x.stride()[2:] == (size, 1) and (rows == 1 or x.stride(0) == tokens * x.stride(1))
    return x if plain else x.contiguous()


def _sizes(q: Tensor, k: Tensor, v: Tensor, documents: Tensor) -> "_Sizes":
    tokens, heads, size = q.shape[0] * q.shape[1], q.shape[2], q.shape[3]
    starts, lengths = documents.unbind(1)
    assert documents.dtype == torch.int64 and documents.is_contiguous() and documents.device.type == "cpu"
    assert lengths.min() > 0 and lengths.max() == lengths[0], "the scratch memory is measured by the first document"
    assert starts.min() >= 0 and (starts + lengths).max() <= tokens
    few = len(documents) * k.shape[2] < 2 * torch.get_num_threads()
    parts = heads // k.shape[2] if few else 1  # where there are few tasks, one for each query head
    return _Sizes(tokens, heads, k.shape[2], size, parts, q.stride(1), k.stride(1), v.stride(1))


class _Sizes(ctypes.Structure):
    _fields_ = tuple(
        (name, SIZE) for name in ("tokens", "heads", "groups", "size", "parts", "q_stride", "k_stride", "v_stride")
    )


class _Forward(ctypes.Structure):
    _fields_ = tuple((name, POINTER) for name in ("q", "k", "v", "y", "lse"))


class _Backward(ctypes.Structure):
    _fields_ = tuple((name, POINTER) for name in ("q", "k", "v", "y", "dy", "lse", "dq", "dk", "dv"))


@cache
def _library() -> ctypes.CDLL | None:
    library = load_library(*SOURCES)
    return None if library is None else _declare(library)


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    for direction, tensors in ((library.attention_forward, _Forward), (library.attention_backward, _Backward)):
        direction.argtypes = [ctypes.POINTER(tensors), POINTER, SIZE, ctypes.POINTER(_Sizes), POINTER, INT, INT]
        direction.restype = None
    for words in (library.attention_forward_words, library.attention_backward_words):
        words.argtypes, words.restype = [SIZE, SIZE], SIZE
    return library
