"""The processes of one start find each other among the traces of earlier ones; who does not answer is gone."""

import threading
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from training import roll_call
from training.roll_call import RollCall, meet

SOON = timedelta(seconds=10)


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(roll_call, "POLL", 0.05)
    monkeypatch.setattr(roll_call, "PATIENCE", 1.0)


def a_start(store: dist.Store, size: int, delays: dict[int, float]) -> list[str]:
    """What `meet` returns to each rank, when they come after so many seconds."""
    names = [""] * size

    def come(rank: int) -> None:
        time.sleep(delays.get(rank, 0))
        names[rank] = meet(store, rank, size, SOON)

    threads = [threading.Thread(target=come, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return names


@pytest.mark.parametrize("late", [0, 2])
def test_a_second_start_over_the_same_store_meets_under_a_name_of_its_own(late):
    """The first one's entries are still there, rank 0's name too; whoever comes first must not use them."""
    store = dist.HashStore()
    first = a_start(store, 3, {})
    second = a_start(store, 3, {late: 0.4})
    assert len(set(first)) == len(set(second)) == 1
    assert first[0] and second[0] and first[0] != second[0]


def test_who_does_not_come_is_named():
    store = dist.HashStore()
    other = threading.Thread(target=meet, args=(store, 1, 3, SOON))
    other.start()
    with pytest.raises(RuntimeError, match=r"rank 2 of 3 did not come within 0:00:00\.5"):
        meet(store, 0, 3, timedelta(seconds=0.5))
    other.join()


def test_a_leader_who_does_not_come_is_named():
    store = dist.HashStore()
    a_start(store, 2, {})  # an earlier one, whose rank 0 has left its name
    with pytest.raises(RuntimeError, match=r"rank 0 of 2 did not come within 0:00:00\.5"):
        meet(store, 1, 2, timedelta(seconds=0.5))


def roll_calls(size: int, living: set[int]) -> list[RollCall]:
    store = dist.HashStore()
    made = [RollCall(store, rank, size) for rank in range(size)]
    for rank in living:
        made[rank].start()
    return made


def test_all_that_are_silent_are_named():
    calls = roll_calls(4, {0, 2})
    assert calls[0].why(RuntimeError("closed")) == "rank 1, rank 3 of 4 are gone (killed, or out of memory?)"
    for rank in (0, 2):
        calls[rank].stop()


def test_where_all_answer_the_error_is_ones_own_and_the_others_learn_of_it():
    calls = roll_calls(3, {0, 1, 2})
    started = time.monotonic()
    assert calls[1].why(RuntimeError("shapes differ")) is None
    assert time.monotonic() - started < roll_call.PATIENCE
    assert calls[2].why(RuntimeError("closed")) == "rank 1 of 3 failed (RuntimeError: shapes differ)"
    for each in calls:
        each.stop()


@pytest.mark.parametrize("error", [ValueError("row 7"), torch.OutOfMemoryError("3 GB"), OSError("full")])
def test_errors_that_no_communication_raises_do_not_wait_for_answers(error):
    [call, *_] = roll_calls(3, set())
    started = time.monotonic()
    assert call.why(error) is None
    assert time.monotonic() - started < roll_call.PATIENCE / 2


def test_a_lost_store_is_rank_0s_machine():
    class Lost(dist.Store):
        pass

    call = RollCall(Lost(), 1, 2)
    assert call.why(RuntimeError("closed")) == "rank 0 is gone, or the torchrun on its machine"
    assert call.why(ValueError("row 7")) is None


def test_a_long_reason_is_cut():
    calls = roll_calls(2, {0, 1})
    assert calls[0].why(ValueError("x" * 10_000)) is None
    assert len(calls[1].why(RuntimeError("closed")) or "") < 2100
    for each in calls:
        each.stop()
