"""The parent of all broken runs: it imports everything once, then forks a child for each run of train.py.

One JSON object per line comes in: the arguments, faults by name with their settings, a file for the child's output. Two
lines go out: the child's process id, and once it has ended its exit code as `subprocess` counts (-9: SIGKILL). Until
the next line comes in the dead child keeps its id, so a signal that is late meets nobody else.
"""

import importlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path

TESTS = Path(__file__).parent.parent
sys.path[:0] = [str(TESTS.parent), str(TESTS.parent / "src"), str(TESTS)]
sys.modules["matplotlib"] = None  # a plot takes longer than a run; without it none is drawn

import torch  # noqa: E402
import torch._dynamo  # noqa: E402  # what an optimizer imports when it is made
from faults import disk, injections  # noqa: E402

import native  # noqa: E402
import train  # noqa: E402

torch.set_num_threads(1)
for file in Path(native.__file__).parent.glob("[!_]*.py"):  # load what was compiled, which asks the compiler's version
    module = importlib.import_module(f"native.{file.stem}")
    if hasattr(module, "_library"):
        module._library()
train.parse_arguments(["--dry-run"])


def main() -> None:
    """Serve until the input ends."""
    before = None
    for line in sys.stdin:
        if before is not None:
            os.waitpid(before, 0)
        pid = os.fork()
        if pid == 0:
            os._exit(child(json.loads(line)))
        print(pid, flush=True)
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        print(ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status, flush=True)
        before = pid


def child(job: dict) -> int:
    """One run of train.py, broken as told; the exit code that Python would give."""
    output = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    code: object = 0
    try:
        for fault, settings in job["faults"].items():
            (getattr(disk, fault, None) or getattr(injections, fault))(**settings)
        train.main(job["arguments"])
        for happens in disk.AT_THE_END:
            happens()
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


if __name__ == "__main__":
    main()
