"""Records: what is read, and that everything unreadable is named by file, row and key."""

import json
import re

import pytest

from data import Record, load_records
from files import DamagedFileError

GOOD = {"instruction": "Define", "input": "fever", "output": "High temperature."}


def write(tmp_path, content, name="rows.json"):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_json_list(tmp_path):
    path = write(tmp_path, [GOOD, {"instruction": "Say hi", "output": "Hi", "id": 7}])
    assert load_records(path) == [
        Record("Define", "fever", "High temperature.", "rows", 1),
        Record("Say hi", "", "Hi", "rows", 2),
    ]


def test_json_lines_skip_blank_lines_and_count_all(tmp_path):
    path = write(tmp_path, json.dumps(GOOD) + "\r\n\n" + json.dumps(GOOD), "rows.jsonl")
    assert [record.row for record in load_records(path)] == [1, 3]


def test_a_raw_line_separator_inside_a_string_does_not_end_the_line(tmp_path):
    path = write(tmp_path, json.dumps(GOOD | {"input": "a\u2028b\x85c"}, ensure_ascii=False), "rows.jsonl")
    assert load_records(path)[0].input == "a\u2028b\x85c"


def test_byte_order_mark_is_skipped(tmp_path):
    assert len(load_records(write(tmp_path, b"\xef\xbb\xbf" + json.dumps([GOOD]).encode()))) == 1


def test_an_empty_output_is_a_record_and_left_to_the_report(tmp_path):
    assert load_records(write(tmp_path, [GOOD | {"output": ""}]))[0].output == ""


def test_a_row_of_fifty_megabytes(tmp_path):
    path = write(tmp_path, [GOOD | {"output": "x" * 50_000_000}, GOOD])
    assert [len(record.output) for record in load_records(path)] == [50_000_000, 17]


@pytest.mark.parametrize("key", ["instruction", "output"])
def test_missing_key(tmp_path, key):
    row = {k: v for k, v in GOOD.items() if k != key}
    with pytest.raises(ValueError, match=rf'rows\.json, row 2: the key "{key}" is missing; the row has \['):
        load_records(write(tmp_path, [GOOD, row]))


@pytest.mark.parametrize("key", ["instruction", "input", "output"])
@pytest.mark.parametrize(
    ("value", "kind"), [(None, "null"), (3, "a number"), (0.5, "a number"), (["a"], "a list"), ({}, "an object")]
)
def test_a_field_that_is_no_string(tmp_path, key, value, kind):
    with pytest.raises(ValueError, match=rf'rows\.json, row 2: "{key}" is {kind}, expected a string'):
        load_records(write(tmp_path, [GOOD, GOOD | {key: value}]))


@pytest.mark.parametrize("row", [None, "text", 3, ["a"]])
def test_a_row_that_is_no_object(tmp_path, row):
    with pytest.raises(ValueError, match=r"rows\.json, row 1: the row is .*, expected an object"):
        load_records(write(tmp_path, [row]))


@pytest.mark.parametrize("root", [{"data": [GOOD]}, GOOD, "text", 3, None])
def test_a_root_that_is_no_list(tmp_path, root):
    with pytest.raises(ValueError, match=r"rows\.json: the root is .*, expected a list"):
        load_records(write(tmp_path, json.dumps(root)))


def test_lines_in_a_json_file_name_the_remedy(tmp_path):
    with pytest.raises(ValueError, match=r'rows\.json: not valid JSON \(Extra data.*"\*\.jsonl"'):
        load_records(write(tmp_path, json.dumps(GOOD) + "\n" + json.dumps(GOOD)))


@pytest.mark.parametrize(
    ("cut", "place"), [(1, "after row 2"), (10, "row 2"), (40, "row 2"), (100, "row 1"), (151, "after row 0")]
)
def test_truncated_json_is_named_by_the_row_where_it_ends(tmp_path, cut, place):
    with pytest.raises(DamagedFileError, match=rf"rows\.json, {place}: not valid JSON \(.*, in line 1\)"):
        load_records(write(tmp_path, json.dumps([GOOD, GOOD])[:-cut]))


def test_truncated_line_is_numbered(tmp_path):
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2: not valid JSON"):
        load_records(write(tmp_path, json.dumps(GOOD) + "\n" + json.dumps(GOOD)[:-5], "rows.jsonl"))


def test_nesting_deeper_than_the_parser_goes(tmp_path):
    with pytest.raises(DamagedFileError, match=r"rows\.json, row 1: not valid JSON \(nested too deeply"):
        load_records(write(tmp_path, "[" * 200_000))


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("rows.json", '[{"instruction": "a", "output": "b", "output": "c"}]', "rows.json, row 1"),
        ("rows.jsonl", '\n{"instruction": "a", "output": "b", "output": "c"}', "rows.jsonl, line 2"),
    ],
)
def test_a_key_that_occurs_twice_is_refused_rather_than_one_of_its_values_lost(tmp_path, name, text, place):
    with pytest.raises(ValueError, match=re.escape(f'{place}: the key "output" occurs twice in one object; keep one')):
        load_records(write(tmp_path, text, name))


def test_a_number_longer_than_python_reads(tmp_path):
    with pytest.raises(ValueError, match=r"rows\.json: not valid JSON"):
        load_records(write(tmp_path, "9" * 5000))


def test_invalid_utf8_names_line_and_byte(tmp_path):
    with pytest.raises(ValueError, match=r"rows\.json, line 2: byte 0xff at offset 2 is not UTF-8; convert"):
        load_records(write(tmp_path, b"[\n\xff]"))


@pytest.mark.parametrize("key", ["instruction", "input", "output"])
@pytest.mark.parametrize(
    ("bad", "message"), [("ab\ud83d", "the lone surrogate U+D83D at character 2"), ("a\0b", "a NUL at character 1")]
)
def test_text_that_no_tokenizer_encodes(tmp_path, key, bad, message):
    with pytest.raises(ValueError, match=re.escape(f'row 2: "{key}" holds {message}')):
        load_records(write(tmp_path, [GOOD, GOOD | {key: bad}]))


def test_a_surrogate_pair_is_one_character(tmp_path):
    assert load_records(write(tmp_path, [GOOD | {"input": "\U0001f60a"}]))[0].input == "\U0001f60a"


@pytest.mark.parametrize(("content", "name"), [("[]", "rows.json"), ("\n \n", "rows.jsonl"), ("", "rows.jsonl")])
def test_zero_rows(tmp_path, content, name):
    with pytest.raises(ValueError, match=f"{re.escape(name)}: holds no rows"):
        load_records(write(tmp_path, content, name))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.json"):
        load_records(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("file", "rows"),
    [
        ("medical_meadow/medical_meadow_small.json", 5942),
        ("medical_meadow/medical_meadow_health_advice.json", 8676),
        ("alpaca/alpaca_data_1k.json", 1000),
    ],
)
def test_real_files(real_data, file, rows):
    records = load_records(real_data / file)
    raw = json.loads((real_data / file).read_text())
    assert len(records) == rows
    assert [{"instruction": r.instruction, "input": r.input, "output": r.output} for r in records] == raw
