"""Contenders in processes of their own, so that the memory of each can be told from the others'.

The parent makes a contender in a fresh process and calls its methods through a pipe, one at a time: they wait with
their weights in memory while another has its turn. The kernel keeps the peak of a process's resident memory (VmHWM in
/proc) and starts it anew on request, so that loading a model does not hide what a training step takes.
"""

import ctypes
import gc
import multiprocessing
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from loading import memory_of


class Remote:
    """An object made and kept in a process of its own.

    Args:
        make: importable; called there with the arguments.

    Raises:
        RuntimeError: making it failed, or later a call; the message is the child's.
    """

    def __init__(self, make: Callable[..., object], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
        self._process.start()
        theirs.close()
        self._answer()

    def call(self, method: str, *arguments: Any) -> Any:
        """What the object's method returns."""
        self._pipe.send((method, arguments))
        return self._answer()

    def restart_peak(self) -> None:
        """`restart_peak` in the child."""
        self.call("restart_peak")

    def release(self) -> None:
        """`release` in the child, for contenders that do not fit beside each other otherwise."""
        self.call("release")

    def peak_gb(self) -> float:
        """The child's resident memory at its highest since then, in GB; interpreter and libraries included."""
        return peak_gb(self._process.pid or 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._pipe.close()
        self._process.join()

    def _answer(self) -> Any:
        try:
            failure, result = self._pipe.recv()
        except EOFError:
            raise RuntimeError("a contender's process died; is there enough memory for it?") from None
        if failure:
            raise RuntimeError(failure)
        return result


def restart_peak() -> None:
    """Let the peak of this process's resident memory start anew, at what it holds now."""
    release()
    Path("/proc/self/clear_refs").write_text("5")


def release() -> None:
    """Give freed memory back to the system; the next step has to ask for it again."""
    gc.collect()
    with suppress(AttributeError):  # only glibc keeps some of what was freed, and gives it back on request
        ctypes.CDLL(None).malloc_trim(0)


def peak_gb(pid: int) -> float:
    """A process's resident memory at its highest since its start, or since `restart_peak`."""
    return memory_of(pid, "VmHWM") / 1e9


def _serve(pipe: Connection, make: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    """In the child: make the object, then answer calls until the parent closes the pipe."""
    own = {"restart_peak": restart_peak, "release": release}
    try:
        served = make(*arguments)
        pipe.send((None, None))
        while True:
            method, given = pipe.recv()
            called = own.get(method) or getattr(served, method)
            pipe.send((None, called(*given)))
    except EOFError:
        return
    except Exception:  # a peer may fail in any way
        pipe.send((traceback.format_exc(), None))
