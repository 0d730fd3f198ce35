"""Which checkpoint a run goes on from: the newest that is whole, the one that is named, or none."""

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from files import FileError, UnsuitableFileError, remove_folder, sync
from files.locks import locked
from files.writing import make_folder, settle
from training.fingerprint import check_fingerprint
from training.manifest import RUN, STEP_NAME, read_run, step_folders, verify
from training.team import ALONE, Team

AUTO = "auto"
ABANDONED = ".abandoned-"


@contextmanager
def alone_in(folder: Path, team: Team = ALONE) -> Iterator[None]:
    """One run at a time in a directory, made if needed: two would drop each other's checkpoints.

    A run that leaves nothing in a new directory leaves none.

    Raises:
        ValueError: another run is at work there, or it is no directory.
    """
    with ExitStack() as held:
        with team.together():
            if folder.exists() and not folder.is_dir():
                raise ValueError(f"{folder} is a file: give another --output")
            if team.leads and not folder.exists():
                held.callback(_remove_empty, folder)
            make_folder(folder)
            if team.leads and not held.enter_context(locked(folder)):
                raise ValueError(f"another run is at work in {folder}: stop it, or choose another --output")
        yield


def find_checkpoint(
    folder: Path, resume: str, *, team: Team = ALONE, say: Callable[[str], None] = print
) -> Path | None:
    """The checkpoint to go on from, verified, the same on all ranks; None begins a new run.

    Args:
        folder: where this run's checkpoints lie, or will.
        resume: "": a new run, which does not begin among the checkpoints of an old one.
            "auto": the newest that is whole; damaged ones are named. Where there are none at all, a new run.
            Else a checkpoint's directory, which must be whole; or a run's, or that of its checkpoints: as "auto" there,
            but there must be one.
        say: is told what is decided.

    Raises:
        ValueError: there is a checkpoint and it was not asked for, or none where one was named.
        FileError: what was named is damaged; or there are checkpoints, but none that can be used.
    """
    with team.together():
        if team.leads and folder.is_dir():
            settle(folder)
        found = step_folders(folder)
    found = team.leaders(found)
    if not resume:
        if found:
            raise ValueError(
                f"{found[-1]} is of an earlier run: add --resume auto to go on, or choose another --output"
            )
        return None
    if resume == AUTO:
        if not found:
            say(f"no checkpoint in {folder}: a new run begins")
            return None
        return _newest_whole(folder, found, team, say)
    return _named(Path(resume), team, say)


def check_same_run(
    checkpoint: Path, fingerprint: Mapping[str, str], *, may_change: Collection[str] = (), team: Team = ALONE
) -> None:
    """Refuse a checkpoint of another run by what is known before the base is loaded; `load_state` looks at the rest.

    Raises:
        UnsuitableFileError: names every difference with both values.
    """
    with team.together():
        then = read_run(checkpoint).fingerprint
        check_fingerprint(checkpoint, {name: then[name] for name in then if name != "base"}, fingerprint, may_change)


def abandon_later(folder: Path, checkpoint: Path, *, team: Team = ALONE, say: Callable[[str], None] = print) -> None:
    """Set aside the checkpoints under `folder` that are later than the one a run has gone on from.

    They are of a future that is about to be rewritten, and must not be taken for the newest. The last of them stays
    under a name that nothing looks for; it can still be named in --resume. Call it when the checkpoint was loaded.
    """
    later: list[Path] = []
    with team.together():
        step = read_run(checkpoint).step
        if team.leads:
            later = [path for path in step_folders(folder) if _step(path) > step]
            _set_aside(folder, later)
    later = team.leaders(later)
    if later:
        last = f"{ABANDONED}{later[-1].name}"
        say(f"{later[-1].name} is later than step {step}, and its steps will be taken anew: it is kept as {last}")
        if earlier := [path.name for path in later[:-1]]:
            say(f"removed for the same reason: {', '.join(earlier)}")


# --- Parts ---


def _newest_whole(folder: Path, found: Sequence[Path], team: Team, say: Callable[[str], None]) -> Path:
    problems = []
    for checkpoint in reversed(found):
        try:
            verify(checkpoint, team)
        except (FileError, OSError) as error:
            problems.append(str(error))
            say(f"{checkpoint.name} cannot be used: {error}")
            continue
        say(f"going on from {checkpoint}{' instead' if problems else ''}")
        return checkpoint
    raise UnsuitableFileError(
        f"none of its {len(found)} checkpoints can be used ({problems[0]})",
        file=folder,
        remedy="put back a copy of one, or begin a new run in another --output",
    )


def _named(path: Path, team: Team, say: Callable[[str], None]) -> Path:
    with team.together():
        is_checkpoint = path.is_dir() and bool(STEP_NAME.fullmatch(path.name) or (path / RUN).exists())
        places = [] if is_checkpoint else [each for each in (path, path / "checkpoints") if step_folders(each)]
        if not is_checkpoint and not places:
            what = "holds no checkpoint" if path.is_dir() else "is not a directory"
            raise ValueError(f"--resume {path}: it {what}; give a step-… directory, a run's directory, or auto")
        found = step_folders(places[0]) if places else []
    if places:
        return _newest_whole(places[0], team.leaders(found), team, say)
    verify(path, team)
    say(f"going on from {path}")
    return path


def _set_aside(folder: Path, later: Sequence[Path]) -> None:
    """All out of sight first, the newest before the others; then all go but the last."""
    for path in reversed(later):
        aside = folder / f"{ABANDONED}{path.name}"
        if aside.exists():
            remove_folder(aside)
        os.replace(path, aside)
    if later:
        sync(folder)
    hidden = [folder / f"{ABANDONED}{path.name}" for path in later]
    found = folder.glob(f"{ABANDONED}*")
    there = sorted((path for path in found if STEP_NAME.fullmatch(path.name.removeprefix(ABANDONED))), key=_step)
    kept = hidden[-1:] or there[-1:]
    for surplus in there:
        if surplus not in kept:
            remove_folder(surplus)


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # what is not empty stays
        folder.rmdir()


def _step(path: Path) -> int:
    return int(path.name.rpartition("-")[2])
