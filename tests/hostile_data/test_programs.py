"""The programs on files that are not what they should be: one line that begins with "error:", and exit status 1."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import evaluate
import generate
import train
from llama import Llama
from recipe import ModelOptions

ROW = {"instruction": "Define", "input": "fever", "output": "High temperature."}
STEP = {"no": 1, "question": "Which organ makes insulin?", "options": {"A": "Liver", "B": "Pancreas"}}
MEDQA = {"question": "Q?", "options": {"A": "x", "B": "y"}, "answer_idx": "A"}
SURROGATE = json.dumps([ROW | {"output": "\ud83d"}])


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong with these files is found before a model is loaded."""

    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded before the files were read")

    monkeypatch.setattr(ModelOptions, "load", load)
    monkeypatch.setattr(Llama, "__init__", load)


def ends_with_one_line(main: Callable[[list[str]], None], arguments: list[str], file: Path, words: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    said = stopped.value.code
    assert isinstance(said, str), "sys.exit with a string prints it to standard error and exits with status 1"
    assert said.startswith(f"error: {file}") and words in said
    assert said.isprintable()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("rows.json", json.dumps([ROW, {"instruction": "a"}]), 'row 2: the key "output" is missing'),
        ("rows.json", json.dumps([ROW | {"input": None}]), 'row 1: "input" is null'),
        ("rows.json", json.dumps([ROW])[:-5], "row 1: not valid JSON"),
        ("rows.json", json.dumps({"data": [ROW]}), "the root is an object"),
        ("rows.json", "[" * 100_000, "nested too deeply"),
        ("rows.json", SURROGATE, "lone surrogate U+D83D"),
        ("rows.json", "[]", "holds no rows"),
        ("rows.jsonl", json.dumps(ROW) + "\n{", "line 2: not valid JSON"),
        ("rows.jsonl", b'{"instruction": "caf\xe9"}', "byte 0xe9"),
        ("rows.jsonl", b"\x1f\x8b\x08\x00", "the content is gzip"),
        ("rows.jsonl", None, "is a pipe"),
        ("texts.txt", b"a\nb\0", "line 2: the text holds a NUL"),
        ("texts.csv", b"a,b", "plain text comes from .txt or .jsonl"),
    ],
)
def test_training_data(tmp_path: Path, count_faults, name: str, content: str | bytes | None, words: str) -> None:
    file = tmp_path / name
    os.mkfifo(file) if content is None else file.write_bytes(content.encode() if isinstance(content, str) else content)
    flags = ["--model.base", "miniature", "--output", str(tmp_path / "run"), "--train.device", "cpu"]
    flags += ["--data.folder", str(tmp_path), "--data.files", name, "--data.max-length", "128"]
    ends_with_one_line(train.main, [*flags, "--data.objective", "text" if "texts" in name else "instruct"], file, words)
    assert not (tmp_path / "run").exists(), "a run that cannot begin leaves nothing"
    count_faults("bad files given to a program")


@pytest.mark.parametrize(
    ("count", "words"),
    [
        ("0", "samples=0; draw at least one row"),
        ("-1", "No such file or directory"),
        ("2", "2 samples asked of 1 rows; lower the number, or drop it"),
        ("999999999999", "999,999,999,999 samples asked of 1 rows"),
        ("9" * 4000, "samples asked of 1 rows"),
    ],
)
def test_numbers_of_rows(tmp_path: Path, count_faults, count: str, words: str) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([ROW]))
    flags = ["--model.base", "miniature", "--output", str(tmp_path / "run"), "--data.max-length", "128"]
    with pytest.raises(SystemExit) as stopped:
        train.main([*flags, "--data.folder", str(tmp_path), "--data.files", f"rows.json:{count}"])
    said = str(stopped.value.code)
    assert said.startswith("error: ") and said.isprintable()
    assert str(tmp_path / "rows.json") in said and words in said
    count_faults("bad files given to a program")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[optim]\nlr = nan", "optim.lr: nan is no finite number"),
        (b"[optm]\nlr = 1.0", "did you mean 'optim'"),
        (b"[optim]\nlr = 1 # \xff", "line 2: byte 0xff"),
        (b"[train]\nepochs = true", "must be of type int"),
        (b"[train]\nepochs = 0", "train.epochs = 0 must be positive"),
        (b"x = " + b"[" * 9999, "nested too deeply"),
    ],
)
def test_training_configs(tmp_path: Path, count_faults, content: bytes, words: str) -> None:
    file = tmp_path / "run.toml"
    file.write_bytes(content)
    ends_with_one_line(train.main, ["--config", str(file)], file, words)
    count_faults("bad files given to a program")


