"""MMLU: files and folders of subjects, and CSV that is none."""

import csv
import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.exams import Question, load_exam
from files import FileError, UnsuitableFileError

ROW = 'Which organ makes insulin?,Liver,Pancreas,"Spleen, red pulp",Kidney,B\n'
OPTIONS = {"A": "Liver", "B": "Pancreas", "C": "Spleen, red pulp", "D": "Kidney"}


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())  # as it is, line breaks included
    return path


def refused(path: Path) -> FileError:
    with pytest.raises(FileError) as caught:
        load_exam(path)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000
    return caught.value


def test_a_file_is_a_subject(tmp_path: Path) -> None:
    path = write(tmp_path / "clinical_knowledge_test.csv", ROW + 'A ""quoted"" word,1,2,3,4,d\r\n')
    assert load_exam(path) == [
        Question("clinical_knowledge_test/1", "Which organ makes insulin?", OPTIONS, "B", step="clinical_knowledge"),
        Question(
            "clinical_knowledge_test/2",
            'A ""quoted"" word',
            {"A": "1", "B": "2", "C": "3", "D": "4"},
            "D",
            step="clinical_knowledge",
        ),
    ]


def test_quotes_hold_commas_quotes_and_line_breaks(tmp_path: Path) -> None:
    path = write(tmp_path / "anatomy_dev.csv", '"One,\n""two""\r\nthree?",1,2,3,4,A\n\n' + ROW.replace("\n", ""))
    [first, second] = load_exam(path)
    assert first.text == 'One,\n"two"\r\nthree?' and first.step == "anatomy"
    assert (second.id, second.options) == ("anatomy_dev/2", OPTIONS)


def test_a_folder_is_an_exam_of_its_subjects(tmp_path: Path) -> None:
    for subject in ("virology", "anatomy", "my_own"):
        write(tmp_path / f"{subject}_test.csv", ROW * 2)
    write(tmp_path / "README.txt", "not an exam")
    exam = load_exam(tmp_path)
    assert [question.step for question in exam] == ["anatomy"] * 2 + ["my_own"] * 2 + ["virology"] * 2
    assert len({question.id for question in exam}) == 6


def test_splits_are_not_mixed(tmp_path: Path) -> None:
    for split in ("dev", "test"):
        write(tmp_path / f"anatomy_{split}.csv", ROW)
    assert "holds files of several splits ['dev', 'test']; put each split into a folder" in str(refused(tmp_path))
    assert len(load_exam(tmp_path / "anatomy_test.csv")) == 1


def test_a_folder_of_steps_stays_one(tmp_path: Path) -> None:
    write(tmp_path / "notes.csv", ROW)
    write(tmp_path / "step1.json", '[{"no": 1, "question": "Q?", "options": {"A": "x", "B": "y"}}]')
    write(tmp_path / "step1_solutions.json", '{"1": "B"}')
    assert [question.id for question in load_exam(tmp_path)] == ["step1/1"]


def test_of_equal_options_the_right_one_stays(tmp_path: Path) -> None:
    path = write(tmp_path / "logic_test.csv", "Q?,1,2,2,,C\n")
    assert load_exam(path)[0].options == {"A": "1", "C": "2"}


