"""A disk that fails: every call of the system that changes files goes through here, is counted, and can be the last.

Watched are open for writing, each write(2), fsync, rename, unlink, mkdir and rmdir, under one directory. A buffered
file of Python's is built over a raw one whose `write` is ours: what is counted is what reaches the system, not what a
library asked for.

A disk without power keeps what was forced to it: contents by fsync of the file, names by fsync of its directory. What
was not is remembered here and taken back before the process ends, contents alone or names as well; a real disk keeps
any part of it.
"""

import builtins
import errno
import io
import os
import resource
import shutil
from collections.abc import Callable
from contextlib import suppress
from typing import Any

NAMES = ("open", "fsync", "replace", "rename", "unlink", "remove", "mkdir", "rmdir", "sendfile")
plain: dict[str, Any] = {name: getattr(os, name) for name in NAMES}
plain_open = io.open

Before = Callable[[int, str, str], None]
"""Called with number, from 1, name and path of each call before it is made; may end the process or raise."""
Torn = Callable[[int, int], int]
"""Called with number and size of a write; how many of its bytes are written before `Before` is called."""


class Disk:
    """What is watched and what happened there. There is one in a process.

    Attributes:
        root: only what lies below is watched.
        unforced: of files written to since their last fsync, how many bytes were safe.
        names: changes of names that no fsync of their directory has made last: that directory, and the way back.
    """

    def __init__(self, root: str, before: Before, torn: Torn, *, remembers: bool = False) -> None:
        self.root, self.before, self.torn, self.remembers = root, before, torn, remembers
        self.calls = 0
        self.unforced: dict[str, int] = {}
        self.owed: dict[str, OSError] = {}
        self.names: list[tuple[str, Callable[[], object]]] = []

    def holds(self, path: str) -> bool:
        """Whether the path is watched."""
        return path == self.root or path.startswith(f"{self.root}/")

    def call(self, name: str, path: str) -> None:
        """Count a call, and let it come to its end here."""
        self.calls += 1
        self.before(self.calls, name, path)

    def write(self, path: str, content: memoryview, write: Callable[[memoryview], int]) -> int:
        """One write(2). Of what fails halfway the system first tells how much was written, and next time why."""
        if path in self.owed:
            raise self.owed.pop(path)
        part = self.torn(self.calls + 1, len(content))
        if self.remembers:
            self.unforced.setdefault(path, os.path.getsize(path))
        done = write(content[:part]) if part else 0
        try:
            self.call("write", path)
        except OSError as error:
            if not done:
                raise
            self.owed[path] = error
            return done
        return done + write(content[done:])

    def named(self, path: str, undo: Callable[[], object]) -> None:
        """Remember how to take a change of names back."""
        if self.remembers:
            self.names.append((os.path.dirname(path), undo))

    def kept(self, path: str) -> str:
        """Another name, outside, of a file that is about to lose its own."""
        other = f"{self.root}.lost-{self.calls}"
        if self.remembers and os.path.isfile(path):
            os.link(path, other)
        return other

    def lose(self, what: str) -> None:
        """Take back what was not forced: "contents" alone, "names" as well, or "nothing"."""
        for name in NAMES:
            setattr(os, name, plain[name])
        if what != "nothing":
            for path, safe in self.unforced.items():
                if os.path.exists(path):
                    os.truncate(path, safe)
        if what == "names":
            for _, undo in reversed(self.names):
                with suppress(FileNotFoundError, FileExistsError):  # what came later was forced and stays
                    undo()


# --- Faults, by the names that a job gives ---


