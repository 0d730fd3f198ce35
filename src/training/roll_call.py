"""Who of a team still lives, asked over the key-value store that torchrun keeps for it.

When a process dies, the others learn only that a connection closed, and each from another neighbour. So every process
has a thread that answers when one of them calls the roll; who does not answer within PATIENCE is gone. A process that
ends by an error of its own leaves word first, so that the others can say what happened. Once the roll was called the
team is broken, and a process that has not ended GRACE seconds later (it waits on a GPU for a dead one, say) is ended.

    keys    broken      somebody noticed something            here/RANK      this one answers
            meeting     rank 0's name for this start          failed/RANK    this one ended by an error: which
"""

import os
import signal
import sys
import threading
import time
from datetime import timedelta

import torch
import torch.distributed as dist

POLL = 0.25
"""Seconds between two looks at the store."""

PATIENCE = 5.0
"""Seconds in which a living process answers; one that reads a large file or starts a GPU may be busy for a while."""

GRACE = 20.0
"""Seconds that a process of a broken team has to end by itself."""

LONGEST_REASON = 2000
"""Characters of an error that are told to the others."""


class RollCall:
    """One process's part in it; answers from `start` to `stop`.

    Args:
        store: that all processes of this start, and none of an earlier one, see.
    """

    def __init__(self, store: dist.Store, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self._store = store
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._answer, name="roll call", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Answer no more."""
        self._left.set()
        self._thread.join(PATIENCE)

    def why(self, error: BaseException) -> str | None:
        """Which other process this one's error comes from, and what is known of it; None if the error is its own.

        It is told to the others then. Takes PATIENCE at the longest, and only if a process is gone.
        """
        try:
            # PyTorch's communication fails by RuntimeErrors of many kinds, and so does much else: only asking tells.
            reason = self._ask() if _may_be_theirs(error) else None
            if reason is None:
                own = f"{type(error).__name__}: {error}"[:LONGEST_REASON]
                self._store.set(f"failed/{self.rank}", own)
                self._store.set("broken", "")
            return reason
        except RuntimeError:
            return "rank 0 is gone, or the torchrun on its machine" if _may_be_theirs(error) else None

    def _ask(self) -> str | None:
        self._store.set("broken", "")
        others = [rank for rank in range(self.size) if rank != self.rank]
        until = time.monotonic() + PATIENCE
        while True:
            for rank in others:
                if self._store.check([f"failed/{rank}"]):
                    return f"rank {rank} of {self.size} failed ({self._store.get(f'failed/{rank}').decode()})"
            silent = [rank for rank in others if not self._store.check([f"here/{rank}"])]
            if not silent:
                return None
            if time.monotonic() > until:
                names = ", ".join(f"rank {rank}" for rank in silent)
                verb = "is" if len(silent) == 1 else "are"
                return f"{names} of {self.size} {verb} gone (killed, or out of memory?)"
            time.sleep(POLL / 5)

    def _answer(self) -> None:
        broken_at = None
        while not self._left.wait(POLL):
            try:
                if broken_at is None and self._store.check(["broken"]):
                    broken_at = time.monotonic()
                    self._store.set(f"here/{self.rank}", "")
            except RuntimeError:
                if not self._left.is_set() and broken_at is None:
                    self._say("rank 0's machine, or the torchrun on it, is gone: stopping")
                    os.kill(os.getpid(), signal.SIGTERM)  # as torchrun would have asked: end the step, save
                return
            if broken_at is not None and time.monotonic() > broken_at + GRACE:
                self._say(f"the team broke {GRACE:.0f} s ago and rank {self.rank} of {self.size} still waits for it")
                os._exit(1)

    def _say(self, text: str) -> None:
        print(f"error: {text}; go on with --resume auto", file=sys.stderr, flush=True)


def meet(store: dist.Store, rank: int, size: int, patience: timedelta) -> str:
    """A name that the processes of this start agree on; those of an earlier one, now dead, cannot have taken part.

    torchrun restarts a team with the store of the one before (--max-restarts), whose entries are still there: every
    process would look for the dead. Its own count of restarts is of no help, machines may differ in it.

    Raises:
        RuntimeError: somebody did not come.
    """
    own = os.urandom(8).hex()
    store.set_timeout(patience)
    if rank == 0:
        store.set("meeting", own)
        for other in range(1, size):
            if not _appears(store, f"{own}/{other}", patience):
                raise RuntimeError(f"rank {other} of {size} did not come within {patience}")
            store.set(f"{own}/{other}/{store.get(f'{own}/{other}').decode()}", "")
        return own
    until = time.monotonic() + patience.total_seconds()
    while time.monotonic() < until:
        meeting = store.get("meeting").decode()  # perhaps one of the dead: ask again until a living rank 0 answers
        store.set(f"{meeting}/{rank}", own)
        if store.check([f"{meeting}/{rank}/{own}"]):
            return meeting
        time.sleep(POLL / 5)
    raise RuntimeError(f"rank 0 of {size} did not come within {patience}")


def _appears(store: dist.Store, key: str, patience: timedelta) -> bool:
    until = time.monotonic() + patience.total_seconds()
    while not store.check([key]):
        if time.monotonic() > until:
            return False
        time.sleep(POLL / 5)
    return True


def _may_be_theirs(error: BaseException) -> bool:
    """Whether communication can have failed like this: gloo, NCCL and the store raise kinds of RuntimeError."""
    return isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError)
