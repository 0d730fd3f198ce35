"""The KV cache: what goes in comes out, and it says when it is full."""

import pytest
import torch

from llama import KVCache, LlamaConfig

CONFIG = LlamaConfig(10, 8, 2, 2, 1, 16)


def cache(**options) -> KVCache:
    return KVCache(CONFIG, 2, 4, dtype=torch.float32, device="cpu", **options)


def test_update_returns_everything_so_far():
    store = cache()
    first, second = torch.randn(2, 1, 3, 4), torch.randn(2, 1, 1, 4)
    for layer in range(2):
        store.update(layer, first, -first)
    store.advance(3)
    keys, values = store.update(1, second, -second)
    assert torch.equal(keys, torch.cat((first, second), dim=2))
    assert torch.equal(values, -keys)
    assert store.length == 3  # until advance


def test_overflow_names_both_numbers():
    store = cache()
    with pytest.raises(ValueError, match="holds 4 tokens, 5 are needed"):
        store.update(0, torch.zeros(2, 1, 5, 4), torch.zeros(2, 1, 5, 4))


def test_reorder_moves_rows_and_their_padding():
    store = cache(padding=torch.tensor([0, 2]))
    keys = torch.randn(2, 1, 2, 4)
    store.update(0, keys, keys)
    store.advance(2)
    store.reorder(torch.tensor([1, 1]))
    assert torch.equal(store.keys[0, :, :, :2], keys[[1, 1]])
    assert store.padding.tolist() == [2, 2]


def test_reorder_to_more_rows_keeps_the_capacity():
    store = cache()
    keys = torch.randn(2, 1, 2, 4)
    store.update(0, keys, -keys)
    store.advance(2)
    store.reorder(torch.tensor([1, 0, 1]))
    assert torch.equal(store.keys[0, :, :, :2], keys[[1, 0, 1]])
    assert torch.equal(store.values[0, :, :, :2], -keys[[1, 0, 1]])
    assert store.max_len == 4


def test_truncate():
    store = cache()
    store.advance(3)
    store.truncate(1)
    assert store.length == 1
    with pytest.raises(ValueError, match="1 tokens to 2"):
        store.truncate(2)
