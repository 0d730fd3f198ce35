"""The processes that train together: who this one is, and how all of them agree. Alone, nothing is sent.

`torchrun --nproc-per-node N train.py …` starts N processes and tells each its rank through the environment. Every
decision that changes what a process does next (stop, raise, save) is taken from numbers that all of them hold, or one
would wait for ever in a collective operation that the others never enter.
"""

import os
import re
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from training.roll_call import PATIENCE, RollCall, meet

Value = TypeVar("Value")

MEETING = timedelta(minutes=5)
"""How long the first of a team's processes waits for the last to start."""


class LostProcessError(RuntimeError):
    """A process of the team is gone; what it would have computed is missing."""


@dataclass(frozen=True)
class Team:
    """One process's place among those that train together.

    Attributes:
        rank: 0 … size − 1; rank 0 prints, logs and writes.
        size: how many there are.
        local_rank: place on this machine, the number of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process prints and writes for all."""
        return self.rank == 0

    @property
    def on_this_machine(self) -> int:
        """How many of them share this machine's memory."""
        return _variable("LOCAL_WORLD_SIZE", least=1) if "LOCAL_WORLD_SIZE" in os.environ and self.size > 1 else 1

    def total(self, *values: float) -> list[float]:
        """Each value summed over the team, the same on every rank."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def largest(self, *values: float) -> list[float]:
        """Each value's largest over the team."""
        return self._reduced(values, dist.ReduceOp.MAX)

    def everyones(self, value: Value) -> list[Value]:
        """Each rank's value, in the order of ranks."""
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value)
        return gathered

    def leaders(self, value: Value) -> Value:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def agree(self, values: Mapping[str, str], remedy: str = "") -> None:
        """Refuse, on every rank alike, to go on with values that are not the same on all.

        Raises:
            ValueError: names each value that differs, as rank 0 has it and as the first has it who differs from that.
        """
        first, *others = self.everyones(dict(values))
        differences = []
        for name in sorted({name for each in (first, *others) for name in each}):
            for rank, each in enumerate(others, start=1):
                if each.get(name) != first.get(name):
                    here, there = (mine.get(name, "(unset)") for mine in (first, each))
                    differences.append(f"{name} is {here} on rank 0 and {there} on rank {rank}")
                    break
        if differences:
            raise ValueError("; ".join(differences) + (f": {remedy}" if remedy else ""))

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that fails on every rank if it fails on one: with its own error there, with its name elsewhere.

        For what a single rank may fail at without the others noticing (a full disk, a damaged file). No collective
        operation may stand inside it.
        """
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        problems = self.everyones(None if failure is None else f"{type(failure).__name__}: {failure}")
        if failure is not None:
            raise failure
        for rank, problem in enumerate(problems):
            if problem is not None:
                raise LostProcessError(f"rank {rank} of {self.size} failed: {problem}")

    def _reduced(self, values: tuple[float, ...], operation: Any) -> list[float]:
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, operation)
        return tensor.tolist()


ALONE = Team()


@contextmanager
def joined_team(device: torch.device, *, timeout: timedelta = timedelta(minutes=30)) -> Iterator[Team]:
    """The team that torchrun's environment describes, or ALONE; left again at the end.

    Numbers on CPUs go by gloo, on GPUs by NCCL. A process that dies takes the others with it: its connections close,
    torchrun notices within a second, and the roll is called (`training.roll_call`). `timeout` bounds the wait for one
    that lives and is stuck.

    Raises:
        LostProcessError: another rank is gone or failed; the message has its number. SIGTERM, by which torchrun ends
            those that are left, is ignored from then on: the process is about to end, and to say why.
        ValueError: the environment does not describe a team.
        ConnectionError: the processes did not find each other.
    """
    place = _place(device)
    if place.size == 1:
        yield ALONE
        return
    roll_call = _join(place, device, timeout)
    roll_call.start()
    try:
        yield place
    except (SystemExit, GeneratorExit, LostProcessError):
        raise  # agreed on by all, or told by one of them
    except BaseException as error:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        reason = roll_call.why(error)
        if reason is None:
            raise
        raise LostProcessError(
            f"{reason}, so rank {place.rank} ends too; go on with --resume auto ({_gist(error)})"
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        roll_call.stop()


def _place(device: torch.device) -> Team:
    """This process's place as torchrun's environment has it."""
    if "WORLD_SIZE" not in os.environ:
        return ALONE
    size = _variable("WORLD_SIZE", least=1)
    if size == 1:
        return ALONE
    rank, local_rank = _variable("RANK", limit=size), _variable("LOCAL_RANK", limit=size)
    _variable("MASTER_PORT", least=1, limit=2**16)
    if not os.environ.get("MASTER_ADDR"):
        raise ValueError(f"MASTER_ADDR is not set, but WORLD_SIZE = {size} is: {_REMEDY}")
    if device.type == "cuda" and local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"process {local_rank} of this machine, counted from 0, has no GPU: there are {torch.cuda.device_count()}; "
            "lower --nproc-per-node"
        )
    return Team(rank, size, local_rank)


_REMEDY = "start with torchrun, or unset WORLD_SIZE to train alone"


def _variable(name: str, *, least: int = 0, limit: int = 2**31) -> int:
    """A whole number from the environment, from `least` to below `limit`."""
    value = os.environ.get(name, "(unset)")
    if not value.isascii() or not value.isdigit() or not least <= int(value) < limit:
        raise ValueError(
            f"{name} = {value[:40]} in the environment must be a number from {least} to {limit - 1}: {_REMEDY}"
        )
    return int(value)


def _join(place: Team, device: torch.device, timeout: timedelta) -> RollCall:
    """Meet the others and set up communication with them."""
    if device.type == "cuda":
        torch.cuda.set_device(place.local_rank)
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=MEETING))
        name = meet(store, place.rank, place.size, MEETING)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend, store=dist.PrefixStore(name, store), rank=place.rank, world_size=place.size, timeout=timeout
        )
        answers = store.clone()
        answers.set_timeout(timedelta(seconds=PATIENCE))
        return RollCall(dist.PrefixStore(f"{name}/roll call", answers), place.rank, place.size)
    except (RuntimeError, ValueError, OSError) as error:
        if dist.is_initialized():
            dist.destroy_process_group()
        raise ConnectionError(
            f"rank {place.rank} of {place.size} did not find the others at {where}: {_gist(error)}; is the port "
            "taken, or a process missing? Across machines GLOO_SOCKET_IFNAME names the network interface to use"
        ) from error


def _gist(error: BaseException) -> str:
    """The first sentence of a message, without the place in PyTorch's source before it and the advice behind it."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return re.sub(r"^\[[^\]]*\] ", "", line).partition(". ")[0]