BAD: list[tuple[str, str, str]] = [
    (
        "question,A,B,C,D,answer\n" + ROW,
        "line 1",
        "the answer is 'answer', no letter; remove this line if it is a header",
    ),
    ("Question,A,B,C,D, correct_option\n" + ROW, "line 1", "the answer is ' correct_option', no letter; remove this"),
    ("Q?,1,2,3,4,E\n" + ROW, "line 1", "the answer 'E' is not among the options"),
    (ROW + "question,A,B,C,D,answer\n", "line 2", "the answer 'ANSWER' is not among"),
    (ROW + "Q?,1,2,3,4,E\n", "line 2", "the answer 'E' is not among the options 'A', 'B', 'C', 'D'"),
    (ROW + "Q?,1,2,3,4,\n", "line 2", "the answer '' is not among"),
    (ROW + "Q?,1,2,3,4,2\n", "line 2", "the answer '2' is not among"),
    (ROW + "Q?,1,2,3,B\n", "line 2", "5 columns, expected 6: the question, option A"),
    (ROW + "Q?, or not?,1,2,3,4,B\n", "line 2", "7 columns, expected 6"),
    (ROW + "one\n", "line 2", "1 column, expected 6"),
    (ROW + ",1,2,3,4,B\n", "line 2", "the text is empty"),
    (ROW + " \n,,,,,\n", "line 3", "the text is empty"),
    (ROW + "Q?,1,,3,4,B\n", "line 2", "option 'B' is empty"),
    (ROW + "Q?,1,1,1,1,B\n", "line 2", "1 option(s), at least 2"),
    (ROW + 'Q?,1,"2,3,4,B\n', "line 2", "not valid CSV (unexpected end of data)"),
    (ROW + 'Q?,1,"2"3,3,4,B\n', "line 2", "not valid CSV ("),
    ('"two\nlines?",1,2,3,4,B\nQ?,1,2,3,4,Z\n', "line 3", "the answer 'Z'"),
    (ROW + f"{'x' * 200_000},1,2,3,4,B\n", "line 2", "not valid CSV (field larger than field limit"),
    (ROW + "Q?,1,a\0b,3,4,B\n", "line 2", "NUL"),
    ("", "", "holds no questions"),
    ("\n\n", "", "holds no questions"),
    ('{"question": "Q?"}', "line 1", "1 column, expected 6"),
]


@pytest.mark.parametrize(("text", "place", "problem"), BAD, ids=[problem[:30] for _, _, problem in BAD])
def test_a_bad_file_is_named(
    tmp_path: Path, count_faults: Callable[..., None], text: str, place: str, problem: str
) -> None:
    path = write(tmp_path / "anatomy_test.csv", text)
    error = refused(path)
    assert error.file == path and error.place == place and problem in str(error)
    count_faults("bad exam files")


def test_a_file_that_ends_anywhere_is_refused_or_shorter(tmp_path: Path, count_faults: Callable[..., None]) -> None:
    whole = (ROW * 2).encode()
    exam = load_exam(write(tmp_path / "anatomy_test.csv", ROW * 2))
    for length in range(len(whole)):
        path = tmp_path / "anatomy_test.csv"
        path.write_bytes(whole[:length])
        # Only at a row's end can nobody see the cut.
        if whole[:length].rstrip(b"\n").endswith(b"Kidney,B"):
            assert load_exam(path) == exam[: 1 if length <= len(ROW) else 2]
        else:
            refused(path)
    count_faults("bad exam files", len(whole))


def test_what_is_no_text_is_refused(tmp_path: Path, count_faults: Callable[..., None]) -> None:
    path = tmp_path / "anatomy_test.csv"
    for content in (ROW.encode("utf-16"), ROW.encode() + b"\xff", b"PK\x03\x04", b"\x1f\x8b", b"<html>"):
        path.write_bytes(content)
        refused(path)
        count_faults("bad exam files")
    path.write_bytes(b"\xef\xbb\xbf" + ROW.encode())
    assert load_exam(path)[0].text == "Which organ makes insulin?", "a byte order mark is no content"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UnsuitableFileError, match="it is a pipe"):
        load_exam(tmp_path)
    count_faults("bad exam files")


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
texts = texts.filter(str.strip)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(texts, st.lists(texts, min_size=4, max_size=4, unique=True), st.sampled_from("ABCD"))))
def test_what_is_written_is_read(tmp_path: Path, drawn: list[tuple[str, list[str], str]]) -> None:
    out = io.StringIO(newline="")
    csv.writer(out).writerows([text, *options, answer] for text, options, answer in drawn)
    path = write(tmp_path / "anatomy_test.csv", out.getvalue())
    expected = [(text, dict(zip("ABCD", options, strict=True)), answer) for text, options, answer in drawn]
    if drawn:
        assert [(q.text, q.options, q.answer) for q in load_exam(path)] == expected


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60) | st.text(alphabet='a,"\n\r ', max_size=40).map(str.encode))
def test_any_bytes_are_an_exam_or_a_named_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "anatomy_test.csv"
    path.write_bytes(content)
    with pytest.raises(FileError, match="anatomy_test"):
        load_exam(path)
