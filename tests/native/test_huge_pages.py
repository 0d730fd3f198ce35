"""Advice about pages: the tensor comes back as it was, whoever it is given to."""

import ctypes
import mmap
import sys
from collections.abc import Callable

import pytest
import torch

from native import advise_huge_pages, huge_pages


@pytest.fixture
def advice(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """The arguments of every madvise, which is not carried out."""
    calls: list[tuple[int, int, int]] = []

    class Libc:
        @staticmethod
        def madvise(*arguments: int) -> None:
            calls.append(arguments)

    monkeypatch.setattr(huge_pages, "_libc", Libc)
    return calls


def test_a_large_tensor_is_the_same_afterwards() -> None:
    tensor = torch.empty(2 * huge_pages.HUGE_PAGE + 12_345, dtype=torch.uint8)
    assert advise_huge_pages(tensor) is tensor
    tensor.copy_(torch.arange(tensor.numel()) % 251)
    content = tensor.clone()
    assert torch.equal(advise_huge_pages(tensor), content)


def test_advice_stays_within_the_tensor(advice: list[tuple[int, int, int]]) -> None:
    storage = torch.empty(3 * huge_pages.HUGE_PAGE, dtype=torch.uint8)
    tensor = storage[5:-7]
    advise_huge_pages(tensor)
    [(start, size, what)] = advice
    begin, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    assert begin <= start < begin + mmap.PAGESIZE and start % mmap.PAGESIZE == 0
    assert start + size == end and what == 14


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.empty(huge_pages.HUGE_PAGE - 1, dtype=torch.uint8),
        lambda: torch.empty(0),
        lambda: torch.empty(2**40, device="meta"),
    ],
    ids=["small", "empty", "meta"],
)
def test_others_are_left_alone(make: Callable[[], torch.Tensor], advice: list[tuple[int, int, int]]) -> None:
    tensor = make()
    assert advise_huge_pages(tensor) is tensor and not advice


def test_without_linux_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    huge_pages._libc.cache_clear()
    try:
        tensor = torch.zeros(huge_pages.HUGE_PAGE, dtype=torch.uint8)
        assert advise_huge_pages(tensor) is tensor and huge_pages._libc() is None
    finally:
        huge_pages._libc.cache_clear()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="madvise is Linux's")
def test_linux_takes_the_advice() -> None:
    """The arguments are those that madvise expects: it refuses wrong ones by -1."""
    tensor = torch.empty(4 * huge_pages.HUGE_PAGE, dtype=torch.uint8)
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    libc = huge_pages._libc()
    assert isinstance(libc, ctypes.CDLL)
    assert libc.madvise(start + 1, huge_pages.HUGE_PAGE, huge_pages.MADV_HUGEPAGE) == -1  # not at a page
    assert libc.madvise(start, huge_pages.HUGE_PAGE, huge_pages.MADV_HUGEPAGE) in (0, -1)  # -1: built without them
