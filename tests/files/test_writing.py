"""Writing: at every instant the old or the new, whole; a full disk leaves what was there and nothing else."""

import errno
import json
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from power_cut import PowerCut, cut_power
from safetensors import safe_open

import files.writing
from files import (
    StoredTensor,
    json_text,
    read_json_object,
    read_pickle,
    remove_folder,
    staged_files,
    whole_folder,
    write_pickle,
    write_safetensors,
    write_whole,
)
from files.locks import locked
from files.writing import check_space, settle

FULL = OSError(28, "No space left on device")


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.iterdir()) if path.is_file()}


def write_set(folder: Path, version: int, *, n_parts: int = 2, config: str | None = None) -> None:
    """A config and parts that say which version they are of."""
    with staged_files(folder, last="config", stale=("part*",)) as staging:
        for part in range(n_parts):
            (staging / f"part{part}").write_bytes(f"part {version}".encode())
        (staging / "config").write_bytes((config or f"config {version}").encode())


@contextmanager
def at_most(n_bytes: int) -> Iterator[None]:
    """Files may not grow beyond this: the system refuses, with EFBIG instead of ENOSPC."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# --- One file ---


def test_order_of_operations_of_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = cut_power(monkeypatch, 1000)
    write_whole(tmp_path / "a", b"new")
    # Whole and on the disk before it gets its name; the folder, which holds the name, last.
    assert log == ["open", "write", "fsync", "replace", "fsync", "unlink"]


@pytest.mark.parametrize("n", range(1, 7))
def test_a_power_cut_leaves_the_old_or_the_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    write_whole(tmp_path / "a", b"old")
    with monkeypatch.context() as patched, pytest.raises(PowerCut):
        cut_power(patched, n)
        write_whole(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == (b"old" if n <= 4 else b"new")
    write_whole(tmp_path / "a", b"newer")
    assert (tmp_path / "a").read_bytes() == b"newer"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    write_whole(tmp_path / "a", b"old")

    def full(*_: object) -> None:
        raise FULL

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match=r"No space left on device, while saving: .*/a'"):
        write_whole(tmp_path / "a", b"new")
    assert contents(tmp_path) == {"a": "old"}


def test_a_file_that_does_not_fit_leaves_nothing(tmp_path: Path) -> None:
    with at_most(1000), pytest.raises(OSError, match="too large"):
        write_whole(tmp_path / "a", b"0" * 2000)
    assert list(tmp_path.iterdir()) == []


# --- A set of files ---


def test_order_of_operations_of_a_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path, 1, n_parts=3)
    log = cut_power(monkeypatch, 1000)
    write_set(tmp_path, 2, n_parts=2)
    written = ["mkdir", "mkdtemp", *["open", "write"] * 3, *["fsync"] * 3]
    gap = ["unlink", "fsync", "unlink"]  # the config; then a part of the old set
    assert log == [*written, *gap, "replace", "replace", "fsync", "replace", "fsync", "rmtree"]


def test_one_rename_where_one_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path, 1, n_parts=1, config="same")
    log = cut_power(monkeypatch, 1000)
    write_set(tmp_path, 2, n_parts=1, config="same")
    assert "unlink" not in log and log.count("replace") == 2
    assert contents(tmp_path) == {"config": "same", "part0": "part 2"}


@pytest.mark.parametrize(
    ("old_parts", "new_parts", "config"), [(2, 2, None), (3, 1, None), (1, 1, None), (2, 1, "same"), (1, 1, "same")]
)
def test_a_power_cut_never_mixes_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old_parts: int, new_parts: int, config: str | None
) -> None:
    old = {"config": config or "config 1"} | {f"part{part}": "part 1" for part in range(old_parts)}
    new = {"config": config or "config 2"} | {f"part{part}": "part 2" for part in range(new_parts)}
    outcomes = []
    for n in range(1, 100):
        folder = tmp_path / str(n)
        write_set(folder, 1, n_parts=old_parts, config=config)
        with monkeypatch.context() as patched:
            cut_power(patched, n)
            try:
                write_set(folder, 2, n_parts=new_parts, config=config)
            except PowerCut:
                pass
            else:
                break
        found = contents(folder)
        assert found in (old, new) or "config" not in found
        outcomes.append("old" if found == old else "new" if found == new else "none")
        write_set(folder, 2, n_parts=new_parts, config=config)
        assert contents(folder) == new and not list(folder.glob(".*"))
    assert outcomes == sorted(outcomes, key=["old", "none", "new"].index)
    assert {"old", "new"} <= set(outcomes) and len(outcomes) > 10
    assert ("none" in outcomes) == ((old_parts, new_parts, config) != (1, 1, "same"))


@pytest.mark.parametrize("existing", [True, False])
def test_a_full_disk_leaves_the_old_set(tmp_path: Path, existing: bool) -> None:
    folder = tmp_path / "set"
    if existing:
        write_set(folder, 1)
    with (
        at_most(1000),
        pytest.raises(OSError, match=r"while saving.*set"),
        staged_files(folder, last="config") as staging,
    ):
        (staging / "config").write_bytes(b"2")
        (staging / "part0").write_bytes(b"2" * 2000)
    if existing:
        assert contents(folder) == {"config": "config 1", "part0": "part 1", "part1": "part 1"}
    else:
        assert not folder.exists()


# --- A directory ---


def write_folder(folder: Path, version: int) -> None:
    with whole_folder(folder) as draft:
        for name in ("a", "b"):
            (draft / name).write_bytes(f"{name} {version}".encode())


@pytest.mark.parametrize("existing", [True, False])
def test_a_power_cut_leaves_a_whole_folder_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: bool
) -> None:
    old, new = ({"a": f"a {version}", "b": f"b {version}"} for version in (1, 2))
    outcomes = []
    for n in range(1, 100):
        folder = tmp_path / str(n) / "step"
        if existing:
            write_folder(folder, 1)
        with monkeypatch.context() as patched:
            log = cut_power(patched, n)
            try:
                write_folder(folder, 2)
            except PowerCut:
                pass
            else:
                break
        found = contents(folder) if folder.exists() else None
        assert found in (old, new, None)
        outcomes.append(found)
        if folder.parent.exists():
            settle(folder.parent)
        assert (contents(folder) if folder.exists() else None) == (found or (old if existing else None))
        write_folder(folder, 2)
        assert contents(folder) == new and [path.name for path in folder.parent.iterdir()] == ["step"]
    assert new in outcomes and outcomes[0] == (old if existing else None)
    assert outcomes.count(None) <= 1 or not existing  # only between two renames
    renames = ["replace"] * (2 if existing else 1)
    removal = ["replace", "fsync", "rmtree"] if existing else []
    order = [call for call in log if call in ("fsync", "replace", "rmtree")]
    # The folder above if it is new; the files and the draft, its name, the folder above; only then the old one goes.
    assert order == ["fsync"] * (3 if existing else 4) + renames + ["fsync"] + removal + ["rmtree"]


def test_the_names_of_new_directories_above_are_on_the_disk_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut must not lose the directory that holds a directory which was forced to the disk."""
    synced: list[Path] = []
    monkeypatch.setattr(files.writing, "sync", lambda path, named=None: synced.append(path))
    write_folder(tmp_path / "run" / "checkpoints" / "step", 1)
    draft = tmp_path / "run" / "checkpoints" / ".saving-step"
    assert synced == [tmp_path, tmp_path / "run", draft / "a", draft / "b", draft, tmp_path / "run" / "checkpoints"]
    synced.clear()
    with staged_files(tmp_path / "new", last="a") as staging:
        (staging / "a").touch()
    assert synced[0] == tmp_path


