"""The header of a safetensors file, read and checked here before the library maps the file.

    8 bytes      N, the header's length, little-endian
    N bytes      JSON: name -> {"dtype": "F32", "shape": [2, 3], "data_offsets": [from, to]}; "__metadata__" -> strings
    the rest     the tensors' bytes, each from `from` to `to`, without a gap, an overlap or a byte more

The library finds most damage, but takes a name given twice (the later one wins), and says of none in which tensor.
Sizes are multiplied as Python's whole numbers, which do not overflow.
"""

import json
import struct
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch

from files.errors import DamagedFileError, UnsafeFileError, UnsuitableFileError, shown
from files.tensors import SAFETENSORS_DTYPES

LENGTH_BYTES = 8
LARGEST_HEADER = 10_000_000
"""Bytes; 100,000 tensors. The format allows ten times that, which Python would spread over gigabytes."""
LARGEST_SIZE = 2**63 - 1
"""torch counts in int64."""
MOST_DIMENSIONS = 64
METADATA = "__metadata__"
AGAIN = "download or save it again"


@dataclass(frozen=True)
class TensorEntry:
    """What the header says of one tensor: shape, dtype, and its bytes [start, end) after the header."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int
    end: int


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Every tensor's entry, in the order of the bytes, found to agree with each other and with the file's size.

    Raises:
        DamagedFileError: they do not, or there is no such header.
        UnsafeFileError: the header is larger than `LARGEST_HEADER`.
        UnsuitableFileError: a dtype that is not supported here.
    """
    with path.open("rb") as file:
        text, data_bytes = _header_text(path, file)
    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # bad UTF-8, bad JSON, a name twice, brackets nested without end
        raise _damaged(path, f"its header is not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise _damaged(path, f"its header is a {type(content).__name__}, not an object")
    metadata = content.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(path, f"{shown(metadata)} must map names to strings", METADATA)
    entries = {name: _entry(path, name, raw) for name, raw in content.items()}
    in_order = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)))
    position = 0
    for name, entry in in_order.items():
        if entry.start != position:
            kind = "overlap those before" if entry.start < position else "leave a gap after those before"
            raise _damaged(path, f"its bytes begin at {entry.start} and {kind}, which end at {position}", name)
        position = entry.end
    if position != data_bytes:
        raise _damaged(path, f"its tensors take {position} bytes, but {data_bytes} follow the header")
    return in_order


def _header_text(path: Path, file: BinaryIO) -> tuple[bytes, int]:
    """The header, and how many bytes follow it."""
    size = path.stat().st_size
    prefix = file.read(LENGTH_BYTES)
    if len(prefix) < LENGTH_BYTES:
        raise _damaged(path, f"of {size} bytes it cannot be a safetensors file, which begins with {LENGTH_BYTES}")
    (length,) = struct.unpack("<Q", prefix)
    if length > size - LENGTH_BYTES:
        raise _damaged(path, f"its header claims {length} bytes, but {size - LENGTH_BYTES} are there")
    if length > LARGEST_HEADER:
        raise UnsafeFileError(
            f"its header has {length} bytes, more than the {LARGEST_HEADER} that are read",
            file=path,
            remedy="save it in several files",
        )
    return file.read(length), size - LENGTH_BYTES - length


def _entry(path: Path, name: str, raw: object) -> TensorEntry:
    if not isinstance(raw, dict) or not raw.keys() >= {"dtype", "shape", "data_offsets"}:
        raise _damaged(path, f"{shown(raw)} must hold dtype, shape and data_offsets", name)
    shape, offsets = raw["shape"], raw["data_offsets"]
    if not _are_sizes(shape) or len(shape) > MOST_DIMENSIONS:
        raise _damaged(
            path, f"shape = {shown(shape)} must be at most {MOST_DIMENSIONS} whole numbers from 0 to 2^63 − 1", name
        )
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _damaged(path, f"data_offsets = {shown(offsets)} must be two rising whole numbers", name)
    dtype = SAFETENSORS_DTYPES.get(raw["dtype"]) if isinstance(raw["dtype"], str) else None
    if dtype is None:
        raise UnsuitableFileError(
            f"it has the unsupported dtype {shown(raw['dtype'])}",
            file=path,
            place=name,
            remedy=f"save it in one of {', '.join(SAFETENSORS_DTYPES)}",
        )
    needed, given = prod(shape) * dtype.itemsize, offsets[1] - offsets[0]
    if needed != given:
        raise _damaged(path, f"shape {shown(shape)} of {raw['dtype']} is {needed} bytes, but {given} are given", name)
    if prod(size or 1 for size in shape) > LARGEST_SIZE:  # no bytes, but strides that overflow
        raise _damaged(path, f"shape {shown(shape)} is beyond what a tensor can have", name)
    return TensorEntry(tuple(shape), dtype, *offsets)


def _are_sizes(value: object) -> bool:
    """Whether it is a list of sizes; `true` is none, though Python counts with it."""
    return isinstance(value, list) and all(type(size) is int and 0 <= size <= LARGEST_SIZE for size in value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = next(name for name, n in Counter(name for name, _ in pairs).items() if n > 1)
        raise ValueError(f"{shown(twice)} is there twice")
    return content


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _damaged(path: Path, problem: str, place: str = "") -> DamagedFileError:
    return DamagedFileError(problem, file=path, place=place, remedy=AGAIN)
