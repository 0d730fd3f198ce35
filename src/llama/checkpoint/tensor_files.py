"""Files of tensors, opened without reading them: names, shapes and dtypes now, one tensor's bytes when asked.

Both formats are untrusted input. Pickles (`.bin`, `.pth`) go through torch's restricted unpickler, which builds tensors
and nothing else, and only after the zip archive around them was found to be uncompressed and no larger inside than the
file itself. Damage of any kind is a ValueError that names the file.

Reading goes through a memory map. A tensor read is a view of the file's pages: whoever keeps it must copy it. The map
is given back after each tensor (safetensors) or after `REMAP_BYTES` (pickles, where opening costs an unpickling), lest
the resident size grow by the whole file.
"""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

REMAP_BYTES = 64 * 2**20

SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that lies elsewhere: in a file, in several, in a model.

    Attributes:
        shape, dtype: as `read` will return it.
        read: fetches it. The result may share memory with where it came from.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def open_tensor_file(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file, by name. The format follows the suffix: `.safetensors`, or `.bin` and `.pth` (pickle).

    Raises:
        ValueError: the file is damaged, or holds anything but named tensors.
    """
    return _open_safetensors(path) if path.suffix == ".safetensors" else _open_pickle(path)


def _open_safetensors(path: Path) -> dict[str, StoredTensor]:
    def read(name: str) -> Tensor:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)

    tensors = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                header = file.get_slice(name)
                dtype = SAFETENSORS_DTYPES.get(header.get_dtype())
                if dtype is None:
                    raise ValueError(f"{path}: {name} has the unsupported dtype {header.get_dtype()}")
                tensors[name] = StoredTensor(tuple(header.get_shape()), dtype, partial(read, name))
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}): download or save it again") from error
    return tensors


def _open_pickle(path: Path) -> dict[str, StoredTensor]:
    mapped = _load_pickle(path)
    open_maps = [mapped]  # at most one; emptied and refilled by `read`
    bytes_read = 0

    def read(name: str) -> Tensor:
        nonlocal bytes_read
        if bytes_read > REMAP_BYTES:
            open_maps.clear()
            bytes_read = 0
        if not open_maps:
            open_maps.append(_load_pickle(path))
        bytes_read += open_maps[0][name].nbytes
        return open_maps[0][name]

    return {
        name: StoredTensor(tuple(tensor.shape), tensor.dtype, partial(read, name)) for name, tensor in mapped.items()
    }


def _load_pickle(path: Path) -> dict[str, Tensor]:
    """The file's dictionary of tensors, memory-mapped."""
    _check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # an unpickler fed with hostile bytes raises whatever those bytes provoke
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{path} is refused: it is damaged, or more than plain tensors ({reason[0]})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a dictionary of tensors, not a {type(content).__name__}")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise ValueError(f"{path} must hold named plain tensors, but {name!r} is a {type(tensor).__name__}")
    return content


def _check_archive(path: Path) -> None:
    """Refuse an archive that would unpack to more than is there."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(
            f"{path} is not a whole zip archive ({error}): download or save it again; if it is from torch before 1.6, "
            "save it anew with a later one"
        ) from error
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise ValueError(f"{path} is refused: its records are compressed, which torch.save never does")
    if sum(record.file_size for record in records) > path.stat().st_size:
        raise ValueError(f"{path} is refused: its records claim to be larger than the file")
