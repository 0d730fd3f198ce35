"""Data files that are not what they should be: each is refused with file, place and remedy, in little memory."""

import bz2
import gzip
import json
import lzma
import os
import pickle
import re
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import MixturePart, PromptTemplate, load_mixture, load_records, load_texts
from files import DamagedFileError, FileError, UnsuitableFileError
from files.rows import LARGEST_VALUE, WINDOW, read_json, read_rows

GOOD = {"instruction": "Define", "input": "fever", "output": "High temperature."}
BAD_VALUES: list[Any] = [None, 3, 0.5, True, False, ["a"], {"a": "b"}, [], {}, 10**400, [[[[]]]]]


def zipped(tmp_path: Path) -> bytes:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("rows.json", json.dumps([GOOD]))
    return (tmp_path / "x.zip").read_bytes()


OTHER_FORMATS: dict[str, Callable[[Path], bytes]] = {
    "gzip": lambda _: gzip.compress(json.dumps([GOOD]).encode()),
    "bzip2": lambda _: bz2.compress(json.dumps([GOOD]).encode()),
    "xz": lambda _: lzma.compress(json.dumps([GOOD]).encode()),
    "a zip archive": zipped,
    "Parquet": lambda _: b"PAR1\x15\x04\x15\x10\x15\x14L\x15PAR1",
    "a Python pickle": lambda _: pickle.dumps([GOOD]),
    "UTF-16": lambda _: json.dumps([GOOD]).encode("utf-16"),
    "UTF-16, expected": lambda _: json.dumps([GOOD]).encode("utf-16-le"),
    "binary": lambda _: bytes(range(200)),
    "an HTML page": lambda _: b"<!doctype html><title>Sign in</title>",
    "a Git LFS pointer": lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
}


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".txt"])
@pytest.mark.parametrize("name", OTHER_FORMATS)
def test_another_format_under_this_name_is_recognised(tmp_path, count_faults, name, suffix):
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(OTHER_FORMATS[name](tmp_path))
    with pytest.raises(UnsuitableFileError, match=f"the content is .*{name}") as refused:
        (load_texts if suffix == ".txt" else lambda paths: load_records(paths[0]))([path])
    assert refused.value.file == path and refused.value.remedy
    count_faults("bad data files")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "Expecting value"),
        (" \n\n\t ", "Expecting value"),
        ("instruction,output\nDefine,Fever\n", "Expecting value"),
        ("[", "after row 0: not valid JSON (the list does not end"),
        ("[,]", "row 1: not valid JSON (Expecting value"),
        ('[{"instruction": "a", "output": "b"},]', "row 2: not valid JSON ("),
        ('[{"instruction": "a", "output": "b"} {"instruction": "a"}]', "after row 1: not valid JSON (expected a comma"),
        ('[{"instruction": "a", "output": "b"}] []', "after row 1: not valid JSON (something follows the list's end"),
        ('[{"instruction": "a", "output": "b"}]]', "after row 1: not valid JSON (something follows"),
        ('[{"instruction": "a", "output": "b\n"}]', "row 1: not valid JSON (Invalid control character at, in line 1"),
        ('[{"instruction": "a",\n "output": "\\x"}]', "row 1: not valid JSON (Invalid \\escape"),
        ("[{'instruction': 'a'}]", "row 1: not valid JSON (Expecting property name"),
        ('[{"instruction": NaN, "output": "b"}]', "row 1: not valid JSON (NaN, which is no number of JSON's"),
        ('[{"instruction": -Infinity, "output": "b"}]', "row 1: not valid JSON (-Infinity"),
        ('[{"instruction": 1e999, "output": "b"}]', 'row 1: "instruction" is a number, expected a string'),
        ('[{"instruction": "a", "output": "b", "n": ' + "9" * 10**6 + "}]", "row 1: not valid JSON (a number of thou"),
        ('[{"instruction": "a", "output": "b", "n": ' + '{"a":' * 50_000, "row 1: not valid JSON (nested too deeply"),
        (
            '[{"instruction": "a", "output": "b", "n": ' + "[" * 50_000 + "]" * 50_000 + "}]",
            "row 1: not valid JSON (nes",
        ),
        ('[{"instruction": "a", "output": "b", "n": {"x": 1, "x": 2}}]', 'row 1: the key "x" occurs twice'),
        ('[{"a\\n\\ud800\\u001b[2J": 1, "instruction": 2}]', 'row 1: "instruction" is a number'),
        ('[{"a\\n\\ud800\\u001b[2J": 1}]', r"the row has ['a\n\ud800\x1b[2J']"),
        ("[" + json.dumps({str(i): i for i in range(10**5)}) + "]", "', and 99,992 more]"),
        ("[" + json.dumps({"k" * 10**6: 1}) + "]", 'the key "instruction" is missing; the row has ['),
        ("[" + "null, " * 10**5 + "null]", "row 1: the row is null, expected an object"),
        ("true", "the root is a boolean, expected a list"),
        ('"[]"', "the root is a string, expected a list"),
        ("[]", "holds no rows"),
        ("[\n\n]\n", "holds no rows"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else None,
)
def test_what_is_not_a_list_of_rows_is_named_on_one_line(tmp_path, count_faults, text, problem):
    path = tmp_path / "rows.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FileError) as refused:
        load_records(path)
    said = str(refused.value)
    assert said.startswith(f"{path}") and problem in said
    assert said.isprintable() and len(said) < 1000
    count_faults("bad data files")


