"""Replace a directory's checkpoint so that a crash never leaves a half of one that could be taken for whole.

New files are written into a hidden directory beside the old ones and forced to the disk. Only then the file by which a
checkpoint is known (its config) is removed, the weights are moved into place, and the new config comes last. An
interruption before that leaves the old checkpoint; within it (a few renames), a directory that is refused by
name; after it, the new one.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PREFIX = ".saving-"


@contextmanager
def staged_files(folder: Path, *, last: str, stale: Sequence[str] = ()) -> Iterator[Path]:
    """Give the block a directory to write files into; move them to `folder` when it ends well, drop them when not.

    Args:
        folder: where the files shall be in the end; made if needed.
        last: the file without which the others mean nothing: removed before they change, moved after they did.
        stale: patterns of files of an earlier save, removed from `folder` if they were not written anew.

    Raises:
        OSError: the system refuses (a full disk, say); the message names the directory, and the old files are there.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f"{PREFIX}*"):  # of a process that was killed while it wrote
        shutil.rmtree(leftover)
    staging = Path(tempfile.mkdtemp(prefix=PREFIX, dir=folder))
    try:
        yield staging
        _commit(staging, folder, last, stale)
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, f"{error.strerror}, while saving", str(folder)) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if made and not any(folder.iterdir()):
            folder.rmdir()


def _commit(staging: Path, folder: Path, last: str, stale: Sequence[str]) -> None:
    names = sorted(file.name for file in staging.iterdir())
    for name in names:
        _sync(staging / name)
    (folder / last).unlink(missing_ok=True)
    _sync(folder)
    for pattern in stale:
        for old in folder.glob(pattern):
            if old.name not in names:
                old.unlink()
    for name in names:
        if name != last:
            os.replace(staging / name, folder / name)
    _sync(folder)  # the weights' names must be on the disk before the name that vouches for them
    os.replace(staging / last, folder / last)
    _sync(folder)


def _sync(path: Path) -> None:
    """Force a file or directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
