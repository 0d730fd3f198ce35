"""Compiling on first use: once, into a private folder, under a name that says what it was made of; or not at all."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from native import library
from native.library import compiled, load_library

COMPILER = next(filter(None, map(shutil.which, library.COMPILERS)), "")
pytestmark = pytest.mark.skipif(not COMPILER, reason="install a C compiler")

ANSWER = '#include "answer.h"\nint answer(void) { return ANSWER; }\n'


@pytest.fixture(autouse=True)
def _forget_what_is_loaded() -> Iterator[None]:
    load_library.cache_clear()
    yield
    load_library.cache_clear()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory of this test's own."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setattr(Path, "home", lambda: folder)
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "answer.h").write_text("enum { ANSWER = 42 };\n")
    (folder / "answer.c").write_text(ANSWER)
    return folder / "answer.c"


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that compiled a file, as they come."""
    commands: list[list[str]] = []
    plain = library._run

    def run(command: list[str]) -> bytes:
        if "-c" in command:
            commands.append(command)
        return plain(command)

    monkeypatch.setattr(library, "_run", run)
    return commands


def answer(*sources: Path) -> int:
    functions = load_library(*sources)
    assert functions is not None
    return functions.answer()


def made(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.so"))


def test_compiled_once(home: Path, source: Path, compilations: list[list[str]]) -> None:
    assert answer(source) == 42
    load_library.cache_clear()
    assert answer(source) == 42
    assert len(compilations) == 1
    folder = home / library.CACHE
    assert made(home) == list(folder.iterdir())  # nothing else is left there
    assert folder.stat().st_mode & 0o777 == 0o700


def test_several_files_make_one_library(home: Path, source: Path) -> None:
    other = source.with_name("question.c")
    other.write_text("int answer(void);\nint question(void) { return answer() / 7; }\n")
    functions = load_library(source, other)
    assert functions is not None and (functions.answer(), functions.question()) == (42, 6)


@pytest.mark.parametrize("change", ["source", "header", "flags", "compiler", "processor"])
def test_whatever_it_depends_on_is_in_its_name(
    change: str, home: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert answer(source) == 42
    if change == "source":
        source.write_text(ANSWER.replace("return ANSWER", "return ANSWER + 1"))
    elif change == "header":
        source.with_name("answer.h").write_text("enum { ANSWER = 43 };\n")
    elif change == "flags":
        monkeypatch.setattr(library, "FLAGS", (*library.FLAGS, "-DNDEBUG"))
    else:
        monkeypatch.setattr(library, {"compiler": "_version", "processor": "_processor"}[change], lambda *_: b"other")
    load_library.cache_clear()
    assert answer(source) == (43 if change in ("source", "header") else 42)
    assert len(made(home)) == 2


def test_source_that_does_not_compile(home: Path, source: Path) -> None:
    source.write_text("int answer(void) { return }\n")
    assert load_library(source) is None
    assert list((home / library.CACHE).iterdir()) == []
    with pytest.raises(subprocess.CalledProcessError):
        compiled([source], COMPILER, home)


def test_library_that_does_not_load(home: Path, source: Path) -> None:
    source.write_text("int nowhere(void);\nint answer(void) { return nowhere(); }\n")
    assert load_library(source) is None


def test_no_compiler(home: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert load_library(source) is None
    assert list(home.iterdir()) == []


def test_compiler_that_takes_forever(home: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str]) -> bytes:
        raise subprocess.TimeoutExpired(command, 120)

    monkeypatch.setattr(library, "_run", run)
    assert load_library(source) is None


@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_a_folder_that_others_may_write_to_is_not_trusted(mode: int, home: Path, source: Path) -> None:
    assert answer(source) == 42
    (home / library.CACHE).chmod(mode)
    load_library.cache_clear()
    assert load_library(source) is None
    with pytest.raises(PermissionError, match="others may write"):
        library.cache_folder()


def test_someone_elses_folder_is_not_trusted(home: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: home.stat().st_uid + 1)
    assert load_library(source) is None


@pytest.mark.parametrize("parent", [".", ".cache"])
def test_a_home_that_cannot_hold_it(parent: str, home: Path, source: Path) -> None:
    """A file where a directory should be: also what root cannot write to."""
    (home / parent).mkdir(exist_ok=True)
    (home / library.CACHE if parent == ".cache" else home / ".cache").write_text("")
    assert load_library(source) is None


def test_no_home_at_all(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without an entry in the system's list, as containers have them."""

    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    assert load_library(source) is None


def test_two_processes_at_once(home: Path, source: Path, tmp_path: Path) -> None:
    """Both find nothing and compile, and wait for each other before they do; both have a library that works."""
    program = """
import sys, time
from pathlib import Path
import library

source, home, own_sign, others_sign = map(Path, sys.argv[1:])
plain, deadline = library._run, time.monotonic() + 60

def run(command):
    if "-c" in command:
        own_sign.touch()
        while not others_sign.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    return plain(command)

Path.home, library._run = lambda: home, run
print(library.load_library(source).answer())
"""
    signs = [tmp_path / "first", tmp_path / "second"]
    environment = os.environ | {"PYTHONPATH": str(Path(library.__file__).parent)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, source, home, *order], env=environment, stdout=subprocess.PIPE, text=True
        )
        for order in (signs, signs[::-1])
    ]
    assert [process.communicate(timeout=120)[0] for process in processes] == ["42\n", "42\n"]
    assert len(made(home)) == 1 and list((home / library.CACHE).iterdir()) == made(home)


@pytest.mark.parametrize("step", ["-c", "-shared"])
def test_killed_while_compiling(
    step: str, home: Path, source: Path, monkeypatch: pytest.MonkeyPatch, compilations: list[list[str]]
) -> None:
    """What a compiler has half written never bears the final name, so that the next attempt begins anew."""
    plain = library._run

    class Killed(BaseException):
        pass

    def run(command: list[str]) -> bytes:
        if step in command:
            Path(command[-1]).write_bytes(b"\x7fELF")
            raise Killed
        return plain(command)

    with monkeypatch.context() as patch:
        patch.setattr(library, "_run", run)
        patch.setattr(library.tempfile, "TemporaryDirectory", _left_behind)
        with pytest.raises(Killed):
            load_library(source)
    assert [file for file in (home / library.CACHE).iterdir() if file.suffix == ".so"] == []
    assert answer(source) == 42


class _left_behind:
    """A temporary directory that nobody comes to remove."""

    def __init__(self, prefix: str, dir: Path) -> None:
        self.folder = dir / f"{prefix}left"

    def __enter__(self) -> str:
        self.folder.mkdir()
        return str(self.folder)

    def __exit__(self, *_: object) -> None:
        pass


def test_openmp_is_the_one_already_loaded(home: Path, source: Path) -> None:
    """The library names no OpenMP of its own: it would bring a second pool of threads."""
    source.write_text(
        "#include <omp.h>\n"
        "int answer(void) { int sum = 0;\n"
        '_Pragma("omp parallel for reduction(+ : sum) num_threads(2)")\n'
        "for (int i = 0; i < 42; i++) sum += 1;\n"
        "return sum; }\n"
    )
    import torch  # noqa: F401  (brings the runtime)

    assert answer(source) == 42
    [file] = made(home)
    assert b"libgomp.so" not in file.read_bytes() and b"libomp.so" not in file.read_bytes()


def test_a_program_can_say_which(monkeypatch: pytest.MonkeyPatch) -> None:
    assert library.c_backend() == "C"
    monkeypatch.setattr(library, "load_library", lambda *_: None)
    assert library.c_backend() == "PyTorch, slower, as C files cannot be compiled here"