@pytest.mark.parametrize("key", ["instruction", "input", "output"])
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_a_field_of_any_wrong_type_is_named(tmp_path, count_faults, key, suffix):
    place = "row 2" if suffix == ".json" else "line 2"
    for value in BAD_VALUES:
        rows = [json.dumps(GOOD), json.dumps(GOOD | {key: value})]
        path = tmp_path / f"rows{suffix}"
        path.write_text("\n".join(rows) if suffix == ".jsonl" else f"[{','.join(rows)}]")
        with pytest.raises(UnsuitableFileError, match=rf'{place}: "{key}" is .*, expected a string') as refused:
            load_records(path)
        assert refused.value.place == place
        count_faults("bad data files")


def test_a_list_that_ends_anywhere_is_refused(tmp_path, count_faults):
    whole = json.dumps([GOOD, GOOD | {"n": [1.5e-3, -20, True, None, "é\u2028"]}], ensure_ascii=False).encode()
    path = tmp_path / "rows.json"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedFileError, match=r"rows\.json"):
            load_records(path)
    count_faults("bad data files", len(whole))


def test_blank_lines_alone_are_no_rows_and_no_text(tmp_path, count_faults):
    for name, read, problem in (
        ("rows.jsonl", load_records, "holds no rows"),
        ("texts.jsonl", lambda path: load_texts([path]), "holds no text"),
        ("texts.txt", lambda path: load_texts([path]), "holds no text"),
    ):
        for content in (b"", b"\n\n", b"\xef\xbb\xbf", b" \r\n\t\r\n\x0c\n"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(UnsuitableFileError, match=problem):
                read(tmp_path / name)
            count_faults("bad data files")


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.txt"])
def test_a_pipe_a_folder_and_a_device_are_refused_without_waiting(tmp_path, count_faults, name):
    folder, pipe, device, loop = (tmp_path / kind for kind in ("folder", "pipe", "device", "loop"))
    for path in (folder, pipe, device, loop):
        path.mkdir()
    (folder / name).mkdir()
    os.mkfifo(pipe / name)
    (device / name).symlink_to("/dev/zero")
    (loop / name).symlink_to(loop / name)
    for path, problem in ((folder, "it is a directory"), (pipe, "it is a pipe"), (device, "it is a device")):
        for read in (load_records, lambda path: load_texts([path]), PromptTemplate.from_file):
            if read is load_records or name != "rows.json":
                with pytest.raises(UnsuitableFileError, match=f"{re.escape(name)}: {problem}, not a regular file"):
                    read(path / name)
                count_faults("bad data files")
    with pytest.raises(OSError, match=re.escape(name)):
        load_records(loop / name)


@pytest.mark.parametrize("samples", [31, 999_999_999_999])
def test_more_samples_than_rows_names_both_numbers(tmp_path, count_faults, samples):
    path = tmp_path / "cards.json"
    path.write_text(json.dumps([GOOD] * 30))
    with pytest.raises(UnsuitableFileError, match=rf"cards\.json: {samples:,} samples asked of 30 rows; lower"):
        load_mixture([MixturePart(path, samples)], seed=0)
    count_faults("bad data files")


# --- Texts ---


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"One.\n\nTw\xc3", "line 3: byte 0xc3 at offset 8 is not UTF-8"),
        (b"caf\xe9 au lait", "line 1: byte 0xe9 at offset 3 is not UTF-8"),
        (b"\xed\xa0\x80 a surrogate", "line 1: byte 0xed at offset 0 is not UTF-8"),
        (b"a line\nand \0", "line 2: the text holds a NUL at character 4"),
    ],
)
def test_bytes_that_are_no_text_are_named_by_line(tmp_path, count_faults, content, problem):
    path = tmp_path / "texts.txt"
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=problem):
        load_texts([path])
    count_faults("bad data files")