def test_a_full_disk_leaves_no_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "old", 1)
    with (
        at_most(1000),
        pytest.raises(OSError, match=r"while saving.*new"),
        whole_folder(tmp_path / "new") as draft,
    ):
        (draft / "a").write_bytes(b"2" * 2000)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_a_power_cut_never_removes_half_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in (1, 2, 3):
        folder = tmp_path / str(n) / "step"
        write_folder(folder, 1)
        with monkeypatch.context() as patched, pytest.raises(PowerCut):
            cut_power(patched, n)
            remove_folder(folder)
        assert not folder.exists() or contents(folder) == {"a": "a 1", "b": "b 1"}
        folder.mkdir(exist_ok=True)
        remove_folder(folder)  # what was left behind is no obstacle
        assert list(folder.parent.iterdir()) == []


def test_a_living_process_keeps_its_drafts_and_a_dead_one_does_not(tmp_path: Path) -> None:
    """`settle`, as another process calls it: the lock is the open file's, not the process's."""
    with whole_folder(tmp_path / "step") as draft:
        (draft / "a").write_bytes(b"1")
        with (
            pytest.raises(FileExistsError, match=r"another process is saving here.*step'"),
            whole_folder(draft.parent / "step"),
        ):
            pass
        write_folder(tmp_path / "other", 1)
        assert draft.is_dir()
    assert contents(tmp_path / "step") == {"a": "1"}
    draft.mkdir()
    (draft / "a").write_bytes(b"2")
    write_folder(tmp_path / "other", 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "step"]