def watch(root: str, log: str) -> None:
    """Let nothing fail, and write down each call as a line: name, path and, of a write, size, with tabs between."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    sizes = [0]

    def torn(number: int, size: int) -> int:
        sizes[0] = size
        return 0

    def before(number: int, name: str, path: str) -> None:
        os.write(file, f"{name}\t{path}\t{sizes[0] if name == 'write' else 0}\n".encode())

    install(Disk(root, before, torn))


def cut(root: str, number: int, half: bool = False, lose: str = "nothing") -> None:
    """The process ends before its call of that number, or halfway through if it is a write."""

    def before(now: int, name: str, path: str) -> None:
        if now == number:
            disk.lose(lose)
            os._exit(137)

    disk = Disk(root, before, lambda now, size: size // 2 if half and now == number else 0, remembers=lose != "nothing")
    install(disk)


def power_off(root: str) -> None:
    """Nothing fails until the run has ended well; then all is lost that was not forced to the disk."""
    disk = Disk(root, lambda now, name, path: None, lambda now, size: 0, remembers=True)
    install(disk)
    AT_THE_END.append(lambda: disk.lose("names"))


AT_THE_END: list[Callable[[], None]] = []
"""What happens after the run."""


def fill(root: str, after: int) -> None:
    """The disk is full once so many bytes were written, and stays so: nothing more can be written, made or forced."""
    left, full = after, [False]

    def torn(number: int, size: int) -> int:
        nonlocal left
        full[0] = full[0] or size > left
        part = min(size, left) if full[0] else 0
        left -= min(size, left)
        return part

    def before(number: int, name: str, path: str) -> None:
        if full[0] and name in ("write", "open", "mkdir", "fsync"):
            refused(errno.ENOSPC, None if name in ("write", "fsync") else path)

    install(Disk(root, before, torn))


def refuse(root: str, number: int, code: int) -> None:
    """The call of that number fails with an error of the system's; the next ones do not."""

    def before(now: int, name: str, path: str) -> None:
        if now == number:
            refused(code, None if name in ("write", "fsync") else path)

    install(Disk(root, before, lambda now, size: size // 2 if now == number else 0))


def signals(root: str, number: int, signals: list[int]) -> None:
    """Signals arrive at the call of that number."""

    def before(now: int, name: str, path: str) -> None:
        if now == number:
            for each in signals:
                os.kill(os.getpid(), each)

    install(Disk(root, before, lambda now, size: 0))


def limit(n_bytes: int) -> None:
    """The system itself refuses larger files."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def little_space(free: int) -> None:
    """The disk says that it has so few bytes."""
    usage = type(shutil.disk_usage("/"))
    shutil.disk_usage = lambda path: usage(10**12, 10**12 - free, free)


def unreadable(files: list[str], code: int) -> None:
    """Reading those files fails halfway, as on a damaged disk."""

    class Unreadable(io.FileIO):
        def readinto(self, buffer: Any) -> int:
            if self.tell() >= os.fstat(self.fileno()).st_size // 2:
                refused(code, None)
            part = self.read(min(len(memoryview(buffer)), max(1, os.fstat(self.fileno()).st_size // 2)))
            memoryview(buffer)[: len(part)] = part
            return len(part)

        def readall(self) -> bytes:
            refused(code, None)
            raise AssertionError

    def opened(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if "b" not in mode or str(file) not in files:
            return plain_open(file, mode, *arguments, **options)
        return io.BufferedReader(Unreadable(file))

    io.open = builtins.open = opened


def refused(code: int, path: str | None) -> None:
    """Raise as Python does: a call on a descriptor does not know its file's name."""
    raise OSError(code, os.strerror(code), *([path] if path else []))


# --- Parts ---


def install(disk: Disk) -> None:
    """Put the disk between Python and the system."""

    class Watched(io.FileIO):
        """A raw file whose every write is counted."""

        def write(self, content: Any) -> int:
            return disk.write(str(self.name), memoryview(content).cast("B"), super().write)

    def opened(
        file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None, newline: Any = None,
        closefd: bool = True, opener: Any = None,
    ) -> Any:  # fmt: skip
        path = str(file)
        if not set(mode) & set("wax+") or not disk.holds(path):
            return plain_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        made("open", path)
        if disk.remembers and "w" in mode and os.path.exists(path):
            disk.unforced[path] = 0
        buffer = io.BufferedWriter(Watched(path, mode.replace("b", "").replace("t", "")))
        return buffer if "b" in mode else io.TextIOWrapper(buffer, encoding, errors, newline)

    def os_open(file: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        path = resolved(file, dir_fd)
        if flags & os.O_CREAT and disk.holds(path):
            made("open", path)
        return plain["open"](file, flags, mode, dir_fd=dir_fd)

    def made(name: str, path: str) -> None:
        disk.call(name, path)
        if not os.path.exists(path):
            disk.named(path, lambda: os.path.exists(path) and os.unlink(path))

    def fsync(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if disk.holds(path):
            disk.call("fsync", path)
            disk.unforced.pop(path, None)
            disk.names = [entry for entry in disk.names if entry[0] != path]
        plain["fsync"](descriptor)

    def replace(source: Any, target: Any) -> None:
        old, new = str(source), str(target)
        if not disk.holds(new):
            return plain["replace"](source, target)
        disk.call("replace", new)
        there = os.path.isfile(new)
        lost = disk.kept(new)
        plain["replace"](source, target)
        for path in [path for path in disk.unforced if path == old or path.startswith(f"{old}/")]:
            disk.unforced[new + path.removeprefix(old)] = disk.unforced.pop(path)
        disk.named(new, lambda: (os.replace(new, old), there and os.replace(lost, new)))

    def unlink(path: Any, *, dir_fd: int | None = None) -> None:
        full = resolved(path, dir_fd)
        if disk.holds(full):
            disk.call("unlink", full)
            if os.path.isfile(full):
                lost = disk.kept(full)
                disk.named(full, lambda: os.replace(lost, full))
        plain["unlink"](path, dir_fd=dir_fd)

    def mkdir(path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        full = resolved(path, dir_fd)
        if disk.holds(full) and not os.path.exists(full):
            disk.call("mkdir", full)
            disk.named(full, lambda: shutil.rmtree(full, ignore_errors=True))
        plain["mkdir"](path, mode, dir_fd=dir_fd)

    def rmdir(path: Any, *, dir_fd: int | None = None) -> None:
        full = resolved(path, dir_fd)
        if disk.holds(full):
            disk.call("rmdir", full)
            disk.named(full, lambda: os.mkdir(full))
        plain["rmdir"](path, dir_fd=dir_fd)

    def sendfile(target: int, source: int, offset: int, count: int) -> int:
        path = os.readlink(f"/proc/self/fd/{target}")
        if not disk.holds(path):
            return plain["sendfile"](target, source, offset, count)
        content = memoryview(os.pread(source, count, offset))
        return disk.write(path, content, lambda part: os.write(target, part))

    io.open = builtins.open = opened
    replaced = (os_open, fsync, replace, replace, unlink, unlink, mkdir, rmdir, sendfile)
    for name, function in zip(NAMES, replaced, strict=True):
        setattr(os, name, function)


def resolved(path: Any, directory: int | None) -> str:
    """A path as a string, with that of the open directory it is relative to."""
    return str(path) if directory is None else os.path.join(os.readlink(f"/proc/self/fd/{directory}"), path)
