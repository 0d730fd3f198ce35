"""Dropout by a function of seed and place: the function, its statistics, and that it can be repeated."""

import numpy as np
import pytest
import torch

import native.dropout
from native import drop

pytestmark = pytest.mark.skipif(native.dropout._library() is None, reason="install a C compiler")


def mixed(z: int) -> int:
    """splitmix64's output function, on Python's integers."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def expected_bits(seed: int, rows: int, columns: int) -> np.ndarray:
    """The 32 bits of every place, (rows, columns) uint32."""
    bits = np.empty((rows, columns), dtype=np.uint32)
    for m in range(rows):
        own = mixed((seed + 0x9E3779B97F4A7C15 * (m + 1)) % 2**64)
        h = np.arange(columns, dtype=np.uint32) * np.uint32(0x9E3779B1) + np.uint32(own % 2**32)
        h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
        h = (h ^ (h >> np.uint32(13)) ^ np.uint32(own >> 32)) * np.uint32(0xC2B2AE35)
        bits[m] = h ^ (h >> np.uint32(16))
    return bits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.999])
def test_each_place_is_dropped_by_its_own_bits(dtype, p):
    x = torch.randn(7, 45, generator=torch.Generator().manual_seed(0)).to(dtype)
    mask = torch.from_numpy(expected_bits(2**63 + 5, 7, 45) >= round(p * 2**32))
    expected = torch.where(mask, (x.float() * torch.tensor(1 / (1 - p), dtype=torch.float32)).to(dtype), 0)
    assert torch.equal(drop(x, p, 2**63 + 5), expected)


def test_the_same_seed_gives_the_same_mask_whatever_the_threads():
    x, before = torch.ones(100, 64), torch.get_num_threads()
    masks = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            masks.append(drop(x, 0.3, 11))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(masks[0], masks[1]) and torch.equal(masks[0], masks[2])
    assert torch.equal(drop(x.view(4, 25, 64), 0.3, 11).view(100, 64), masks[0])  # rows are rows, however they stand


def test_the_bits_look_random():
    """Means of independent bits lie within 5 standard deviations of 1/2: per bit, and of each bit's agreement with its
    neighbour's in the row, the column, and under the next seed."""
    bits = np.stack([expected_bits(seed, 128, 512) for seed in range(4)])
    ones = (bits[..., None] >> np.arange(32, dtype=np.uint32)) & 1  # (seeds, rows, columns, 32)

    def fair(agreement: np.ndarray) -> bool:
        n = agreement[..., 0].size
        return bool((np.abs(agreement.reshape(-1, 32).mean(0) - 0.5) < 5 * 0.5 / n**0.5).all())

    assert fair(ones)
    assert fair(ones[:, :, 1:] ^ ones[:, :, :-1])
    assert fair(ones[:, 1:] ^ ones[:, :-1])
    assert fair(ones[1:] ^ ones[:-1])


def test_what_c_does_not_do_is_left_to_others():
    assert drop(torch.ones(3, 4, dtype=torch.float16), 0.5, 1) is None
    assert drop(torch.ones(3, 4, device="meta"), 0.5, 1) is None
