"""The disk is full, or refuses: the run ends with the path in one line, the old checkpoint is whole, no draft is left.

Once there is room the run goes on, and ends as if it had always been there.
"""

import errno
import os
from pathlib import Path

import pytest
from faults.runs import VARIANTS, Call, Ended, Lab, saved, strays, thinned, whole_checkpoints

from training.report import REPORT

POINTS = 60
SLACK = 100
"""Bytes that one run may write more than another: digits of tokens per second, of memory."""


def before_the_page(calls: list[Call]) -> list[Call]:
    """All calls but those for report.html, which comes last."""
    return calls[: next(n for n, call in enumerate(calls) if REPORT in call.path)]


def capacities(lab: Lab, variant: str) -> list[int]:
    """Bytes after which the disk is full: evenly over all that is written before the page, and where each file ends."""
    calls = before_the_page(lab.file_calls(variant))
    total = sum(call.size for call in calls)
    ends, written = set(), 0
    for now, following in zip(calls, [*calls[1:], Call("", "", 0)], strict=True):
        written += now.size
        if now.name == "write" and following.path != now.path:
            ends.add(written)
    return sorted({total * n // POINTS for n in range(POINTS)} | {end for end in ends if end < total})


def calls_within(calls: list[Call], capacity: int) -> list[Call]:
    """The calls that succeed on a disk of so many bytes."""
    for n, call in enumerate(calls):
        capacity -= call.size
        if capacity < 0:
            return calls[:n]
    return calls


def refused_in_one_line(ended: Ended, output: os.PathLike) -> None:
    """An exit code, and a last line that begins with "error:" and has a path: the output, or where it is made."""
    assert ended.code == 1, ended.text
    assert ended.last_line.startswith("error: ") and str(Path(output).parent) in ended.last_line, ended.text
    assert "Traceback" not in ended.text


def filled_and_resumed(lab: Lab, variant: str, capacity: int) -> None:
    """Fill the disk; look at what it has; make room and go on."""
    calls = lab.file_calls(variant)
    least, most = (saved(calls_within(calls, capacity + slack)) for slack in (-SLACK, SLACK))
    with lab.scratch() as output:
        ended = lab.run(variant, output, faults={"fill": {"root": str(output.parent), "after": capacity}})
        refused_in_one_line(ended, output)
        assert "No space left on device" in ended.last_line
        assert least <= max(whole_checkpoints(output), default=0) <= most + 1
        assert not strays(output)
        lab.ends_as_undisturbed(variant, output)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_disk_full_after_some_bytes_leaves_the_old_checkpoint(lab, variant, count_faults):
    for capacity in thinned(capacities(lab, variant), 2, seed=1):
        filled_and_resumed(lab, variant, capacity)
        count_faults("disk full after so many bytes")


def test_a_disk_too_full_for_the_page_alone_costs_the_page_alone(lab, count_faults):
    capacity = sum(call.size for call in before_the_page(lab.file_calls("lora"))) + 2 * SLACK
    with lab.scratch() as output:
        ended = lab.run("lora", output, faults={"fill": {"root": str(output.parent), "after": capacity}})
        assert ended.code == 0 and f"note: no {REPORT}: OSError" in ended.text, ended.text
        assert not (output / REPORT).exists()
        lab.is_as_undisturbed("lora", output)
        count_faults("disk full after so many bytes")


@pytest.mark.faults
@pytest.mark.parametrize("variant", ["full", "lora-8bit"])
def test_a_disk_full_after_any_bytes_leaves_the_old_checkpoint(lab, variant, count_faults):
    for capacity in thinned(capacities(lab, variant), 70, seed=2):
        filled_and_resumed(lab, variant, capacity)
        count_faults("disk full after so many bytes")


def refused_and_resumed(lab: Lab, variant: str, number: int, code: int) -> None:
    """One call fails with an error of the system's. The run ends with it, or does without that call."""
    with lab.scratch() as output:
        refuse = {"root": str(output.parent), "number": number, "code": code}
        ended = lab.run(variant, output, faults={"refuse": refuse})
        if ended.code:
            refused_in_one_line(ended, output)
            assert os.strerror(code) in ended.last_line
        whole_checkpoints(output)
        lab.ends_as_undisturbed(variant, output)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_error_of_the_system_at_some_calls_costs_no_bit(lab, variant, count_faults):
    numbers = range(1, len(lab.file_calls(variant)) + 1)
    for place, number in enumerate(thinned(numbers, 2, seed=3)):
        refused_and_resumed(lab, variant, number, (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS)[place % 4])
        count_faults("one call refused")


@pytest.mark.faults
@pytest.mark.parametrize("variant", ["full", "lora-8bit"])
def test_an_error_of_the_system_at_many_calls_costs_no_bit(lab, variant, count_faults):
    numbers = range(1, len(lab.file_calls(variant)) + 1)
    for number in thinned(numbers, 100, seed=4):
        refused_and_resumed(lab, variant, number, errno.EIO)
        count_faults("one call refused")


@pytest.mark.parametrize(("variant", "n_bytes"), [("full", 5_500), ("full", 130_000), ("lora-8bit", 9_000)])
def test_a_limit_of_the_systems_on_file_sizes_is_an_error_like_another(lab, variant, n_bytes, count_faults):
    with lab.scratch() as output:
        ended = lab.run(variant, output, faults={"limit": {"n_bytes": n_bytes}})
        refused_in_one_line(ended, output)
        assert "File too large" in ended.last_line and not strays(output)
        lab.ends_as_undisturbed(variant, output)
        count_faults("file size limit (RLIMIT_FSIZE)")


def test_too_little_room_is_found_before_the_first_step(lab, count_faults):
    with lab.scratch() as output:
        ended = lab.run("full", output, faults={"little_space": {"free": 100_000}})
        assert ended.code == 1 and "make room" in ended.last_line, ended.text
        assert "step 1" not in ended.text
        lab.ends_as_undisturbed("full", output)
        count_faults("too little room, found before the first step")
