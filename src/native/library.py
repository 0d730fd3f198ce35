"""C files as a library of functions, compiled for this very processor the first time it is asked for.

The compiler takes about a second for each, and the result is kept in the user's cache under a name made of all that it
depends on: the source, the flags, the compiler, the processor. Without a compiler there is no library, and the callers
go another way.

OpenMP's symbols are left open at the link: they are then those of the runtime that torch has loaded, so that both share
one pool of threads. (Two pools on the same cores would wait for each other.)
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

COMPILERS = ("cc", "gcc", "clang")
FLAGS = (
    *("-std=gnu11", "-O3", "-march=native", "-fopenmp", "-fPIC"),
    "-fno-strict-aliasing",  # words and halves of words share memory
)
CACHE = Path(".cache") / "medalpaca-from-scratch"
"""Below the user's home."""

POINTER, SIZE, INT, FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float


@cache
def load_library(*sources: Path) -> ctypes.CDLL | None:
    """The compiled functions of C files that lie together, or None where they cannot be compiled or loaded."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        return None
    try:
        library = compiled(sources, compiler, cache_folder())
        try:
            return ctypes.CDLL(str(library))
        except OSError:  # damaged, by a power cut say: once more
            library.unlink()
            return ctypes.CDLL(str(compiled(sources, compiler, cache_folder())))
    except (OSError, RuntimeError, subprocess.SubprocessError):  # no OpenMP here, no home, a folder without execution
        return None


def c_backend() -> str:
    """How the work of the C files is done here, for a program to print."""
    found = load_library(Path(__file__).with_name("elementwise.c"))
    return "PyTorch, slower, as C files cannot be compiled here" if found is None else "C"


def compiled(sources: Sequence[Path], compiler: str, folder: Path) -> Path:
    """The shared library made of C files and their headers, in `folder`; compiled only if it is not there yet.

    Raises:
        subprocess.CalledProcessError: the compiler refuses.
        OSError: the folder cannot be written to.
    """
    headers = sorted(sources[0].parent.glob("*.h"))
    texts = [file.read_bytes() for file in (*sources, *headers)]
    parts = [*texts, " ".join(FLAGS).encode(), _version(compiler), _processor()]
    library = folder / f"{sources[0].stem}-{hashlib.sha256(b'|'.join(parts)).hexdigest()[:16]}.so"
    if library.is_file():
        return library
    with tempfile.TemporaryDirectory(prefix=".compiling-", dir=folder) as scratch:
        made = Path(scratch, "made.so")
        objects = [Path(scratch, f"{source.stem}.o") for source in sources]
        for source, made_object in zip(sources, objects, strict=True):
            _run([compiler, *FLAGS, "-c", str(source), "-o", str(made_object)])
        _run([compiler, "-shared", *map(str, objects), "-lm", "-o", str(made)])  # without -fopenmp: see above
        os.replace(made, library)  # of two processes that compile at once, either's is right
    return library


def cache_folder() -> Path:
    """A folder of the user's own for compiled libraries.

    Raises:
        OSError: there is none that others cannot write to: what lies there is going to be executed.
    """
    folder = Path.home() / CACHE
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if not hasattr(os, "getuid") or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(f"{folder} belongs to someone else, or others may write to it")
    return folder


def _run(command: list[str]) -> bytes:
    return subprocess.run(command, check=True, capture_output=True, timeout=120).stdout


def _version(compiler: str) -> bytes:
    return _run([compiler, "--version"])


def _processor() -> bytes:
    """What -march=native depends on: a home directory may be shared by different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return (platform.machine() + platform.processor()).encode()
    return b"".join(sorted({line for line in lines if line.startswith((b"model name", b"flags", b"Features"))}))
