"""data.self_instruct.seeds: both forms of rows, the real 175, and what is refused."""

import json

import pytest

from data import Record
from data.self_instruct import load_seeds
from files import DamagedFileError, FileError, UnsuitableFileError

TASK = {"instruction": "Add.", "instances": [{"input": "1, 2", "output": "3"}, {"input": "", "output": "never"}]}


def written(tmp_path, *rows):
    path = tmp_path / "seeds.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_first_instance_is_taken_and_alpacas_rows_are_too(tmp_path):
    path = written(tmp_path, TASK, {"instruction": "Name a fruit.", "output": "Apple"})
    expected = [Record("Add.", "1, 2", "3", "seeds", 1), Record("Name a fruit.", "", "Apple", "seeds", 2)]
    assert load_seeds(path) == expected


def test_a_json_list_is_read_as_well(tmp_path):
    path = tmp_path / "seeds.json"
    path.write_text(json.dumps([TASK]), encoding="utf-8")
    assert [seed.output for seed in load_seeds(path)] == ["3"]


def test_the_real_175(real_data):
    seeds = load_seeds(real_data / "alpaca" / "seed_tasks.jsonl")
    assert len(seeds) == 175
    assert sum(not seed.input for seed in seeds) == 50
    assert seeds[1].instruction == "What is the relation between the given pairs?"
    assert seeds[1].input == "Night : Day :: Right : Left"


BAD = {
    "no instruction": {"instances": TASK["instances"]},
    "an instruction that is a number": TASK | {"instruction": 3},
    "an empty instruction": TASK | {"instruction": " \n"},
    "instances that are an object": TASK | {"instances": {"input": "", "output": ""}},
    "instances that are null": TASK | {"instances": None},
    "no instance": TASK | {"instances": []},
    "an instance that is a text": TASK | {"instances": ["x"]},
    "an instance without an output": TASK | {"instances": [{"input": ""}]},
    "an output that is a list": TASK | {"instances": [{"input": "", "output": ["x"]}]},
    "an empty output": TASK | {"instances": [{"input": "", "output": ""}]},
    "an input that is null": TASK | {"instances": [{"input": None, "output": "x"}]},
    "neither instances nor output": {"instruction": "Add."},
    "half a surrogate pair": TASK | {"instances": [{"input": "\ud83d", "output": "x"}]},
    "a NUL": TASK | {"instruction": "Add\0"},
    "a list": [TASK],
    "null": None,
    "a text": "Add.",
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_named_by_its_line(tmp_path, count_faults, name):
    path = written(tmp_path, TASK, BAD[name])
    with pytest.raises(FileError, match="line 2") as refused:
        load_seeds(path)
    assert refused.value.file == path
    count_faults("bad seed files")


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", UnsuitableFileError),
        (b"\n\n", UnsuitableFileError),
        (b'{"instruction": "Add."', DamagedFileError),
        (b'{"instruction": "\xff"}\n', DamagedFileError),
        (b"\x1f\x8b\x08\x00", UnsuitableFileError),
        (b"<!DOCTYPE html>", UnsuitableFileError),
        (b"\x80\x04\x95", UnsuitableFileError),
        (b"[" * 100_000, DamagedFileError),
    ],
)
def test_a_file_that_holds_no_tasks_is_refused(tmp_path, count_faults, content, error):
    path = tmp_path / "seeds.jsonl"
    path.write_bytes(content)
    with pytest.raises(error) as refused:
        load_seeds(path)
    assert refused.value.file == path
    count_faults("bad seed files")
