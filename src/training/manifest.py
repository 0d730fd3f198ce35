"""A checkpoint's `run.json`: how far the run is, and the size and SHA-256 of every file beside it.

It is written last, and carries a sum of its own values. So a byte that changed, a file that was cut, lost, swapped or
added is found before anything is read from it, and named.
"""

import hashlib
import json
import re
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from files import DamagedFileError, FileError, UnsuitableFileError, json_text, read_json_object, sha256_of
from training.team import ALONE, LostProcessError, Team

RUN = "run.json"
VERSION = 2
STEP_NAME = re.compile(r"step-(\d{8,})")
EARLIER = "resume from an earlier checkpoint"


@dataclass(frozen=True)
class RunFile:
    """What `run.json` holds.

    Attributes:
        step, tokens, fingerprint: see `training.state.RunPosition`.
        world_size: how many processes trained; another number may go on.
        optimizer_steps: how often the optimizer has updated each parameter, by name.
        tensors: shape and dtype of each tensor saved, as `form` spells them: parameters, and moments as
            `PARAMETER.KEY`.
        manifest: {file: {"bytes": size, "sha256": hexadecimal}} of every other file.
    """

    step: int
    tokens: int
    fingerprint: dict[str, str]
    world_size: int
    optimizer_steps: dict[str, int]
    tensors: dict[str, str]
    manifest: dict[str, dict[str, Any]]

    def text(self) -> bytes:
        """The file's bytes."""
        content = {"version": VERSION} | asdict(self)
        return json_text(content | {"sha256": _sum(content)})


def measured(folder: Path, names: Collection[str]) -> dict[str, dict[str, Any]]:
    """The manifest's entries of some files, read back from where they were written."""
    return {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)} for name in sorted(names)
    }


def step_name(step: int) -> str:
    """The name of a checkpoint's directory.

    >>> step_name(120)
    'step-00000120'
    """
    return f"step-{step:08d}"