def test_a_training_template(tmp_path: Path, count_faults) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([ROW]))
    file = tmp_path / "mine.json"
    file.write_text('{"prompt_input": "{instruction}"}')
    flags = ["--model.base", "miniature", "--data.folder", str(tmp_path), "--data.files", "rows.json"]
    flags += ["--data.template", str(file), "--output", str(tmp_path / "run"), "--data.max-length", "128"]
    ends_with_one_line(train.main, flags, file, 'the key "prompt_no_input" is missing')
    count_faults("bad files given to a program")


def test_rows_that_all_drop_are_an_error_that_says_so(tmp_path: Path, count_faults) -> None:
    flags = ["--model.base", "miniature", "--data.folder", str(tmp_path), "--data.files", "rows.json"]
    flags += ["--output", str(tmp_path / "run"), "--data.max-length", "8"]
    for rows, words in (
        (
            [ROW] * 5,
            "5 rows dropped, the prompt alone fills the window (rows:1, rows:2, rows:3, ...); raise max_length",
        ),
        ([ROW | {"output": " "}], "1 rows dropped, the output is empty (rows:1); fill in the outputs"),
    ):
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        with pytest.raises(SystemExit) as stopped:
            train.main(flags)
        assert str(stopped.value.code).startswith("error: nothing to train on at max_length=8: 0 of ")
        assert words in str(stopped.value.code)
        count_faults("bad files given to a program")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"exam.jsonl": json.dumps(MEDQA | {"answer_idx": "F"})}, "line 1: the answer 'F' is not among"),
        ({"exam.jsonl": json.dumps(MEDQA)[:-3]}, "line 1: not valid JSON"),
        ({"exam.json": json.dumps([MEDQA | {"options": {"A": "x", "B": None}}])}, 'row 1, options: "B" is null'),
        ({"exam.json": "[]"}, "holds no questions"),
        ({"exam.json": "[3]"}, "no exam layout is recognised"),
        ({"exam.json": b"\xff\xfe[\0"}, "the content is UTF-16"),
        ({"step1.json": json.dumps([STEP])}, "its answer key step1_solutions.json is missing"),
        ({"step1.json": json.dumps([STEP, STEP]), "step1_solutions.json": '{"1": "A"}'}, "occurs twice"),
        ({"step1.json": json.dumps([STEP]), "step1_solutions.json": '{"2": "A"}'}, "question 1: has no solution"),
    ],
)
def test_exams(tmp_path: Path, count_faults, files: dict[str, str | bytes], words: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    file = tmp_path / next(iter(files))
    ends_with_one_line(evaluate.main, ["--exam", str(file)], file, words)
    count_faults("bad files given to a program")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "not valid JSON"),
        (b"{}", 'the key "format" is missing'),
        (b'{"format": 2, "settings": {}, "questions": [null]}', "question 1: the row is null"),
        (None, "is a pipe"),
    ],
)
def test_reports_to_compare_with(tmp_path: Path, count_faults, content: bytes | None, words: str) -> None:
    (tmp_path / "exam.jsonl").write_text(json.dumps(MEDQA))
    file = tmp_path / "before.json"
    os.mkfifo(file) if content is None else file.write_bytes(content)
    ends_with_one_line(evaluate.main, ["--exam", str(tmp_path / "exam.jsonl"), "--compare", str(file)], file, words)
    count_faults("bad files given to a program")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("asked.txt", b"What?\nWh\0y?", "line 2: the question holds a NUL at character 2"),
        ("asked.txt", b"", "holds no questions"),
        ("asked.txt", None, "is a pipe"),
        ("asked.json", b'["What?"]', 'row 1: the row is a string, expected an object with the key "instruction"'),
        ("asked.jsonl", b'{"instruction": ["What?"]}', 'line 1: "instruction" is a list'),
        ("asked.jsonl", b"PK\x03\x04", "the content is a zip archive"),
    ],
)
def test_files_of_questions(tmp_path: Path, count_faults, name: str, content: bytes | None, words: str) -> None:
    file = tmp_path / name
    os.mkfifo(file) if content is None else file.write_bytes(content)
    ends_with_one_line(generate.main, ["--prompts", str(file)], file, words)
    count_faults("bad files given to a program")
