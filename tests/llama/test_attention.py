"""Attention: SDPA against the naive reference against float64; the masks by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles.llama import attention

from llama.attention import Attention, attend, attention_reference, causal_mask, document_mask, padding_mask
from llama.rotary import rotary_table


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


def test_causal_mask_of_a_continuation():
    assert causal_mask(2, 4)[0, 0].int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


def test_document_mask_by_hand():
    mask = document_mask(torch.tensor([[1, 1, 2, 2, 0]]))[0, 0].int().tolist()
    assert mask == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]]


def test_padding_mask_by_hand():
    mask = padding_mask(3, 3, torch.tensor([0, 2]))[:, 0].int().tolist()
    assert mask[0] == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert mask[1] == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]  # pad positions see themselves only


def test_module_with_mask_equals_module_without():
    torch.manual_seed(0)
    layer = Attention(16, 4, 2, layer=0)
    x = torch.randn(2, 6, 16)
    rotation = rotary_table(torch.arange(6), 4, 10_000.0)
    assert torch.allclose(layer(x, rotation), layer(x, rotation, causal_mask(6, 6)), atol=1e-6)