def test_a_draft_of_a_file_goes_with_the_next_save_of_it_unless_it_is_being_written(tmp_path: Path) -> None:
    dead, living = (tmp_path / f".saving-a[1].{number}" for number in (1, 2))
    dead.write_bytes(b"half")
    living.write_bytes(b"half")
    with locked(living):
        write_whole(tmp_path / "a[1]", b"whole")
        assert contents(tmp_path) == {"a[1]": "whole", living.name: "half"}
    write_whole(tmp_path / "a[1]", b"whole")
    assert contents(tmp_path) == {"a[1]": "whole"}


def test_what_was_to_be_replaced_comes_back_and_what_was_to_be_removed_does_not(tmp_path: Path) -> None:
    write_folder(tmp_path / ".saving-replaced-old", 1)
    write_folder(tmp_path / ".saving-replaced-new", 1)
    write_folder(tmp_path / "new", 2)
    write_folder(tmp_path / ".saving-removed-gone", 1)
    settle(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]
    assert contents(tmp_path / "old") == {"a": "a 1", "b": "b 1"}
    assert contents(tmp_path / "new") == {"a": "a 2", "b": "b 2"}


def test_what_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old directory has made room already when the new one's name is refused."""
    write_folder(tmp_path / "step", 1)
    plain = os.replace

    def refused(source: Path, target: Path) -> None:
        if source.name == ".saving-step":
            raise FULL
        plain(source, target)

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(OSError, match=r"while saving.*step"):
        write_folder(tmp_path / "step", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step"]
    assert contents(tmp_path / "step") == {"a": "a 1", "b": "b 1"}


def test_what_would_not_fit_is_refused_before_it_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or SimpleNamespace(free=1000, total=5000))
    check_space(tmp_path / "not" / "there", 1000)
    message = r"No space left on device: 1,001 bytes are needed, 1,000 are free; make room: .*there'"
    with pytest.raises(OSError, match=message) as caught:
        check_space(tmp_path / "not" / "there", 1001)
    assert caught.value.errno == errno.ENOSPC and asked == [tmp_path, tmp_path]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0, total=0))  # it does not know
    check_space(tmp_path, 1001)


# --- Formats ---


def test_every_tensor_is_aligned(tmp_path: Path) -> None:
    """To a cache line if it fills some to the last byte, else to its own width."""
    values = {
        "byte": torch.tensor(7, dtype=torch.uint8),
        "codes": torch.arange(64, dtype=torch.int8),
        "odd": torch.ones(3, dtype=torch.bfloat16),
        "wide": torch.ones(2, dtype=torch.float32),
        "none": torch.ones(0),
        "scalar": torch.tensor(2.5),
        "turned": torch.arange(6.0).view(2, 3).t(),
        "lines": torch.arange(32.0).view(2, 16),
    }
    write_safetensors(tmp_path / "a.safetensors", {name: StoredTensor.of(value) for name, value in values.items()})
    content = (tmp_path / "a.safetensors").read_bytes()
    header_length = int.from_bytes(content[:8], "little")
    for name, entry in json.loads(content[8 : 8 + header_length]).items():
        if name in values:
            start, size = 8 + header_length + entry["data_offsets"][0], values[name].nbytes
            assert start % (64 if size % 64 == 0 else values[name].itemsize) == 0, name
    with safe_open(tmp_path / "a.safetensors", "pt") as opened:
        assert all(torch.equal(opened.get_tensor(name), value) for name, value in values.items())


def test_pickles_come_back_and_a_full_disk_is_an_os_error(tmp_path: Path) -> None:
    write_pickle(tmp_path / "a.pt", {"a": torch.ones(3), "step": 2})
    content = read_pickle(tmp_path / "a.pt")
    assert content["step"] == 2 and torch.equal(content["a"], torch.ones(3))
    with at_most(1000), pytest.raises(OSError, match="too large"):
        write_pickle(tmp_path / "b.pt", {"a": torch.ones(30_000)})


def test_json_comes_back_and_has_no_nan(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(json_text({"é": [1.5, None]}))
    assert read_json_object(tmp_path / "a.json") == {"é": [1.5, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_text({"a": float("nan")})
