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


def test_reorder_takes_up_to_as_many_rows_as_were_allocated():
    store = cache()
    keys = torch.randn(2, 1, 2, 4)
    store.update(0, keys, -keys)
    store.advance(2)
    store.reorder(torch.tensor([1]))
    assert store.update(0, keys[:1], keys[:1])[0].shape == (1, 1, 4, 4)
    store.reorder(torch.tensor([0, 0]))
    assert torch.equal(store.keys[0, :, :, :2], keys[[1, 1]])
    assert torch.equal(store.values[0, :, :, :2], -keys[[1, 1]])
    with pytest.raises(ValueError, match="has 2 rows, 3 are needed"):
        store.reorder(torch.tensor([0, 1, 1]))


def fill(store: KVCache, keys: torch.Tensor) -> None:
    """Store keys (rows, 1, T, 4) and their negatives, in both layers."""
    for layer in range(2):
        store.update(layer, keys, -keys)
    store.advance(keys.shape[2])


def test_rows_come_and_go():
    """A longer newcomer pushes the others to the right, a shorter one is padded; who leaves is replaced by the last."""
    store = cache()
    store.rows = 0
    first, second, third = torch.randn(1, 1, 2, 4), torch.randn(1, 1, 3, 4), torch.randn(1, 1, 1, 4)
    fill(store.join(1, 2), first)
    assert store.padding is None
    fill(store.join(1, 3), second)
    assert (store.length, store.padding.tolist()) == (3, [1, 0])
    assert torch.equal(store.keys[:, 0, :, 1:3], first.expand(2, -1, -1, -1))
    assert torch.equal(store.values[:, 1, :, :3], -second.expand(2, -1, -1, -1))

    store.drop(0)
    assert (store.rows, store.padding.tolist()) == (1, [0])
    fill(store.join(1, 1), third)
    assert store.padding.tolist() == [0, 2]
    step = torch.randn(2, 1, 1, 4)
    keys, values = store.update(1, step, -step)
    assert torch.equal(keys[0], torch.cat((second, step[:1]), dim=2)[0])
    assert torch.equal(values[1, :, 2:], -torch.cat((third, step[1:]), dim=2)[0])

    store.drop(1)
    store.drop(0)
    fill(store.join(2, 1, torch.tensor([0, 0])), step)  # an empty cache begins anew
    assert (store.length, store.padding.tolist()) == (1, [0, 0])
    with pytest.raises(ValueError, match="has 2 rows, 3 are needed"):
        store.join(1, 1)


def test_newcomers_bring_their_own_padding():
    store = cache()
    store.rows = 1
    fill(store, torch.randn(1, 1, 3, 4))
    fill(store.join(1, 2, torch.tensor([1])), torch.randn(1, 1, 2, 4))
    assert store.padding.tolist() == [0, 2]


def test_realign_moves_rows_and_counts_their_padding():
    store = cache(padding=torch.tensor([1, 2]))
    keys = torch.randn(2, 1, 3, 4)
    fill(store, keys)
    store.realign(4)
    assert (store.length, store.padding.tolist()) == (4, [2, 3])
    assert torch.equal(store.keys[1, :, :, 1:4], keys)
    store.realign(2)
    assert (store.length, store.padding.tolist()) == (2, [0, 1])
    assert torch.equal(store.values[1, :, :, :2], -keys[:, :, 1:])
    with pytest.raises(ValueError, match="holds 4 tokens, 5 are needed"):
        store.realign(5)


def test_truncate():
    store = cache()
    store.advance(3)
    store.truncate(1)
    assert store.length == 1
    with pytest.raises(ValueError, match="1 tokens to 2"):
        store.truncate(2)
