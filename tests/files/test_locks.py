"""A lock is a living process's: another one sees it, and the system takes it away with the process."""

import subprocess
import sys
from pathlib import Path

import pytest

from files.locks import is_locked, locked

LOCKS = Path(__file__).parents[2] / "src" / "files" / "locks.py"
# The module by its path: importing the package would import torch, which takes seconds.
HOLD = """
import pathlib, runpy, sys
with runpy.run_path(sys.argv[1])["locked"](pathlib.Path(sys.argv[2])):
    print("held", flush=True)
    input()
"""


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_it_ends_with_the_process_that_is_killed(tmp_path, kind):
    path = tmp_path / "draft"
    path.touch() if kind == "file" else path.mkdir()
    assert not is_locked(path)
    command = [sys.executable, "-c", HOLD, str(LOCKS), str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        assert is_locked(path)
        process.kill()
        process.wait()
    assert not is_locked(path)


def test_it_ends_with_the_block(tmp_path):
    with locked(tmp_path):
        assert is_locked(tmp_path)
        with locked(tmp_path):  # somebody else has it: on without
            assert is_locked(tmp_path)
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)


def test_what_has_just_got_its_name_is_somebodys(tmp_path):
    assert is_locked(tmp_path / "gone")
