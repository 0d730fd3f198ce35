"""Reading files that nobody vouches for. Damage of any kind is a ValueError that names the file and what to do.

Pickles go through torch's restricted unpickler, which builds tensors and plain containers and nothing else, and only
after the zip archive around them was found to be uncompressed and no larger inside than the file itself: so nothing is
allocated that is not there. Torch before 1.6 wrote no archive; such a file states sizes that nothing can check before
they are allocated, and is refused everywhere.

A file that is not there is the system's FileNotFoundError, which names it too.
"""

import hashlib
import json
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from files.tensors import SAFETENSORS_DTYPES, StoredTensor

REMAP_BYTES = 64 * 2**20
ZIP_SIGNATURE = b"PK\x03\x04"


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file's top-level object. A byte order mark is passed over.

    Raises:
        ValueError: it is not UTF-8, not JSON, or not an object.
    """
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # bad UTF-8, bad JSON, brackets nested without end
        raise ValueError(f"{path}: not valid JSON ({error}); save or download it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, not a {type(content).__name__}")
    return content


def sha256_of(path: Path) -> str:
    """The file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- Tensors ---


def open_tensor_file(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file by name: shapes and dtypes now, one tensor's bytes when asked.

    The format follows the suffix: `.safetensors`, or `.bin` and `.pth` (pickle). Reading goes through a memory map. A
    tensor read is a view of the file's pages: whoever keeps it must copy it. The map is given back after each tensor
    (safetensors) or after `REMAP_BYTES` (pickles, where opening costs an unpickling), lest the resident size grow by
    the whole file.

    Raises:
        ValueError: the file is damaged, or holds anything but named tensors.
    """
    return _open_safetensors(path) if path.suffix == ".safetensors" else _open_pickle(path)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises:
        ValueError: its header is damaged, does not agree with the file's size, or names an unsupported dtype.
    """
    return {name: stored.read() for name, stored in _open_safetensors(path).items()}


def read_pickled_tensors(path: Path, *, mmap: bool = False) -> dict[str, Tensor]:
    """All tensors of a file in which `torch.save` put a dictionary of them.

    Raises:
        ValueError: as for `read_pickle`; or it holds anything but named dense tensors.
    """
    content = read_pickle(path, mmap=mmap)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a dictionary of tensors, not a {type(content).__name__}")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise ValueError(f"{path} must hold named dense tensors, but {name!r} is a {_kind(tensor)}")
    return dict(content)


def read_pickle(path: Path, *, mmap: bool = False) -> Any:
    """What `torch.save` put into a file, on the CPU: tensors and plain containers, never code.

    Args:
        mmap: leave the tensors in the file's pages until they are used.

    Raises:
        ValueError: it is damaged, from torch before 1.6, larger inside than outside, or more than plain tensors.
    """
    _check_archive(path)
    try:
        return torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # an unpickler fed with hostile bytes raises whatever those bytes provoke
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"{path} is refused: it is damaged, or more than plain tensors, and no code is run from it ({reason[0]})"
        ) from error


def _open_safetensors(path: Path) -> dict[str, StoredTensor]:
    def read(name: str) -> Tensor:
        with _safetensors(path) as file:
            return file.get_tensor(name)

    tensors = {}
    with _safetensors(path) as file:
        for name in file.keys():  # noqa: SIM118 (not a mapping)
            header = file.get_slice(name)
            dtype = SAFETENSORS_DTYPES.get(header.get_dtype())
            if dtype is None:
                raise ValueError(f"{path}: {name} has the unsupported dtype {header.get_dtype()}")
            tensors[name] = StoredTensor(tuple(header.get_shape()), dtype, partial(read, name))
    return tensors


@contextmanager
def _safetensors(path: Path) -> Iterator[Any]:
    """The file, opened: its header and its size agree."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}): download or save it again") from error


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
            open_maps.append(read_pickled_tensors(path, mmap=True))
        bytes_read += open_maps[0][name].nbytes
        return open_maps[0][name]

    return {
        name: StoredTensor(tuple(tensor.shape), tensor.dtype, partial(read, name)) for name, tensor in mapped.items()
    }


def _check_archive(path: Path) -> None:
    """Refuse what is no zip archive, and one that unpacks to more than is there (records may share their bytes)."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            # By these bytes torch tells an archive; zipfile would also find one behind something else.
            if file.read(len(ZIP_SIGNATURE)) != ZIP_SIGNATURE:
                raise zipfile.BadZipFile("it does not begin as one")
            with zipfile.ZipFile(file) as archive:
                records = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error) as error:
        raise ValueError(
            f"{path} is not a whole zip archive ({error}): download or save it again; if it is from torch before 1.6, "
            "save it anew with a later one"
        ) from error
    if compressed := [record.filename for record in records if record.compress_type != zipfile.ZIP_STORED]:
        raise ValueError(
            f"{path} is refused: its records are compressed ({compressed[0]}), which torch.save never does"
        )
    if (claimed := sum(record.file_size for record in records)) > size:
        raise ValueError(f"{path} is refused: its records claim to be larger ({claimed} bytes) than the file ({size})")


def _kind(value: object) -> str:
    return f"{value.layout} tensor" if isinstance(value, Tensor) else type(value).__name__
