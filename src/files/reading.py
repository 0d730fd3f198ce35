"""Reading files that nobody vouches for. What is wrong with one is a `FileError` that names it and what to do.

Only regular files are read: a pipe would block, a device would never end. A safetensors file's header is checked whole
before the library maps the file (`safetensors_header`); a pickle is looked through before torch builds anything from it
(`pickles`, `pickle_structure`). So nothing is allocated that is not there, and no code runs.

A file that is not there is the system's FileNotFoundError, which names it too.
"""

import hashlib
import json
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from files.errors import DamagedFileError, UnsafeFileError, UnsuitableFileError
from files.pickles import check_pickle, load_pickle
from files.safetensors_header import read_header
from files.tensors import StoredTensor

REMAP_BYTES = 64 * 2**20
LARGEST_JSON = 100_000_000
"""Bytes. Python's objects take some ten times as many."""


def require_regular_file(path: Path) -> int:
    """The size in bytes of a file that can be read to its end.

    Raises:
        UnsuitableFileError: it is a directory, a pipe, a device.
        FileNotFoundError: it is not there.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(status.st_mode), "a device")
        raise UnsuitableFileError(f"it is {kind}, not a regular file", file=path, remedy="give the file itself")
    return status.st_size


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file's top-level object. A byte order mark is passed over.

    Raises:
        DamagedFileError: it is not UTF-8, not JSON, or not an object.
        UnsafeFileError: it is larger than `LARGEST_JSON`.
        UnsuitableFileError: it is not a regular file.
    """
    if (size := require_regular_file(path)) > LARGEST_JSON:
        raise UnsafeFileError(
            f"it has {size} bytes, more than the {LARGEST_JSON} that are read as JSON",
            file=path,
            remedy="is it the right file?",
        )
    try:
        with _naming(path):
            text = path.read_bytes()
        content = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # bad UTF-8, bad JSON, brackets nested without end
        raise DamagedFileError(
            f"it is not valid JSON ({error})", file=path, remedy="save or download it again"
        ) from error
    if not isinstance(content, dict):
        raise DamagedFileError(
            f"it must hold a JSON object, not a {type(content).__name__}",
            file=path,
            remedy="save or download it again",
        )
    return content


def sha256_of(path: Path) -> str:
    """The file's SHA-256, in hexadecimal.

    Raises:
        UnsuitableFileError: it is not a regular file.
    """
    require_regular_file(path)
    with _naming(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- Tensors ---


def open_tensor_file(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file by name: shapes and dtypes now, one tensor's bytes when asked.

    The format follows the suffix: `.safetensors`, or `.bin` and `.pth` (pickle). Reading goes through a memory map. A
    tensor read is a view of the file's pages: whoever keeps it must copy it. The map is given back after each tensor
    (safetensors) or after `REMAP_BYTES` (pickles, where opening costs an unpickling), lest the resident size grow by
    the whole file.

    Raises:
        FileError: the file is damaged, or holds anything but named tensors.
    """
    return _open_safetensors(path) if path.suffix == ".safetensors" else _open_pickle(path)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises:
        FileError: its header is damaged, does not agree with the file's size, or names an unsupported dtype.
    """
    return {name: stored.read() for name, stored in _open_safetensors(path).items()}


def read_pickled_tensors(path: Path, *, mmap: bool = False) -> dict[str, Tensor]:
    """All tensors of a file in which `torch.save` put a dictionary of them.

    Raises:
        FileError: as for `read_pickle`; or it holds anything but named dense tensors.
    """
    return _named_tensors(path, read_pickle(path, mmap=mmap))


def read_pickle(path: Path, *, mmap: bool = False) -> Any:
    """What `torch.save` put into a file, on the CPU: dense tensors and plain containers, never code.

    Args:
        mmap: leave the tensors in the file's pages until they are used.

    Raises:
        FileError: it is damaged, from torch before 1.6, larger inside than outside, or more than plain tensors.
    """
    require_regular_file(path)
    check_pickle(path)
    return load_pickle(path, mmap=mmap)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Give the system's error the name of the file: a read(2) that fails knows none."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _open_safetensors(path: Path) -> dict[str, StoredTensor]:
    def read(name: str) -> Tensor:
        with _safetensors(path) as file:
            return file.get_tensor(name)

    require_regular_file(path)
    entries = read_header(path)
    with _safetensors(path):
        pass  # what the library finds besides, it finds now
    return {name: StoredTensor(entry.shape, entry.dtype, partial(read, name)) for name, entry in entries.items()}


@contextmanager
def _safetensors(path: Path) -> Iterator[Any]:
    """The file, mapped by the library."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise DamagedFileError(
            f"it is not a whole safetensors file ({error})", file=path, remedy="download or save it again"
        ) from error


def _named_tensors(path: Path, content: object) -> dict[str, Tensor]:
    def refused(found: str) -> UnsuitableFileError:
        return UnsuitableFileError(
            f"it must hold a dictionary of named tensors, {found}", file=path, remedy="save a state_dict"
        )

    if not isinstance(content, dict):
        raise refused(f"not a {type(content).__name__}")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise refused(f"but {name!r} is a {type(tensor).__name__}")
    return content


def _open_pickle(path: Path) -> dict[str, StoredTensor]:
    mapped = read_pickled_tensors(path, mmap=True)
    open_maps = [mapped]  # at most one; emptied and refilled by `read`
    bytes_read = 0

    def read(name: str) -> Tensor:
        nonlocal bytes_read
        if bytes_read > REMAP_BYTES:
            open_maps.clear()
            bytes_read = 0
        if not open_maps:
            open_maps.append(_named_tensors(path, load_pickle(path, mmap=True)))
        bytes_read += open_maps[0][name].nbytes
        return open_maps[0][name]

    return {
        name: StoredTensor(tuple(tensor.shape), tensor.dtype, partial(read, name)) for name, tensor in mapped.items()
    }
