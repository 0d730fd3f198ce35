"""Eq. 1: SDPA against the naive reference against float64; every way to compute it against the reference."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles.llama import attention
from torch.nn.attention.varlen import varlen_attn

import native.attention
from llama.attend import (
    attend,
    attend_causally,
    attend_one_by_one,
    attend_varlen,
    attention_reference,
    varlen_kernel,
)
from llama.documents import Documents
from llama.masks import causal_mask, document_mask, padding_mask

CPU = torch.device("cpu")
PACKED = torch.tensor([[1] * 20 + [2] + [3] * 9 + [0] * 4, [0] * 2 + [1] * 18 + [2] * 14])


def heads(n: int, tokens: int, seed: int) -> torch.Tensor:
    return torch.randn(2, n, tokens, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("n_keys", [5, 9])
def test_reference_against_float64_and_sdpa(check_bound, n_kv_heads, n_keys):
    q, k, v = heads(4, 5, 0), heads(n_kv_heads, n_keys, 1), heads(n_kv_heads, n_keys, 2)
    mask = causal_mask(5, n_keys)
    reference = attention_reference(q, k, v, mask)
    oracle = np.stack([attention(q[b].double().numpy(), k[b].double().numpy(), v[b].double().numpy(), mask[0, 0].numpy()) for b in range(2)])  # fmt: skip # noqa: E501
    fused = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    # Scores of order 4 carry a relative error of a few 2⁻²⁴, which the softmax multiplies by the score.
    check_bound("attention: reference vs float64", np.abs(reference.numpy() - oracle).max(), 2e-6)
    check_bound("attention: SDPA vs reference", (fused - reference).abs().max(), 2e-6)


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("padding", [None, [0, 6]], ids=["all keys", "padded"])
def test_one_query_by_groups(check_bound, n_kv_heads, padding):
    """Queries that share keys are attended to together; a group of them must not get its neighbour's keys."""
    q, k, v = heads(4, 1, 0), heads(n_kv_heads, 9, 1), heads(n_kv_heads, 9, 2)
    mask = None if padding is None else padding_mask(1, 9, torch.tensor(padding))
    attended = attend(q, k, v, mask)
    assert attended.shape == (2, 4, 1, 8)
    reference = attention_reference(q, k, v, causal_mask(1, 9) if mask is None else mask)
    check_bound("attention: one query vs reference", (attended - reference).abs().max(), 2e-6)  # as above


def test_softmax_in_float32_under_bf16():
    q, k, v = (heads(2, 6, s).bfloat16() for s in (0, 1, 2))
    assert attention_reference(q, k, v, causal_mask(6, 6)).dtype == torch.bfloat16


# --- Documents --------------------------------------------------------------------------------------------------------


def with_gradients(attend_to, q, k, v):
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    y = attend_to(*leaves)
    return y.detach(), *torch.autograd.grad(y, leaves, torch.randn(y.shape, generator=torch.Generator().manual_seed(9)))


def by_mask(mask):
    """The plain twin, in the layout of projections."""
    return lambda *tensors: attention_reference(*(x.transpose(1, 2) for x in tensors), mask).transpose(1, 2)


def kernel_by_loops(q, k, v, borders, key_borders, longest, longest_key, *, window_size, enable_gqa):
    """PyTorch's kernel for GPUs, as its documentation describes it."""
    assert torch.equal(borders, key_borders) and borders.dtype == torch.int32 and window_size == (-1, 0)
    assert longest == longest_key == borders.diff().max() and enable_gqa == (q.shape[1] != k.shape[1])
    attended = []
    for a, b in pairwise(borders.tolist()):
        document = (x[a:b].transpose(0, 1)[None] for x in (q, k, v))  # (1, H or G, t, D)
        attended.append(attention_reference(*document, causal_mask(b - a, b - a)))
    return torch.cat(attended, dim=2)[0].transpose(0, 1)


PATHS = {
    "C": attend_causally,
    "one by one": attend_one_by_one,
    "varlen": lambda *arguments: attend_varlen(kernel_by_loops, *arguments),
}


def check_against_reference(check_bound, path, attend_to, mask, n_kv_heads):
    generator = torch.Generator().manual_seed(0)  # one for all: keys must not be the values
    q, k, v = (torch.randn(2, 34, n, 8, generator=generator) for n in (4, n_kv_heads, n_kv_heads))
    mine, expected = with_gradients(attend_to, q, k, v), with_gradients(by_mask(mask), q, k, v)
    for name, a, b in zip(("O", "dQ", "dK", "dV"), mine, expected, strict=True):
        # Scores of order 4 and sums over up to 34 · 4 queries, each with a relative error of a few 2⁻²⁴.
        check_bound(f"attention, {path}: {name} vs reference", (a - b).abs().max(), 4e-6)


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("path", PATHS)
def test_documents_by_every_path_equal_the_reference(check_bound, path, n_kv_heads):
    if path == "C" and native.attention._library() is None:
        pytest.skip("install a C compiler")
    documents = Documents.from_ids(PACKED, CPU)
    attend_to = PATHS[path]
    check_against_reference(
        check_bound, path, lambda *tensors: attend_to(*tensors, documents), document_mask(PACKED), n_kv_heads
    )


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("compiler", [True, False], ids=["as it is", "without C"])
def test_whole_rows_equal_the_reference(check_bound, monkeypatch, compiler, n_kv_heads):
    if not compiler:
        monkeypatch.setattr(native.attention, "_library", lambda: None)
    check_against_reference(check_bound, "whole rows", attend_causally, causal_mask(34, 34), n_kv_heads)


def test_without_c_documents_go_one_by_one(monkeypatch):
    monkeypatch.setattr(native.attention, "_library", lambda: None)
    q, k, v = (torch.randn(2, 34, n, 8) for n in (4, 2, 2))
    documents = Documents.from_ids(PACKED, CPU)
    assert torch.equal(attend_causally(q, k, v, documents), attend_one_by_one(q, k, v, documents))


def test_elsewhere_documents_become_a_mask():
    """On a device that has no kernel for them; nothing but shapes can be computed on this one."""
    q, k, v = (torch.randn(2, 34, n, 8, device="meta") for n in (4, 2, 2))
    documents = Documents.from_ids(PACKED, q.device)
    assert attend_causally(q, k, v, documents).shape == q.shape
    assert documents.mask.device == q.device


def test_the_gpus_kernel_is_taken_where_it_computes():
    """Here for its name and those of its arguments only."""
    assert varlen_kernel("cuda", torch.bfloat16, 64) is varlen_attn
    for device, dtype, size in (
        ("cpu", torch.bfloat16, 64),
        ("cuda", torch.float32, 64),
        ("cuda", torch.float16, 264),
        ("cuda", torch.float16, 20),
    ):
        assert varlen_kernel(device, dtype, size) is None
