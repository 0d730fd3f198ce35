"""Writing files so that an interruption, a power cut included, leaves the old ones or the new ones, never a half.

The order is the same everywhere: write under a name that nobody reads, force to the disk, rename, force the directory
to the disk, which holds the names. What a killed process left is removed by the next; a living one's drafts are locked.

    write_whole     one small file
    staged_files    several files that belong together, into a directory that holds others
    whole_folder    a directory that appears complete; `drafted` and `publish` are its two halves
"""

import errno
import glob
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from files.locks import is_locked, locked, locked_draft
from files.tensors import SAFETENSORS_DTYPES, StoredTensor

PREFIX = ".saving-"
REPLACED, REMOVED = f"{PREFIX}replaced-", f"{PREFIX}removed-"
"""Names of directories on their way out: the first comes back if its successor never came, the second never."""

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
        with naming(path):
            for leftover in path.parent.glob(f"{glob.escape(f'{PREFIX}{path.name}.')}*"):
                with suppress(FileNotFoundError), locked(leftover) as nobodys:
                    if nobodys:
                        leftover.unlink(missing_ok=True)
            with locked_draft(draft):
                draft.write_bytes(content)
                sync(draft, named=path)
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
    make_folder(folder)
    settle(folder)
    staging = Path(tempfile.mkdtemp(prefix=PREFIX, dir=folder))
    try:
        with naming(folder), locked(staging):
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
        sync(staging / name, named=folder)
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
    """Give the block a directory to write files into, which becomes `folder` when it ends well and is dropped when not;
    errors are those of `drafted`."""
    with drafted(folder) as draft:
        yield draft
        publish(draft, folder)


@contextmanager
def drafted(folder: Path) -> Iterator[Path]:
    """Give the block a directory that nobody reads, beside `folder`; afterwards it is removed, unless published.

    Raises:
        FileExistsError: another process is writing the same directory.
        OSError: the system refuses (a full disk, say); the message names the directory.
    """
    make_folder(folder.parent)
    settle(folder.parent)
    draft = draft_of(folder)
    if draft.exists():
        raise FileExistsError(errno.EEXIST, "another process is saving here at this moment", str(folder))
    draft.mkdir()
    try:
        with naming(folder), locked(draft):
            yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def draft_of(folder: Path) -> Path:
    """Where `folder` is written before it gets its name."""
    return folder.with_name(f"{PREFIX}{folder.name}")


def publish(draft: Path, folder: Path) -> None:
    """Force a directory of files to the disk and give it its name; one that has the name already makes room.

    Interrupted between the two renames that this takes, the old directory comes back by `settle`.
    """
    for file in sorted(draft.iterdir()):
        sync(file)
    sync(draft)
    replaced = folder.with_name(f"{REPLACED}{folder.name}")
    if folder.exists():
        os.replace(folder, replaced)
    try:
        os.replace(draft, folder)
    except OSError:
        settle(folder.parent)
        raise
    sync(folder.parent)
    if replaced.exists():
        remove_folder(replaced)


def remove_folder(folder: Path) -> None:
    """Remove a directory with all that is in it, so that an interruption never leaves half of it under its name."""
    doomed = folder.with_name(f"{REMOVED}{folder.name.removeprefix(REPLACED)}")
    if doomed.exists():  # half removed, by a process that was killed
        shutil.rmtree(doomed)
    os.replace(folder, doomed)
    sync(folder.parent)
    shutil.rmtree(doomed)


def settle(folder: Path) -> None:
    """Undo, in a directory, what interrupted processes left: drafts are removed, what was never replaced comes back."""
    for leftover in sorted(folder.glob(f"{PREFIX}*")):
        if not leftover.is_dir() or is_locked(leftover):
            continue
        name = leftover.name.removeprefix(REPLACED)
        if name == leftover.name:
            shutil.rmtree(leftover)
        elif (folder / name).exists():
            remove_folder(leftover)
        else:
            os.replace(leftover, folder / name)
            sync(folder)


def check_space(folder: Path, n_bytes: int) -> None:
    """Refuse to begin what would not fit on the disk that holds `folder` (which need not be there yet).

    Raises:
        OSError: ENOSPC, as the disk would say later; with both numbers and the directory.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    usage = shutil.disk_usage(there)
    if n_bytes > usage.free and usage.total:  # some network file systems do not say how large they are
        problem = f"{os.strerror(errno.ENOSPC)}: {n_bytes:,} bytes are needed, {usage.free:,} are free; make room"
        raise OSError(errno.ENOSPC, problem, str(folder))


def sync(path: Path, *, named: Path | None = None) -> None:
    """Force a file or directory to the disk.

    Args:
        named: what an error names; of a draft, the file that it will be.
    """
    with naming(named or path):
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


def make_folder(folder: Path) -> None:
    """Make a directory that may be there already; the names of those made are on the disk afterwards."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in reversed(missing):
        sync(made.parent)


def _same(a: Path, b: Path) -> bool:
    return b.is_file() and a.read_bytes() == b.read_bytes()


@contextmanager
def naming(target: Path) -> Iterator[None]:
    """Say what was being saved where the system's error names no file."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, f"{error.strerror}, while saving", str(target)) from error
