"""Teams of processes for tests: one process imports everything once, then forks the ranks of each team in no time.

As a script it is that process. One JSON object per line comes in, one goes out when all ranks have ended. The ranks
have torchrun's environment and store, but unless asked nobody watches them: what a rank notices, it notices by itself.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
TRAIN = "train.main(arguments)"
DEADLINE = 60.0
"""Seconds after which a rank counts as hung; a whole run takes about one."""


@dataclass
class Ended:
    """How the ranks of a team ended.

    Attributes:
        codes: exit codes as `subprocess` counts (-9: SIGKILL).
        texts: what each printed.
        seconds: from the first one's end to each one's.
    """

    codes: list[int]
    texts: list[str]
    seconds: list[float]


class Teams:
    """Forks teams, one after another."""

    def __init__(self, folder: Path) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def close(self) -> None:
        """End the forking process."""
        self._process.kill()  # all its children have ended
        self._process.communicate()

    def run(
        self,
        size: int,
        arguments: Sequence[str] = (),
        *,
        program: str = TRAIN,
        before: str = "",
        signals: Sequence[tuple[float, int, int]] = (),
        environment: Mapping[str, str] | None = None,
        watched: bool = False,
    ) -> Ended:
        """One team to its end; a rank that does not end is an error.

        Args:
            arguments: of train.py.
            program: Python that each rank runs, with `rank`, `size`, `arguments`, `train` and `at_step` in scope.
            before: Python to run before it: the fault.
            signals: seconds after the start, the rank, and the signal it is sent.
            environment: variables beside torchrun's. A team of one has neither.
            watched: whether, as torchrun does, a SIGTERM goes to all when one has ended badly.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        with tempfile.TemporaryDirectory(dir=self._folder) as logs:
            job = {
                "size": size,
                "arguments": list(arguments),
                "source": f"{before}\n{program}",
                "signals": list(signals),
                "environment": dict(environment or {}),
                "watched": watched,
                "logs": logs,
            }
            print(json.dumps(job), file=self._process.stdin, flush=True)
            answer = json.loads(self._process.stdout.readline())
            texts = [Path(logs, str(rank)).read_text() for rank in range(size)]
        assert not answer["hung"], f"ranks {answer['hung']} did not end within {DEADLINE} s: {texts}"
        first = min(answer["ended"])
        return Ended(answer["codes"], texts, [moment - first for moment in answer["ended"]])


@pytest.fixture(scope="module")
def teams(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Teams]:
    """What forks teams, for all tests of a module."""
    made = Teams(tmp_path_factory.mktemp("teams"))
    yield made
    made.close()


def free_port() -> int:
    """A port that nobody uses at this moment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


# --- The forking process ---


def serve() -> None:
    """Fork a team for each line, until there are none."""
    for line in sys.stdin:
        job = json.loads(line)
        port = str(free_port())
        pids = []
        if (keeper := os.fork()) == 0:
            keep_store(int(port))
        for rank in range(job["size"]):
            if (pid := os.fork()) == 0:
                os._exit(child(job, rank, port, keeper))
            pids.append(pid)
        print(json.dumps(watch(pids, job["signals"], job["watched"])), flush=True)
        os.kill(keeper, signal.SIGKILL)
        os.waitpid(keeper, 0)


def keep_store(port: int) -> None:
    """What torchrun does beside watching: keep the store through which the ranks meet."""
    _store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    while True:
        time.sleep(DEADLINE)


def watch(pids: list[int], signals: Sequence[tuple[float, int, int]], watched: bool) -> dict:
    """Send what is to be sent, and wait for all."""
    codes: dict[int, int] = {}
    ended = [0.0] * len(pids)
    hung: list[int] = []
    started, due = time.monotonic(), sorted(signals)
    while len(codes) < len(pids):
        now = time.monotonic()
        for rank, pid in enumerate(pids):
            if rank not in codes and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                codes[rank], ended[rank] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), now
        if watched and any(codes.values()):
            due = [(0.0, rank, signal.SIGTERM) for rank in range(len(pids)) if rank not in codes]
            watched = False
        while due and now >= started + due[0][0]:
            _, rank, number = due.pop(0)
            if rank not in codes:
                os.kill(pids[rank], number)
        if now > started + DEADLINE and not hung:
            hung = [rank for rank in range(len(pids)) if rank not in codes]
            for rank in hung:
                os.kill(pids[rank], signal.SIGKILL)
        time.sleep(0.005)
    return {"codes": [codes[rank] for rank in range(len(pids))], "ended": ended, "hung": hung}


def child(job: dict, rank: int, port: str, keeper: int) -> int:
    """One rank; the exit code that Python would give."""
    output = os.open(f"{job['logs']}/{rank}", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    size = job["size"]
    if size > 1:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, TORCHELASTIC_USE_AGENT_STORE="True")
    os.environ["KEEPER"] = str(keeper)  # for who wants to end it
    os.environ.update(job["environment"])
    code: object = 0
    try:
        exec(job["source"], globals() | {"rank": rank, "size": size, "arguments": job["arguments"]})
    except SystemExit as leaving:
        code = leaving.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else int(code is not None)


def at_step(step: int, action, point: str = "optimizer_step") -> None:  # type: ignore[no-untyped-def]
    """Do something before this run's step of that number, counted from 1."""
    original, taken = getattr(train, point), 0

    def counting(*arguments, **options):  # type: ignore[no-untyped-def]
        nonlocal taken
        taken += 1
        if taken == step:
            action()
        return original(*arguments, **options)

    setattr(train, point, counting)


def die() -> None:
    """As the system kills what is out of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def fail(error: BaseException) -> None:
    """`raise` as a function."""
    raise error


if __name__ == "__main__":
    sys.path[:0] = [str(TESTS.parent), str(TESTS)]
    sys.modules["matplotlib"] = None  # type: ignore[assignment]  # a plot takes longer than a run
    import importlib
    from datetime import timedelta  # noqa: F401

    import torch
    import torch._dynamo  # what an optimizer imports when it is made
    import torch.distributed as dist

    import native
    import train
    from training import joined_team, roll_call, team  # noqa: F401

    torch.set_num_threads(1)
    for file in Path(native.__file__).parent.glob("[!_]*.py"):  # load what is compiled, once
        module = importlib.import_module(f"native.{file.stem}")
        if hasattr(module, "_library"):
            module._library()
    train.parse_arguments(["--dry-run"])
    serve()
