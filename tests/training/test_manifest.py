"""run.json vouches for every file, and for itself; whatever else it is made to say is an error that names it."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from byte_mutations import EXAMPLES, damaged
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_runs import FILES, a_checkpoint, run_team

from files import DamagedFileError, FileError, UnsuitableFileError
from training import LostProcessError
from training.manifest import RunFile, checkpoints, on_all_ranks, read_run, step_folders, verify


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that no test changes for good."""
    return a_checkpoint(tmp_path_factory.mktemp("run"))


@pytest.fixture
def run_file(checkpoint: Path):
    """Its run.json, put back afterwards."""
    file = checkpoint / "run.json"
    content = file.read_bytes()
    yield file
    file.write_bytes(content)


def test_it_lists_size_and_sum_of_every_other_file(checkpoint):
    run = read_run(checkpoint)
    assert run.step == 2 and run.tokens == 10 and run.world_size == 1
    assert run.manifest.keys() == set(FILES) - {"run.json"}
    for name, entry in run.manifest.items():
        assert entry["bytes"] == (checkpoint / name).stat().st_size and len(entry["sha256"]) == 64
    assert set(run.optimizer_steps.values()) == {2}
    assert run.tensors["layers.0.feed_forward.w1.weight.exp_avg_codes"] == "(96, 64) torch.uint8"
    verify(checkpoint)


def test_it_can_be_spelled_otherwise(checkpoint, run_file):
    """The sum is of the values: an editor that indents anew does no harm."""
    run = read_run(checkpoint)
    run_file.write_text(json.dumps(dict(reversed(json.loads(run_file.read_text()).items()))))
    assert read_run(checkpoint) == run


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_of_any_kind_is_found(checkpoint, run_file, count_faults, data):
    whole = RunFile(**{k: v for k, v in json.loads(run_file.read_bytes()).items() if k not in ("version", "sha256")})
    content = whole.text()
    run_file.write_bytes(data.draw(damaged(content)))
    try:
        assert read_run(checkpoint) == whole
        values = json.loads(run_file.read_bytes().decode("utf-8-sig"))
        assert values == json.loads(content), "changed, and not found"
    except FileError as error:
        assert error.file == run_file
    finally:
        run_file.write_bytes(content)
    count_faults("flipped bytes")


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"{", b"\xff", b'{"step": 1, "tokens": 2, "fingerprint": {}}'])
def test_a_file_of_another_kind_is_refused(checkpoint, run_file, content):
    run_file.write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"run\.json: it "):
        verify(checkpoint)


def test_the_earlier_format_is_refused_with_the_way_out(checkpoint, run_file):
    old = {"step": 1, "tokens": 2, "fingerprint": {}, "sha256": {"optimizer.pt": "0" * 64}}
    run_file.write_text(json.dumps(old))
    with pytest.raises(
        UnsuitableFileError, match=r"with optimizer\.pt, .*; finish that run with the version that began it"
    ):
        verify(checkpoint)


def test_a_later_format_is_refused_by_number(checkpoint, run_file):
    run_file.write_text(json.dumps(json.loads(run_file.read_text()) | {"version": 3}))
    with pytest.raises(UnsuitableFileError, match="it is of format 3, and this version reads 2; update the program"):
        verify(checkpoint)


@pytest.mark.parametrize(
    "changes",
    [
        {"step": "2"},
        {"step": True},
        {"tokens": -1},
        {"fingerprint": []},
        {"fingerprint": {"a": 1}},
        {"world_size": None},
        {"optimizer_steps": {"a": 1.5}},
        {"tensors": {"a": []}},
        {"manifest": {"a": {"bytes": "1", "sha256": ""}}},
        {"manifest": {"a": {"bytes": 1}}},
        {"manifest": []},
    ],
    ids=str,
)
def test_values_of_other_kinds_are_refused_by_name(checkpoint, run_file, changes: dict[str, Any]):
    run_file.write_bytes(replace(read_run(checkpoint), **changes).text())
    with pytest.raises(DamagedFileError, match=rf"run\.json, {next(iter(changes))}: it does not describe a run"):
        verify(checkpoint)


@pytest.mark.parametrize("name", ["../run.json", "/etc/passwd", "a/b", "", "."])
def test_no_name_leads_out_of_the_directory(checkpoint, run_file, name):
    run = read_run(checkpoint)
    run_file.write_bytes(replace(run, manifest=run.manifest | {name: {"bytes": 1, "sha256": ""}}).text())
    with pytest.raises(DamagedFileError, match="it is missing"):
        verify(checkpoint)


def test_a_directory_in_a_files_place_is_refused(tmp_path):
    checkpoint = a_checkpoint(tmp_path)
    run = read_run(checkpoint)
    (checkpoint / "config.toml").unlink()
    (checkpoint / "config.toml").mkdir()
    size = (checkpoint / "config.toml").stat().st_size
    manifest = run.manifest | {"config.toml": {"bytes": size, "sha256": ""}}
    (checkpoint / "run.json").write_bytes(replace(run, manifest=manifest).text())
    with pytest.raises(UnsuitableFileError, match=r"config\.toml: it is a directory"):
        verify(checkpoint)


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path):
    for name in (
        "step-99999999",
        "step-100000000",
        "step-00000002",
        "step-2",
        "step-0000000x",
        ".abandoned-step-00000001",
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").touch()
    (tmp_path / "step-00000003").touch()
    (tmp_path / "step-00000001").mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000002", "step-99999999", "step-100000000"]
    assert [path.name for path in step_folders(tmp_path)][:2] == ["step-00000001", "step-00000002"]


# --- Errors on their way to the other ranks ---


@pytest.mark.parametrize(
    ("error", "elsewhere"),
    [
        (DamagedFileError("cut", file="a", place="b", remedy="c"), DamagedFileError),
        (UnsuitableFileError("other", file=Path("a")), UnsuitableFileError),
        (OSError(5, "Input/output error", "disk"), OSError),
        (KeyError("bug"), LostProcessError),
    ],
)
def test_what_fails_on_one_rank_fails_on_all(error, elsewhere):
    def check(fails: bool) -> Callable[[], None]:
        def act() -> None:
            if fails:
                raise error

        return act

    errors = run_team(3, lambda team: on_all_ranks(team, check(team.rank == 1)))
    assert errors[1] is error
    for other in (errors[0], errors[2]):
        assert type(other) is elsewhere
        expected = "rank 1 of 3 failed: KeyError: 'bug'" if elsewhere is LostProcessError else str(error)
        assert str(other) == expected
    assert run_team(3, lambda team: on_all_ranks(team, check(False))) == [None] * 3


def test_the_whole_file_survives_its_text(checkpoint):
    run = read_run(checkpoint)
    assert json.loads(run.text()).keys() == asdict(run).keys() | {"version", "sha256"}
