"""Which checkpoint a run goes on from: every decision is taken alike by all ranks, and said."""

import os
import shutil
from functools import partial
from pathlib import Path

import pytest
from power_cut import PowerCut, cut_power
from tiny_runs import FILES, OPTIMIZER, TRAINABLE, ThreadTeam, a_checkpoint, run_team

from files import DamagedFileError, UnsuitableFileError
from training import abandon_later, alone_in, find_checkpoint, resume
from training.manifest import step_folders, verify

STEP_1, STEP_2, STEP_3 = (f"step-0000000{n}" for n in (1, 2, 3))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with three checkpoints."""
    folder = tmp_path_factory.mktemp("run")
    for step in (1, 2, 3):
        a_checkpoint(folder / "checkpoints", seed=step, step=step, keep=3)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """Its checkpoints, copied."""
    return shutil.copytree(original, tmp_path / "run") / "checkpoints"


def damage(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def find(folder: Path, resume: str) -> tuple[Path | None, list[str]]:
    said: list[str] = []
    return find_checkpoint(folder, resume, say=said.append), said


# --- A new run ---


def test_where_nothing_is_a_new_run_begins(tmp_path):
    for folder in (tmp_path / "not there", tmp_path):
        assert find(folder, "") == (None, [])
        assert find(folder, "auto") == (None, [f"no checkpoint in {folder}: a new run begins"])


def test_a_new_run_does_not_begin_among_old_checkpoints(folder):
    message = f"{STEP_3} is of an earlier run: add --resume auto to go on, or choose another --output"
    with pytest.raises(ValueError, match=message):
        find(folder, "")
    for checkpoint in folder.iterdir():
        (checkpoint / "run.json").unlink()  # nor among their remains
    with pytest.raises(ValueError, match=message):
        find(folder, "")


# --- The newest ---


def test_auto_takes_the_newest(folder):
    assert find(folder, "auto") == (folder / STEP_3, [f"going on from {folder / STEP_3}"])


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_one_is_named_and_the_one_before_it_taken(folder, name, count_faults):
    (folder / STEP_3 / name).unlink()
    (folder / STEP_2 / name).write_bytes((folder / STEP_2 / name).read_bytes()[:-5])
    found, said = find(folder, "auto")
    assert found == folder / STEP_1
    assert said[0].startswith(f"{STEP_3} cannot be used: {folder / STEP_3 / name}: it is missing")
    assert said[1].startswith(f"{STEP_2} cannot be used: {folder / STEP_2 / name}: it is ")
    assert said[2:] == [f"going on from {folder / STEP_1} instead"]
    count_faults("missing or swapped files")
    count_faults("truncated files")


def test_one_that_cannot_be_read_counts_as_damaged(folder):
    file = folder / STEP_3 / TRAINABLE
    file.unlink()
    os.symlink(file.name, file)  # to itself: an error of the system's
    found, [problem, _] = find(folder, "auto")
    assert found == folder / STEP_2 and "Too many levels of symbolic links" in problem and TRAINABLE in problem


def test_a_run_is_never_silently_begun_anew(folder):
    for checkpoint in folder.iterdir():
        damage(checkpoint / OPTIMIZER)
    said: list[str] = []
    with pytest.raises(
        UnsuitableFileError, match=r"none of its 3 checkpoints can be used \(.*step-00000003/opt.*; put"
    ):
        find_checkpoint(folder, "auto", say=said.append)
    assert len(said) == 3


def test_what_an_interrupted_save_left_is_put_right(folder):
    (folder / STEP_3).rename(folder / f".saving-replaced-{STEP_3}")
    (folder / ".saving-step-00000004").mkdir()
    assert find(folder, "auto")[0] == folder / STEP_3
    assert sorted(path.name for path in folder.iterdir()) == [STEP_1, STEP_2, STEP_3]


# --- One that is named ---


def test_a_checkpoint_can_be_named(folder):
    assert find(folder, str(folder / STEP_2)) == (folder / STEP_2, [f"going on from {folder / STEP_2}"])
    best = (folder / STEP_1).rename(folder / "best")
    assert find(folder, str(best))[0] == best


def test_one_that_is_named_and_damaged_is_an_error_without_a_way_round(folder):
    damage(folder / STEP_2 / TRAINABLE)
    with pytest.raises(DamagedFileError, match=rf"{STEP_2}/{TRAINABLE}: it is damaged"):
        find(folder, str(folder / STEP_2))
    (folder / STEP_3 / "run.json").unlink()
    with pytest.raises(DamagedFileError, match=rf"{STEP_3}/run\.json: it is missing"):
        find(folder, str(folder / STEP_3))


def test_a_run_can_be_named(folder, tmp_path):
    damage(folder / STEP_3 / TRAINABLE)
    for named in (folder, folder.parent):
        found, said = find(tmp_path / "new", str(named))
        assert found == folder / STEP_2 and len(said) == 2


def test_a_name_of_nothing_is_an_error(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for name, what in (
        ("empty", "holds no checkpoint"),
        ("file", "is not a directory"),
        ("none", "is not a directory"),
    ):
        with pytest.raises(ValueError, match=rf"--resume {tmp_path / name}: it {what}; give .* or auto"):
            find(folder, str(tmp_path / name))


# --- A future that is taken anew ---


def test_later_checkpoints_are_set_aside(folder):
    said: list[str] = []
    abandon_later(folder, folder / STEP_2, say=said.append)
    assert said == [
        f"{STEP_3} is later than step 2, and its steps will be taken anew: it is kept as .abandoned-{STEP_3}"
    ]
    assert find(folder, "auto")[0] == folder / STEP_2
    said.clear()
    abandon_later(folder, folder / STEP_2, say=said.append)
    assert said == [] and (folder / f".abandoned-{STEP_3}").is_dir()
    abandon_later(folder, folder / STEP_1, say=said.append)  # one is kept: the later future of the last time
    assert sorted(path.name for path in folder.iterdir()) == [f".abandoned-{STEP_2}", STEP_1]
    assert find(folder, str(folder / f".abandoned-{STEP_2}"))[0] == folder / f".abandoned-{STEP_2}"


def test_of_several_the_last_is_kept(folder):
    said: list[str] = []
    shutil.copytree(folder / STEP_3, folder / f".abandoned-{STEP_3}")
    (folder / f".abandoned-{STEP_3}" / "old").touch()
    abandon_later(folder, folder / STEP_1, say=said.append)
    assert said[1] == f"removed for the same reason: {STEP_2}"
    assert sorted(path.name for path in folder.iterdir()) == [f".abandoned-{STEP_3}", STEP_1]
    assert not (folder / f".abandoned-{STEP_3}" / "old").exists()


def test_a_power_cut_leaves_no_half_checkpoint_behind(folder, tmp_path, monkeypatch, count_faults):
    monkeypatch.setattr(os, "fsync", lambda _: None)
    for n in range(1, 100):
        copy = shutil.copytree(folder, tmp_path / str(n))
        with monkeypatch.context() as patched:
            cut_power(patched, n)
            try:
                abandon_later(copy, copy / STEP_1, say=lambda _: None)
            except PowerCut:
                pass
            else:
                break
        newest, _ = find(copy, "auto")
        for left in copy.glob("step-*"):
            verify(left)
        assert newest is not None and newest.name in (STEP_1, STEP_2, STEP_3)
        abandon_later(copy, copy / STEP_1, say=lambda _: None)  # again, as a run that was cut off here does
        find(copy, "auto")  # and this removes what was half removed
        left = {path.name for path in copy.iterdir()}
        assert left <= {STEP_1, f".abandoned-{STEP_2}", f".abandoned-{STEP_3}"} and STEP_1 in left and len(left) == 2
    assert n > 5
    count_faults("power cuts", n - 1)


# --- A team ---


def test_all_ranks_go_on_from_the_same(folder, count_faults):
    files = sorted(set(FILES) - {"run.json"})
    for number, step in enumerate((STEP_3, STEP_2)):  # a file that rank 0 reads, one that rank 1 reads
        damage(folder / step / files[number])
    said: list[list[str]] = [[], []]

    def found(team: ThreadTeam) -> Path | None:
        return find_checkpoint(folder, "auto", team=team, say=said[team.rank].append)

    assert run_team(2, found) == [folder / STEP_1] * 2
    assert said[0] == said[1] and len(said[0]) == 3
    count_faults("flipped bytes", 2)
    damage(folder / STEP_1 / files[1])
    errors = run_team(2, found)
    assert all(isinstance(error, UnsuitableFileError) for error in errors) and str(errors[0]) == str(errors[1])


def test_all_ranks_abandon_the_same(folder):
    said: list[list[str]] = [[], []]

    def abandon(step: str, team: ThreadTeam) -> None:
        abandon_later(folder, folder / step, team=team, say=said[team.rank].append)

    assert run_team(2, partial(abandon, STEP_1)) == [None, None]
    assert said[0] == said[1] and len(said[0]) == 2
    assert sorted(path.name for path in folder.iterdir()) == [f".abandoned-{STEP_3}", STEP_1]


def test_rank_0_says_what_is_there(folder, monkeypatch):
    """A directory may look otherwise from another machine, or a moment later."""
    seen: list[Path] = []

    def once(place: Path) -> list[Path]:
        seen.append(place)
        return step_folders(place) if len(seen) == 1 else []

    monkeypatch.setattr(resume, "step_folders", once)
    first, second = run_team(2, lambda team: find_checkpoint(folder, "auto", team=team, say=lambda _: None))
    assert first == second and len(seen) == 2


def test_a_second_run_in_a_directory_is_refused(tmp_path):
    refused = pytest.raises(ValueError, match=r"another run is at work in .*/run")
    with alone_in(tmp_path / "run"), refused, alone_in(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()  # nothing was left in it


def test_a_directory_with_a_result_stays_and_a_file_is_no_directory(tmp_path):
    with alone_in(tmp_path / "run"):
        (tmp_path / "run" / "result").write_text("")
    assert (tmp_path / "run" / "result").exists()
    with pytest.raises(ValueError, match=r"result is a file: give another --output"), alone_in(tmp_path / "run/result"):
        pass
