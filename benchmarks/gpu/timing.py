"""What the sections share: their setting, seconds on a device, what ran on it, failures and memory.

A section is a generator of rows. Each row is written down as it comes, so that a section that is stopped, or fails in
its middle, has lost only what it had not yet measured.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from harness import interleaved, medians
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

NOT_MEASURED = "not measured"

Row = dict[str, Any]
Work = Callable[[], object]


@dataclass(frozen=True)
class Setting:
    """Where and how much a section measures.

    Attributes:
        device: a GPU; a CPU serves to try the code.
        tiny: shapes that any machine runs in seconds. Their figures mean nothing.
        peers: whether to run them.
        rates: what the first section measured, by key: bytes and operations per second. Empty if it did not run.
    """

    device: torch.device
    tiny: bool
    peers: bool
    rates: Mapping[str, float]

    @property
    def repeats(self) -> int:
        """Turns of which the median counts."""
        return 1 if self.tiny else 7


def seconds(works: Mapping[str, Work], setting: Setting, calls: int = 1) -> dict[str, float]:
    """Median seconds of one call of each work, taken in turns of `calls` calls, the device waited for at each end."""

    def turn(work: Work) -> Work:
        def run() -> None:
            for _ in range(calls):
                work()
            synchronize(setting.device)

        return run

    turns = {name: turn(work) for name, work in works.items()}
    return {name: median / calls for name, median in medians(interleaved(turns, setting.repeats)).items()}


def busy_seconds(work: Work, device: torch.device) -> float:
    """Seconds in which the device computes during one call: the sum of its kernels' times.

    What `seconds` measures beyond that is the device waiting for Python.
    """
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        work()
        synchronize(device)
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    events = [event for event in profiler.key_averages() if event.device_type == kind]
    return sum(event.self_device_time_total if on_gpu else event.self_cpu_time_total for event in events) / 1e6


def only_working(works: Mapping[str, Work], device: torch.device) -> tuple[dict[str, Work], dict[str, str]]:
    """The works that run, each run once, and of the others why they do not."""
    working: dict[str, Work] = {}
    failures: dict[str, str] = {}
    for name, work in works.items():
        try:
            work()
            synchronize(device)
            working[name] = work
        except Exception as error:  # whatever keeps one contender from running must not cost the others their row
            failures[name] = reason(error)
    return working, failures


def reason(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def times(factor: float, value: float | None) -> float | None:
    """factor · value; None where it was not measured."""
    return None if value is None else factor * value


def ratio(a: float | None, b: float | None) -> float | None:
    """a / b; None where one was not measured."""
    return a / b if a is not None and b else None


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def allocated(device: torch.device) -> int:
    """Bytes that tensors take on a GPU now; 0 elsewhere, where nobody counts them."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Callable[[], tuple[int, int]]]:
    """Gives a function that says the peak, since the context began, of the bytes allocated to tensors and reserved."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: (torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device))
    else:
        yield lambda: (0, 0)
