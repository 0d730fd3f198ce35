"""Torch's pickles, looked through before anything is built from them.

`torch.save` writes a zip archive, uncompressed: data.pkl with the structure, data/0, data/1, … with the numbers.
Torch's restricted unpickler (weights_only) runs no code from it, but lets itself be led to exhaust memory or time: by
records that unpack to more than is there, by an allowed call that allocates (`torch.Tensor(10**12)`) or doubles
(`_codecs.encode(x, "hex")`), by a view of four bytes that counts 2⁴⁰ numbers, by a tuple of twice the same tuple, forty
levels deep, whose hash takes 2⁴⁰ steps. So, in this order:

1. the archive is one to zipfile and to torch alike, its records are plain, and no larger in sum than the file;
2. data.pkl names nothing but what plain tensors need, and holds no more values than bytes, however they are shared;
3. what torch built from it is tensors on the CPU that lie within their bytes, and plain containers of them.

Torch before 1.6 wrote no archive; such a file states sizes that nothing can check before they are allocated.
"""

import struct
import zipfile
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from files.errors import DamagedFileError, FileError, UnsafeFileError, UnsuitableFileError, shown
from files.pickle_structure import check_structure

AGAIN = "download or save it again"
LARGEST_DIRECTORY = 8_000_000
"""Bytes of the list of records; 80,000 tensors."""
LARGEST_STRUCTURE = 4_000_000
"""Bytes of data.pkl; 30,000 tensors."""
MOST_TIED = 2
"""Tensors may share bytes, as a tied head does with its embedding: in sum they are at most so many times the file."""

START, END, END_64, LOCATOR_64 = b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
END_BYTES, LOCATOR_BYTES, END_64_BYTES = 22, 20, 56

LONGEST_STEP = 200
PLAIN = (str, bytes, int, float, type(None), torch.dtype)


# --- The archive ---


