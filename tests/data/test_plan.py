"""The epoch plan: every example once, determinism, length groups, packing."""

import random
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import epoch_plan, fill_ratio, pack
from data.plan import GROUP_MICRO_BATCHES, OPEN_ROWS

SETTINGS = [
    {"order": "shuffle"},
    {"order": "group_by_length"},
    {"order": "shuffle", "pack_to": 64},
]
lengths_of = st.lists(st.integers(1, 64), max_size=200)


def flat(plan):
    return [index for micro_batch in plan for row in micro_batch for index in row]


@pytest.mark.parametrize("settings", SETTINGS)
@given(lengths=lengths_of, size=st.integers(1, 7), seed=st.integers(0, 99), epoch=st.integers(0, 9))
def test_every_example_once_in_micro_batches_of_the_size(settings, lengths, size, seed, epoch):
    plan = epoch_plan(lengths, micro_batch_size=size, seed=seed, epoch=epoch, **settings)
    assert sorted(flat(plan)) == list(range(len(lengths)))
    assert all(1 <= len(micro_batch) <= size and all(micro_batch) for micro_batch in plan)
    assert sum(len(micro_batch) < size for micro_batch in plan) <= 1
    if "pack_to" not in settings:
        assert all(len(row) == 1 for micro_batch in plan for row in micro_batch)
    else:
        assert all(sum(lengths[index] for index in row) <= 64 for micro_batch in plan for row in micro_batch)


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_plan_is_a_function_of_lengths_seed_and_epoch(settings):
    lengths = [random.Random(0).randint(1, 64) for _ in range(300)]

    def plan(seed, epoch):
        random.seed(seed * 7 + epoch)  # the global generator plays no part
        return epoch_plan(lengths, micro_batch_size=4, seed=seed, epoch=epoch, **settings)

    assert plan(1, 2) == plan(1, 2)
    assert plan(1, 2) != plan(1, 3)
    assert plan(1, 2) != plan(2, 2)
    assert plan(1, 23) != plan(12, 3)


def test_a_plan_is_the_same_on_every_machine():
    """Pinned: a checkpoint stores a micro-batch's number, so the same numbers must mean the same rows tomorrow."""
    assert flat(epoch_plan([1] * 10, micro_batch_size=2, seed=42, epoch=0)) == [9, 5, 2, 7, 0, 8, 3, 1, 6, 4]
    packed = epoch_plan(range(1, 9), micro_batch_size=2, seed=42, epoch=0, pack_to=8)
    assert packed == [[[1, 2], [7]], [[6, 0], [4]], [[5], [3]]]


def test_length_groups_pad_less_and_begin_with_the_longest():
    lengths = random.Random(1).sample(range(8, 2048), 2000)
    plan = epoch_plan(lengths, micro_batch_size=4, seed=0, epoch=0, order="group_by_length")
    assert max(lengths) == lengths[plan[0][0][0]]
    shuffled = epoch_plan(lengths, micro_batch_size=4, seed=0, epoch=0)
    assert fill_ratio(shuffled, lengths) < 0.7 < 0.95 < fill_ratio(plan, lengths)


def test_length_groups_are_not_in_descending_order():
    """Neighbouring micro-batches differ in length as any two do, so that an optimizer step sees all lengths."""
    lengths = list(range(1, 4 * GROUP_MICRO_BATCHES + 1))
    plan = epoch_plan(lengths, micro_batch_size=4, seed=0, epoch=0, order="group_by_length")
    longest = [max(lengths[row[0]] for row in micro_batch) for micro_batch in plan]
    rises = sum(later > earlier for earlier, later in pairwise(longest))
    assert len(plan) == GROUP_MICRO_BATCHES and 10 < rises < 40


@given(lengths=lengths_of, open_rows=st.integers(1, 9))
def test_pack_keeps_every_example_and_never_overfills(lengths, open_rows):
    rows = pack(range(len(lengths)), lengths, 64, open_rows=open_rows)
    assert Counter(index for row in rows for index in row) == Counter(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= 64 for row in rows)
    assert all(row == sorted(row) for row in rows), "examples of a row keep the stream's order"


@given(lengths=st.lists(st.integers(1, 64), min_size=1, max_size=OPEN_ROWS))
def test_pack_leaves_no_two_rows_that_would_fit_together(lengths):
    """While no row had to be closed, any-fit holds: at most one row is less than half full."""
    rows = pack(range(len(lengths)), lengths, 64)
    totals = sorted(sum(lengths[index] for index in row) for row in rows)
    assert len(totals) < 2 or totals[0] + totals[1] > 64


def test_pack_fills_realistic_rows():
    """Lengths as in an instruction set, four or so to a row: under 3 % is padding."""
    rng = random.Random(5)
    lengths = [min(512, int(rng.lognormvariate(5.0, 0.5))) for _ in range(4000)]
    plan = epoch_plan(lengths, micro_batch_size=4, seed=0, epoch=0, pack_to=512)
    assert fill_ratio(plan, lengths, pad_to_multiple_of=512) > 0.97


def test_packed_rows_come_in_no_order_of_fullness():
    rng = random.Random(5)
    lengths = [rng.randint(20, 64) for _ in range(1000)]
    plan = epoch_plan(lengths, micro_batch_size=1, seed=0, epoch=0, pack_to=64)
    used = [sum(lengths[index] for index in row) for micro_batch in plan for row in micro_batch]
    half = len(used) // 2
    assert abs(sum(used[:half]) / half - sum(used[half:]) / (len(used) - half)) < 2


def test_fill_ratio_by_hand():
    assert fill_ratio([[[0, 1]], [[2], [3]]], [5, 3, 4, 8]) == 20 / 24
    assert fill_ratio([[[0, 1]], [[2], [3]]], [5, 3, 4, 8], pad_to_multiple_of=16) == 20 / 48
    with pytest.raises(ValueError, match="an empty plan"):
        fill_ratio([], [])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"micro_batch_size": 0}, "micro_batch_size=0"),
        ({"order": "random"}, "order='random'"),
        ({"order": "group_by_length", "pack_to": 8}, "packing leaves nothing to group"),
        ({"pack_to": 4}, "example 1 has 5 tokens, more than a row of pack_to=4"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=message):
        epoch_plan([3, 5], **{"micro_batch_size": 2, "seed": 0, "epoch": 0} | settings)
