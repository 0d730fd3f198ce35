"""MedMCQA: the two countings of its answers, the letters, and files that cannot be told."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.exams import Question, load_exam
from files import FileError

ROW: dict[str, Any] = {
    "question": "Which organ makes insulin?",
    "exp": "Its islets do.",
    "cop": 2,
    "opa": "Liver",
    "opb": "Pancreas",
    "opc": "Spleen",
    "opd": "Kidney",
    "subject_name": "Physiology",
    "topic_name": None,
    "id": "4e17",
    "choice_type": "single",
}
LETTERED = ("opa", "opb", "opc", "opd")
WRONG: list[Any] = [None, 3, 0.5, True, "", " ", "a\0b", "a\ud800b", [], {}, ["a"], {"a": "b"}]


def rows(*cops: Any) -> list[dict[str, Any]]:
    return [ROW | {"cop": cop, "id": f"row {number}"} for number, cop in enumerate(cops)]


def write(path: Path, content: list[dict[str, Any]]) -> Path:
    lines = path.suffix == ".jsonl"
    path.write_text("\n".join(map(json.dumps, content)) if lines else json.dumps(content), encoding="utf-8")
    return path


def answers(path: Path) -> str:
    return "".join(question.answer for question in load_exam(path))


def test_a_row_becomes_a_question(tmp_path: Path) -> None:
    options = {"A": "Liver", "B": "Pancreas", "C": "Spleen", "D": "Kidney"}
    path = write(tmp_path / "dev.jsonl", [ROW, ROW | {"cop": 4, "id": "x"}])
    assert load_exam(path) == [
        Question("dev/4e17", ROW["question"], options, "B", step="Physiology"),
        Question("dev/x", ROW["question"], options, "D", step="Physiology"),
    ]
    assert load_exam(write(tmp_path / "dev.json", [ROW, ROW | {"cop": 4, "id": "x"}])) == load_exam(path)


def test_rows_without_id_and_subject_are_numbered(tmp_path: Path) -> None:
    bare = {key: ROW[key] for key in ("question", "opa", "opb", "opc", "opd")}
    [first, second] = load_exam(write(tmp_path / "dev.jsonl", [bare | {"cop": 1}, bare | {"cop": 4}]))
    assert (first.id, first.step, second.id) == ("dev/1", "", "dev/2")


def test_the_authors_files_count_from_one_and_the_hub_from_zero(tmp_path: Path) -> None:
    assert answers(write(tmp_path / "authors.jsonl", rows(1, 2, 3, 4))) == "ABCD"
    assert answers(write(tmp_path / "hub.jsonl", rows(0, 1, 2, 3))) == "ABCD"
    assert answers(write(tmp_path / "authors.json", rows(2, 4))) == "BD"
    assert answers(write(tmp_path / "hub.json", rows(2, 0))) == "CA"


def test_letters_need_no_counting(tmp_path: Path) -> None:
    assert answers(write(tmp_path / "few.jsonl", rows("b", "D", "c"))) == "BDC"
    assert answers(write(tmp_path / "mixed.jsonl", rows("b", 0))) == "BA"


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.sampled_from([0, 1]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_file_is_read_in_the_wrong_counting(tmp_path: Path, truth: list[int], first: int) -> None:
    path = write(tmp_path / "exam.jsonl", rows(*(option + first for option in truth)))
    try:
        assert answers(path) == "".join("ABCD"[option] for option in truth)
    except FileError as error:
        assert "may count from 0 or from 1" in str(error)
        assert {option + first for option in truth} <= {1, 2, 3}


@pytest.mark.parametrize(
    ("cops", "place", "problem"),
    [
        (
            (1, 2, 3),
            "",
            "its answers (cop) are 1, 2, 3, which may count from 0 or from 1; keep more of its rows, or",
        ),
        ((3,), "", "its answers (cop) are 3, which may count from 0 or from 1"),
        ((4, 1, 0), "line 1", '"cop" is 4 here and 0 in line 3: they count from 1 and from 0; do not join files'),
        ((1, 5), "line 2", '"cop" is 5; it must count the four options'),
        ((1, -2), "line 2", '"cop" is -2; it must count the four options'),
        ((4, -1), "line 2", "the answer is not published (cop); take the split train or dev (validation)"),
        ((4, None), "line 2", "the answer is not published (cop)"),
        ((4, "e"), "line 2", "\"cop\" is 'e'; it must be a number, or one of the letters a, b, c, d"),
        ((4, "2"), "line 2", "\"cop\" is '2'; it must be a number"),
        ((4, 1.0), "line 2", '"cop" is a number, expected a number'),
    ],
)
def test_answers_that_cannot_be_told_are_refused(
    tmp_path: Path, count_faults: Callable[..., None], cops: tuple[Any, ...], place: str, problem: str
) -> None:
    with pytest.raises(FileError) as caught:
        load_exam(write(tmp_path / "exam.jsonl", rows(*cops)))
    assert caught.value.place == place and problem in str(caught.value)
    count_faults("bad exam files")


def test_of_equal_options_the_right_one_stays_and_empty_ones_go(tmp_path: Path) -> None:
    equal = ROW | {"opa": "Spleen", "opc": "Spleen", "opd": " "}
    path = write(
        tmp_path / "exam.jsonl", [equal | {"cop": 3}, equal | {"cop": 2, "id": "x"}, ROW | {"cop": 4, "id": "y"}]
    )
    assert [question.options for question in load_exam(path)][:2] == [
        {"B": "Pancreas", "C": "Spleen"},
        {"A": "Spleen", "B": "Pancreas"},
    ]
    for bad, problem in (
        ({"opd": " "}, "option 'D' is empty"),
        (dict.fromkeys(LETTERED, "x"), "1 option(s), at least 2"),
    ):
        with pytest.raises(FileError) as caught:
            load_exam(write(tmp_path / "exam.jsonl", [ROW | {"cop": 4} | bad]))
        assert caught.value.place == "line 1" and problem in str(caught.value)


def test_every_field_in_every_wrong_type_is_refused_or_harmless(
    tmp_path: Path, count_faults: Callable[..., None]
) -> None:
    accepted = set()
    for key in ("question", "cop", *LETTERED, "subject_name", "id"):
        for value in [*WRONG, ...]:
            row = {k: v for k, v in ROW.items() if k != key} if value is ... else ROW | {key: value}
            path = write(tmp_path / "exam.jsonl", [ROW | {"cop": 4, "id": "first"}, row])
            try:
                assert all(isinstance(question, Question) for question in load_exam(path))
                accepted.add((key, "missing" if value is ... else repr(value)))
            except FileError as error:
                assert error.file == path and "line 2" in error.place and str(error).isprintable()
            count_faults("bad exam files")
    harmless = {("cop", "3"), *((key, value) for key in ("subject_name", "id") for value in ("''", "' '", "missing"))}
    # A wrong option without a text leaves three to choose from; the right one (b) must have its own.
    assert accepted == harmless | {(key, value) for key in ("opa", "opc", "opd") for value in ("''", "' '")}


def test_an_exam_that_ends_anywhere_is_refused_or_shorter(tmp_path: Path, count_faults: Callable[..., None]) -> None:
    path = write(tmp_path / "exam.json", rows(1, 4))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(FileError, match=r"exam\.json"):
            load_exam(path)
    count_faults("bad exam files", len(whole))