def check_pickle(path: Path) -> None:
    """Refuse a file that is not such an archive, or whose unpickling could do more than build what is in it.

    Raises:
        DamagedFileError: it is no whole archive, or torch before 1.6 wrote it.
        UnsafeFileError: it would unpack to more than it is, or is more than plain tensors.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            _check_ends(file, size)
            with zipfile.ZipFile(file) as archive:
                _check_records(path, archive.infolist(), size)
                structures = [r for r in archive.infolist() if r.filename.casefold().endswith("data.pkl")]
                if len(structures) != 1 or structures[0].file_size > LARGEST_STRUCTURE:
                    sizes = ", ".join(f"{record.file_size} bytes" for record in structures[:3]) or "none"
                    raise zipfile.BadZipFile(
                        f"it must hold one data.pkl of at most {LARGEST_STRUCTURE} bytes, but: {sizes}"
                    )
                content = archive.read(structures[0])
    except FileError:
        raise
    # zipfile has no one error: what ends early is an EOFError, what is encrypted a RuntimeError.
    except (
        zipfile.BadZipFile,
        EOFError,
        LookupError,
        ArithmeticError,
        RuntimeError,
        ValueError,
        struct.error,
    ) as error:
        reason = str(error) or type(error).__name__
        raise DamagedFileError(
            f"it is not a whole zip archive of torch's ({reason})",
            file=path,
            remedy=f"{AGAIN}; if it is from torch before 1.6, save it anew with a later one",
        ) from error
    check_structure(path, content)


def _check_ends(file: BinaryIO, size: int) -> None:
    """Raise unless the archive is the file, from its first byte to its last.

    zipfile would also find an archive behind something else, before a comment, or beside a second list of records;
    torch takes the other. Here both see the same.
    """
    if file.read(len(START)) != START:
        raise zipfile.BadZipFile("it does not begin as one")
    file.seek(max(0, size - END_BYTES - LOCATOR_BYTES - END_64_BYTES))
    tail = file.read()
    end, locator, end_64 = tail[-22:], tail[-42:-22], tail[-98:-42]
    if len(end) < END_BYTES or not end.startswith(END) or end[-2:] != b"\0\0":
        raise zipfile.BadZipFile("it does not end as one")
    length, offset = struct.unpack("<II", end[12:20])
    end_of_list = size - END_BYTES
    if locator.startswith(LOCATOR_64):
        end_of_list -= LOCATOR_BYTES + END_64_BYTES
        (where,) = struct.unpack("<Q", locator[8:16])
        if len(end_64) < END_64_BYTES or not end_64.startswith(END_64) or where != end_of_list:
            raise zipfile.BadZipFile("it does not end as one of more than 4 GB")
        long = struct.unpack("<QQ", end_64[40:56])
        if any(short not in (value, 2**32 - 1) for short, value in zip((length, offset), long, strict=True)):
            raise zipfile.BadZipFile("its two ends disagree")
        length, offset = long
    if offset + length != end_of_list or length > LARGEST_DIRECTORY:
        raise zipfile.BadZipFile(
            f"its list of records, said to be the {length} bytes from {offset}, must end at {end_of_list} and have at "
            f"most {LARGEST_DIRECTORY}"
        )
    file.seek(0)


def _check_records(path: Path, records: Sequence[zipfile.ZipInfo], size: int) -> None:
    if compressed := [record.filename for record in records if record.compress_type != zipfile.ZIP_STORED]:
        raise UnsafeFileError(
            f"it is refused: its records are compressed ({shown(compressed[0])}), which torch.save never does",
            file=path,
            remedy=AGAIN,
        )
    if (claimed := sum(max(record.file_size, record.compress_size) for record in records)) > size:
        raise UnsafeFileError(
            f"it is refused: its records claim to be larger ({claimed} bytes) than the file ({size})",
            file=path,
            remedy=AGAIN,
        )
    # torch's reader does not mind case, and takes a name as it stands; zipfile cuts it at a zero and honours a second.
    if len({record.filename.casefold() for record in records}) < len(records):
        raise zipfile.BadZipFile("two of its records have one name")
    if double := [record.filename for record in records if record.filename != record.orig_filename]:
        raise zipfile.BadZipFile(f"a record has two names, one of them {shown(double[0])}")


# --- What was built ---


def load_pickle(path: Path, *, mmap: bool) -> Any:
    """What torch builds from a file that `check_pickle` has passed: on the CPU, tensors and plain containers.

    Raises:
        DamagedFileError: torch finds it damaged.
        UnsafeFileError: its tensors claim more than their bytes.
        UnsuitableFileError: it holds tensors that are not dense.
    """
    try:
        content = torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # an unpickler fed with hostile bytes raises whatever those bytes provoke
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DamagedFileError(
            f"it is refused: it is damaged, or more than plain tensors, and no code is run from it ({reason[0]})",
            file=path,
            remedy=AGAIN,
        ) from error
    plain = _Plain(path)
    result = plain.of(content, "")
    size = path.stat().st_size
    if plain.tensor_bytes > MOST_TIED * size:
        raise UnsafeFileError(
            f"it is refused: its tensors claim {plain.tensor_bytes} bytes, but the file has {size}",
            file=path,
            remedy="save every tensor once",
        )
    return result


class _Plain:
    """Makes plain copies of the containers, and tensors that carry nothing with them, each once."""

    def __init__(self, path: Path) -> None:
        self.path, self.tensor_bytes = path, 0
        self.done: dict[int, tuple[object, Any]] = {}  # by identity; the original is kept, lest its id be given anew

    def of(self, value: object, place: str) -> Any:
        if id(value) not in self.done:
            self.done[id(value)] = value, self._copy(value, place)
        result = self.done[id(value)][1]
        if isinstance(result, Tensor):
            self.tensor_bytes += result.nbytes  # for every name it has: whoever loads them copies each
        return result

    def _copy(self, value: object, place: str) -> Any:
        if isinstance(value, dict):
            # Not value.items(): an OrderedDict may carry attributes, and one may be called so.
            return {key: self.of(item, _within(place, f".{key}")) for key, item in dict.items(value)}
        if isinstance(value, list | tuple):
            items = [self.of(item, _within(place, f"[{number}]")) for number, item in enumerate(value)]
            return items if isinstance(value, list) else tuple(items)
        if type(value) in (Tensor, nn.Parameter):
            return self._tensor(value, place)  # type: ignore[arg-type]
        if isinstance(value, PLAIN):
            return value
        raise UnsuitableFileError(
            f"it must hold plain values, not a {type(value).__name__}", file=self.path, place=place, remedy=AGAIN
        )

    def _tensor(self, tensor: Tensor, place: str) -> Tensor:
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise UnsuitableFileError(
                f"it must hold named dense tensors, not a {tensor.layout} one on {tensor.device}",
                file=self.path,
                place=place,
                remedy="save it dense",
            )
        there = tensor.untyped_storage().nbytes()
        claimed = prod(tensor.shape) * tensor.element_size()  # in Python's numbers: tensor.nbytes overflows to 0
        if claimed > there or tensor.is_neg() or tensor.is_conj():
            raise UnsafeFileError(
                f"it is refused: a tensor of {claimed} bytes is made from {there}",
                file=self.path,
                place=place,
                remedy="save a contiguous copy of it",
            )
        return Tensor.detach(tensor)


def _within(place: str, step: str) -> str:
    """A place's place; of a path without end the beginning is enough."""
    return (place + step[:LONGEST_STEP]).lstrip(".") if len(place) < LONGEST_STEP else place