@given(st.text("a\n\r \t\x0b\x1c\u2028", max_size=30))
def test_paragraphs_are_what_the_definition_says(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "paragraphs.txt"
    path.write_bytes(text.encode())
    expected = [part.strip() for part in re.split(r"\n\s*\n", text.replace("\r\n", "\n")) if part.strip()]
    try:
        assert load_texts([path]) == expected
    except UnsuitableFileError:
        assert not expected


# --- Templates ---

TEMPLATE = {"prompt_input": "{instruction}|{input}>", "prompt_no_input": "{instruction}>", "response_split": ">"}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[]", "the root is a list, expected an object"),
        ("null", "the root is null"),
        ("{}", 'the key "prompt_input" is missing; the root has []'),
        ('{"prompt": "x"}', "the root has ['prompt']"),
        (TEMPLATE | {"prompt_input": "{instruction}>"}, "lacks the placeholder {input}"),
        (TEMPLATE | {"prompt_input": "{instruction}{input.__class__}>"}, "placeholders ['input.__class__', 'ins"),
        (TEMPLATE | {"prompt_input": "{instruction}{input[0]}>"}, "placeholders ['input[0]'"),
        (TEMPLATE | {"prompt_input": "{instruction}{input:>999999999}>"}, "without a format"),
        (TEMPLATE | {"prompt_input": "{instruction}{}{input}>"}, "placeholders ['', "),
        (TEMPLATE | {"prompt_input": "{instruction}{input}{>"}, "write {{ and }}"),
        (TEMPLATE | {"response_split": "\n"}, r"response_split '\n' does not occur"),
        (TEMPLATE | {"name": ["x"]}, '"name" is a list, expected a string'),
        (TEMPLATE | {"description": None}, '"description" is null, expected a string; write ""'),
        (TEMPLATE | {"prompt_input": "\ud800{instruction}{input}>"}, "lone surrogate U+D800"),
        (TEMPLATE | {"prompt_input": "x" * 2**20}, "larger than 1,048,576 bytes"),
        ('{"prompt_input": ' + "[" * 10**5, "nested too deeply"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_template_file_that_is_none_is_refused(tmp_path, count_faults, content, problem):
    path = tmp_path / "mine.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(FileError) as refused:
        PromptTemplate.find(path)
    assert refused.value.file == path and problem in str(refused.value)
    count_faults("bad data files")


def test_a_template_of_every_wrong_type_is_refused(tmp_path, count_faults):
    path = tmp_path / "mine.json"
    for key in TEMPLATE:
        for value in BAD_VALUES:
            path.write_text(json.dumps(TEMPLATE | {key: value}))
            with pytest.raises(UnsuitableFileError, match=f'"{key}" is .*, expected a string'):
                PromptTemplate.from_file(path)
            count_faults("bad data files")


# --- The window over a list ---

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)


@given(st.lists(values, max_size=8), st.integers(1, 40), st.sampled_from([None, 0, 3]), st.booleans())
def test_rows_do_not_depend_on_where_the_window_ends(tmp_path_factory, rows, size, indent, ascii):
    path = tmp_path_factory.getbasetemp() / "window.json"
    path.write_text(json.dumps(rows, indent=indent, ensure_ascii=ascii), encoding="utf-8", errors="surrogatepass")
    if path.read_bytes().decode("utf-8", errors="ignore") != path.read_bytes().decode("utf-8", errors="surrogatepass"):
        return  # a lone surrogate in plain bytes is no UTF-8
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("files.rows.WINDOW", size)
        found = list(read_rows(path))
    assert [row for _, _, row in found] == json.loads(path.read_text("utf-8"))
    assert [place.within for _, place, _ in found] == [f"row {n}" for n in range(1, len(rows) + 1)]


@pytest.mark.parametrize("bad", ['{"a": 1', '{"a": tru}', "1.", "-", '"abc', "[1, 2"])
def test_a_bad_row_is_named_wherever_the_window_ends(tmp_path, monkeypatch, count_faults, bad):
    path = tmp_path / "rows.json"
    path.write_text('[\n{"a": "b"},\n' + bad + ',\n{"a": "b"}\n]')
    for size in range(1, 60):
        monkeypatch.setattr("files.rows.WINDOW", size)
        with pytest.raises(DamagedFileError, match=r"rows\.json, (row 2|after row 2): .*in line \d"):
            list(read_rows(path))
    count_faults("bad data files", 59)


# --- Size ---


def test_one_value_is_at_most_so_large(tmp_path, monkeypatch, count_faults):
    assert LARGEST_VALUE > 50_000_000, "a row of 50 MB is read"
    monkeypatch.setattr("files.rows.LARGEST_VALUE", 1000)
    row = json.dumps(GOOD | {"output": "x" * WINDOW})
    for name, content in (
        ("rows.json", f"[{row}]"),
        ("rows.json", f"[{row[:-2]}"),
        ("rows.jsonl", f"{row}\n"),
        ("rows.jsonl", row),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(UnsuitableFileError, match=r"(row|line) 1: larger than 1,000 bytes"):
            load_records(tmp_path / name)
        count_faults("bad data files")


def peak(read: Callable[[Path], Any], path: Path) -> int:
    tracemalloc.start()
    try:
        read(path)
    except FileError:
        pass
    finally:
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return found


N = 400_000
MEMORY = {  # name, content, bytes of memory per byte of the file
    "letters": ("rows.jsonl", '{"instruction":"ab","input":"cd","output":"ef"}\n' * (N // 47), 7),
    "list of letters": ("rows.json", "[" + '{"instruction":"ab","input":"cd","output":"ef"},' * (N // 48) + "0]", 7),
    "prose": ("rows.json", json.dumps([{"instruction": "Define.", "output": "a b c d " * 60}] * (N // 520)), 1.5),
    "one row": ("rows.json", json.dumps([GOOD | {"output": "x" * N}]), 4),
    "one line": ("rows.jsonl", json.dumps(GOOD | {"output": "x" * N}), 4),
    "one line and an emoji": ("rows.jsonl", json.dumps(GOOD | {"output": "x" * N + "😊"}, ensure_ascii=False), 13),
    "one row and an emoji": ("rows.json", json.dumps([GOOD | {"output": "x" * N + "😊"}], ensure_ascii=False), 13),
    "an open string": ("rows.json", '[{"instruction": "' + "x" * N, 4),
    "brackets": ("rows.jsonl", "[" + "{}," * (N // 3) + "0]", 28),
    "brackets in a list": ("rows.json", "[[" + "{}," * (N // 3) + "0]]", 28),
    "a list of brackets": ("rows.json", "[" + "[]," * (N // 3) + "0]", 0.5),
    "white space": ("rows.json", "[" + " " * N + "]", 0.5),
    "digits": ("rows.json", "[" + "1" * N + "]", 0.5),
    "one text": ("texts.txt", "😊\n" * (N // 5), 7),
    "small texts": ("texts.txt", "ab\n\n" * (N // 20), 17),
}


@pytest.mark.parametrize("name", MEMORY)
def test_memory_is_a_small_multiple_of_the_file(tmp_path, check_bound, name):
    """The constant is a window of text at four bytes per character, its successor and both joined."""
    file, content, factor = MEMORY[name]
    path = tmp_path / file
    path.write_text(content, encoding="utf-8")
    read = (lambda path: load_texts([path])) if file.endswith(".txt") else load_records
    read(path) if name == "prose" else None  # what Python sets up at the first call is no part of it
    used = peak(read, path)
    check_bound(f"memory for a data file: {name}, MB", used / 1e6, (factor * path.stat().st_size + 8 * WINDOW) / 1e6)


def test_memory_for_one_value_is_a_small_multiple_of_the_file(tmp_path, check_bound):
    for name, content, factor in (
        ("brackets", "[" + "{}," * (N // 3) + "0]", 28),
        ("objects", "[" + '{"":0},' * (N // 14) + "0]", 32),
        ("prose", json.dumps({"a": "b c " * (N // 4)}), 4),
    ):
        path = tmp_path / f"{name}.json"
        path.write_text(content)
        used = peak(lambda path: read_json(path, remedy=""), path)
        check_bound(f"memory for one value: {name}, MB", used / 1e6, (factor * path.stat().st_size + 1e6) / 1e6)