def step_folders(folder: Path) -> list[Path]:
    """The directories under `folder` that are named as checkpoints, whole or not, oldest first."""
    found = [path for path in folder.glob("step-*") if STEP_NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints under `folder`, oldest first. Whether they are undamaged, `verify` finds out."""
    return [path for path in step_folders(folder) if (path / RUN).is_file()]


def read_run(checkpoint: Path) -> RunFile:
    """What a checkpoint's `run.json` says, once it is found to vouch for itself.

    Raises:
        DamagedFileError: it is missing, or not what was written.
        UnsuitableFileError: it is of another format.
    """
    file = checkpoint / RUN
    if not file.is_file():
        raise DamagedFileError("it is missing, so the checkpoint is not whole", file=file, remedy=EARLIER)
    content = read_json_object(file)
    version = content.pop("version", 1)
    if version == 1 and isinstance(content.get("sha256"), dict):
        raise UnsuitableFileError(
            "it is of the earlier format with optimizer.pt, which this version does not read",
            file=file,
            remedy="finish that run with the version that began it, or begin a new one in another --output",
        )
    if type(version) is int and version > VERSION:
        raise UnsuitableFileError(
            f"it is of format {version}, and this version reads {VERSION}", file=file, remedy="update the program"
        )
    own_sum = content.pop("sha256", None)
    if version != VERSION or own_sum != _sum({"version": version} | content):
        raise DamagedFileError("it is not what was written: its own sum is another", file=file, remedy=EARLIER)
    run = _typed(file, content)
    named = STEP_NAME.fullmatch(checkpoint.name)
    if named and int(named[1]) != run.step:
        problem = f"it is of step {run.step}, but lies in {checkpoint.name}: directories were swapped"
        raise DamagedFileError(problem, file=file, remedy=f"rename its directory to {step_name(run.step)}")
    return run


def verify(checkpoint: Path, team: Team = ALONE) -> None:
    """Check that a checkpoint's directory holds what was written into it, whole, and nothing else.

    The ranks share the reading, and raise together: each raises what it found itself, or what another did.

    Raises:
        DamagedFileError: a file is missing, there in excess, of another size or another SHA-256.
        UnsuitableFileError: it is of another format.
        OSError: the system refuses to read.
    """
    on_all_ranks(team, lambda: _verify_share(checkpoint, team))


def on_all_ranks(team: Team, check: Callable[[], None]) -> None:
    """Run a check that may fail on one rank alone, and let it fail on all: with the same kind of error if it is about
    a file, so that all of them can take the same way out."""
    failure: Exception | None = None
    try:
        check()
    except Exception as error:
        failure = error
    packed = team.everyones(None if failure is None else _packed(failure))
    if failure is not None:
        raise failure
    for rank, problem in enumerate(packed):
        if problem is not None:
            raise _unpacked(problem, rank, team)


# --- Parts ---


def _verify_share(checkpoint: Path, team: Team) -> None:
    manifest = read_run(checkpoint).manifest
    there = {path.name for path in checkpoint.iterdir()} - {RUN}
    for name in sorted(manifest):
        if name not in there:
            problem = "it is missing, so the checkpoint is not whole"
            raise DamagedFileError(problem, file=checkpoint / name, remedy=EARLIER)
    for name in sorted(there - manifest.keys()):
        problem = f"it is no part of the checkpoint: {RUN} does not list it"
        raise DamagedFileError(problem, file=checkpoint / name, remedy="move it elsewhere")
    for number, name in enumerate(sorted(manifest)):
        file, expected = checkpoint / name, manifest[name]
        if (size := file.stat().st_size) != expected["bytes"]:
            problem = f"it is damaged: it has {size:,} bytes, and {RUN} says {expected['bytes']:,}"
            raise DamagedFileError(problem, file=file, remedy=EARLIER)
        if number % team.size == team.rank and sha256_of(file) != expected["sha256"]:
            problem = f"it is damaged: its SHA-256 is not the one in {RUN}"
            raise DamagedFileError(problem, file=file, remedy=EARLIER)


def _sum(content: dict[str, Any]) -> str:
    """SHA-256 of the values, however a file spells them."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _typed(file: Path, content: dict[str, Any]) -> RunFile:
    """The content as a RunFile. What vouches for itself may still have been forged."""

    def is_count(value: object) -> bool:
        return type(value) is int and 0 <= value < 2**63

    def is_map(value: object, fits: Callable[[Any], bool]) -> bool:
        return isinstance(value, dict) and all(map(fits, value.values()))

    def is_text(value: object) -> bool:
        return isinstance(value, str)

    def is_entry(value: Any) -> bool:
        return is_map(value, lambda _: True) and is_count(value.get("bytes")) and is_text(value.get("sha256"))

    checks: dict[str, Callable[[Any], bool]] = {
        "step": is_count,
        "tokens": is_count,
        "fingerprint": lambda value: is_map(value, is_text),
        "world_size": is_count,
        "optimizer_steps": lambda value: is_map(value, is_count),
        "tensors": lambda value: is_map(value, is_text),
        "manifest": lambda value: is_map(value, is_entry),
    }
    wrong = sorted(content.keys() ^ checks.keys()) or [name for name, fits in checks.items() if not fits(content[name])]
    if wrong:
        raise DamagedFileError("it does not describe a run", file=file, place=wrong[0], remedy=EARLIER)
    return RunFile(**content)


def _packed(error: Exception) -> tuple[Any, ...]:
    """An error in a form that can be sent to other processes."""
    if isinstance(error, FileError):
        return type(error), error.problem, str(error.file), error.place, error.remedy
    if isinstance(error, OSError):
        return OSError, error.errno, error.strerror, error.filename and str(error.filename)
    return LostProcessError, f"{type(error).__name__}: {error}"


def _unpacked(packed: tuple[Any, ...], rank: int, team: Team) -> Exception:
    kind, *rest = packed
    if issubclass(kind, FileError):
        problem, file, place, remedy = rest
        return kind(problem, file=file, place=place, remedy=remedy)
    if kind is OSError:
        return OSError(*rest)
    return LostProcessError(f"rank {rank} of {team.size} failed: {rest[0]}")
