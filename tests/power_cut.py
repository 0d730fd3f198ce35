"""A machine that loses its power at the n-th operation on the disk."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest


class PowerCut(BaseException):
    """Nothing that runs after it reaches the disk."""


def cut_power(monkeypatch: pytest.MonkeyPatch, n: int) -> list[str]:
    """Let the n-th operation and all after it fail; a write or a removal of a directory that fails is half done.

    Returns:
        The operations so far, which grows.
    """
    log: list[str] = []
    plain_open, plain_rmtree = Path.open, shutil.rmtree

    def step(name: str) -> None:
        log.append(name)
        if len(log) >= n:
            raise PowerCut

    def guarded(name: str, function: Callable) -> Callable:
        def call(*arguments, **options):
            step(name)
            return function(*arguments, **options)

        return call

    class Torn:
        """A file whose every write can be cut in the middle."""

        def __init__(self, file) -> None:
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_) -> None:
            self.file.close()

        def write(self, content) -> int:
            content = bytes(content)
            self.file.write(content[: len(content) // 2])
            self.file.flush()
            step("write")
            self.file.write(content[len(content) // 2 :])
            return len(content)

        def flush(self) -> None:
            self.file.flush()

    def opened(path: Path, mode: str = "r", *arguments, **options):
        if "w" not in mode:
            return plain_open(path, mode, *arguments, **options)
        step("open")
        return Torn(plain_open(path, mode, *arguments, **options))

    def removed(folder: Path, *arguments, **options) -> None:
        if len(log) == n - 1:  # not after the cut
            for file in sorted(Path(folder).glob("*"))[:1]:
                os.unlink(file)
        step("rmtree")
        plain_rmtree(folder, *arguments, **options)

    monkeypatch.setattr(Path, "open", opened)
    for owner, name in ((os, "fsync"), (os, "replace"), (Path, "unlink"), (Path, "mkdir"), (tempfile, "mkdtemp")):
        monkeypatch.setattr(owner, name, guarded(name, getattr(owner, name)))
    monkeypatch.setattr(shutil, "rmtree", removed)
    return log
