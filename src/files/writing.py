"""Writing files so that an interruption, a power cut included, leaves the old ones or the new ones, never a half.

The order is the same everywhere: write under a name that nobody reads, force to the disk, rename, force the directory
to the disk, which holds the names. Directories that an interrupted process left behind are removed by the next one.

    write_whole     one small file
    staged_files    several files that belong together, into a directory that holds others
    whole_folder    a directory that appears complete
"""

import json
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from files.tensors import SAFETENSORS_DTYPES, StoredTensor

PREFIX = ".saving-"
SAFETENSORS_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
ALIGNMENT = 64
"""Bytes in a cache line, and in the widest vector register."""


def write_whole(path: Path, content: bytes) -> None:
    """Write one file, or leave the one that is there.

    Raises:
        OSError: the system refuses (a full disk, say); the message names `path`.
    """
    # Two processes that write the same file must not mix: one of them wins.
    draft = path.with_name(f"{PREFIX}{path.name}.{os.getpid()}")
    try:
        with _naming(path):
            draft.write_bytes(content)
            sync(draft)
            os.replace(draft, path)
            sync(path.parent)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def staged_files(folder: Path, *, last: str, stale: Sequence[str] = ()) -> Iterator[Path]:
    """Give the block a directory to write files into; move them to `folder` when it ends well, drop them when not.

    The file by which a set is known (its config) is removed, the others are moved into place, and the new config comes
    last. An interruption before that leaves the old set; within it (a few renames), a directory that is refused by
    name; after it, the new one. Where a single other file changes and the config does not, one rename is the whole
    change, and nothing is removed.

    Args:
        folder: where the files shall be in the end; made if needed.
        last: the file without which the others mean nothing.
        stale: patterns of files of an earlier save, removed from `folder` if they were not written anew.

    Raises:
        OSError: the system refuses (a full disk, say); the message names the directory, and the old files are there.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    _clear(folder)
    staging = Path(tempfile.mkdtemp(prefix=PREFIX, dir=folder))
    try:
        with _naming(folder):
            yield staging
            _commit(staging, folder, last, stale)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if made and not any(folder.iterdir()):
            folder.rmdir()


def _commit(staging: Path, folder: Path, last: str, stale: Sequence[str]) -> None:
    names = sorted(file.name for file in staging.iterdir())
    others = [name for name in names if name != last]
    old = [file for pattern in stale for file in folder.glob(pattern) if file.name not in names]
    for name in names:
        sync(staging / name)
    if len(others) > 1 or old or not _same(staging / last, folder / last):
        (folder / last).unlink(missing_ok=True)
        sync(folder)
    for file in old:
        file.unlink(missing_ok=True)
    for name in others:
        os.replace(staging / name, folder / name)
    sync(folder)  # the others' names must be on the disk before the name that vouches for them
    os.replace(staging / last, folder / last)
    sync(folder)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give the block a directory to write files into, which becomes `folder` when it ends well and is dropped when not.

    Raises:
        OSError: the system refuses (a full disk, say); the message names the directory.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _clear(folder.parent)
    draft = folder.with_name(f"{PREFIX}{folder.name}")
    draft.mkdir()
    try:
        with _naming(folder):
            yield draft
            for file in sorted(draft.iterdir()):
                sync(file)
            sync(draft)
            doomed = _set_aside(folder) if folder.exists() else None
            os.replace(draft, folder)
            sync(folder.parent)
            if doomed is not None:
                shutil.rmtree(doomed)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a directory with all that is in it, so that an interruption never leaves half of it under its name."""
    doomed = _set_aside(folder)
    sync(folder.parent)
    shutil.rmtree(doomed)


def sync(path: Path) -> None:
    """Force a file or directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- Formats; none of these is durable by itself ---


def json_text(content: Mapping[str, Any]) -> bytes:
    """A JSON object as the bytes of a file: indented, UTF-8. What JSON has no number for (NaN) is a ValueError.

    >>> json_text({"r": 8})
    b'{\\n  "r": 8\\n}\\n'
    """
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_safetensors(path: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """Write a safetensors file tensor by tensor.

    The format: the header's length as 8 bytes, little-endian; the header, JSON with each tensor's dtype, shape and
    place among the bytes that follow; those bytes, without a gap. safetensors' own writer wants all tensors in memory.

    A tensor of a multiple of 64 bytes begins at a multiple of 64, so that a memory map of the file can be computed
    with as it is; the others follow, each at a multiple of its numbers' width.
    """
    ordered = sorted(tensors.items(), key=lambda item: _rank(item[1]))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers and peft ask which framework wrote it
    offset = 0
    for name, stored in ordered:
        end = offset + stored.nbytes
        dtype = SAFETENSORS_NAMES[stored.dtype]
        header[name] = {"dtype": dtype, "shape": list(stored.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, stored in ordered:
            file.write(raw_bytes(stored.read()))


def _rank(stored: StoredTensor) -> int:
    """Whole cache lines first, in the order given; of the rest wider numbers first, whose sizes align the narrower."""
    return 0 if stored.nbytes % ALIGNMENT == 0 else ALIGNMENT - stored.dtype.itemsize


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor's values, row by row, as a file holds them.

    >>> bytes(raw_bytes(torch.tensor([1, 258], dtype=torch.int16)))
    b'\\x01\\x00\\x02\\x01'
    """
    return tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data


def write_pickle(path: Path, content: object) -> None:
    """`torch.save`, whose errors are the system's: a full disk is an OSError."""
    with path.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # torch's zip writer reports a full disk as a mismatch of its own counts, raised over the system's reason.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


# --- Parts ---


def _set_aside(folder: Path) -> Path:
    """Give a directory a name under which nobody looks for it."""
    aside = folder.with_name(f"{PREFIX}old-{folder.name}")
    if aside.exists():  # half removed, by a process that was killed
        shutil.rmtree(aside)
    os.replace(folder, aside)
    return aside


def _same(a: Path, b: Path) -> bool:
    return b.is_file() and a.read_bytes() == b.read_bytes()


def _clear(folder: Path) -> None:
    """Remove what a process left that was killed while it wrote."""
    for leftover in folder.glob(f"{PREFIX}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover)


@contextmanager
def _naming(target: Path) -> Iterator[None]:
    """Say what was being saved where the system's error names no file."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, f"{error.strerror}, while saving", str(target)) from error
