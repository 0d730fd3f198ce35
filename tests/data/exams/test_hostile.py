"""Exams that are not what they should be: every field in every wrong type, wrong answer keys, wrong companions."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.exams import Question, load_exam
from files import DamagedFileError, FileError, UnsuitableFileError

STEP = {"no": 1, "question": "Which organ makes insulin?", "options": {"A": "Liver", "B": "Pancreas"}, "seen": True}
MEDQA = {"question": "Q?", "options": {"A": "x", "B": "y"}, "meta_info": "step1", "answer_idx": "A"}
ARTICLE = {"QUESTION": "Does it?", "CONTEXTS": ["One.", "Two."], "final_decision": "maybe"}
BULLETS = {"question": {"0": "Q?"}, "answer_idx": {"0": "A"}, "opa": {"0": "x"}, "opb": {"0": "y"}}
WRONG: list[Any] = [None, 3, 0.5, True, "", " ", "a\0b", "a\ud800b", [], {}, ["a"], {"a": "b"}, [[[]]], {"A": None}]

Count = Callable[..., None]


def write(folder: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text, encoding="utf-8")
    return folder / next(iter(files))


def refused(path: Path) -> FileError:
    with pytest.raises(FileError) as caught:
        load_exam(path)
    said = str(caught.value)
    assert str(path.parent) in said and said.isprintable() and len(said) < 1000
    return caught.value


@pytest.mark.parametrize("name", ["step", "MedQA", "Medbullets", "PubMedQA"])
def test_every_field_in_every_wrong_type_is_refused_or_harmless(tmp_path: Path, count_faults: Count, name: str) -> None:
    """Harmless: another text for a question, no mark of having been seen, an abstract without paragraphs."""
    right, lay_out = {
        "step": (STEP, lambda row: write(tmp_path, {"step1.json": [row], "step1_solutions.json": {"1": "B"}})),
        "MedQA": (MEDQA, lambda row: write(tmp_path, {"medqa.jsonl": json.dumps(MEDQA) + "\n" + json.dumps(row)})),
        "Medbullets": (BULLETS, lambda columns: write(tmp_path, {"bullets.json": columns})),
        "PubMedQA": (ARTICLE, lambda row: write(tmp_path, {"pqal.json": {"11": ARTICLE, "12": row}})),
    }[name]
    accepted = set()
    for key in right:
        for value in [*WRONG, ...]:
            row = {k: v for k, v in right.items() if k != key} if value is ... else right | {key: value}
            path = lay_out(row)
            try:
                assert all(isinstance(question, Question) for question in load_exam(path))
                accepted.add((key, "missing" if value is ... else repr(value)))
            except FileError as error:
                assert error.file == path and str(error).isprintable()
            count_faults("bad exam files")
    assert (
        accepted
        == {
            "step": {("seen", "True"), ("seen", "missing")},
            "MedQA": {("meta_info", "''"), ("meta_info", "' '"), ("meta_info", "missing")},
            "Medbullets": set(),
            "PubMedQA": {("CONTEXTS", "[]"), ("CONTEXTS", "['a']")},
        }[name]
    )


OPTIONS: list[tuple[Any, str]] = [
    ({}, "0 option(s), at least 2 are needed"),
    ({"A": "x"}, "1 option(s), at least 2 are needed"),
    ({"A": "x", "B": ""}, "option 'B' is empty"),
    ({"A": "x", "B": " \n"}, "option 'B' is empty"),
    ({"A": "x", "B": "x"}, "options 'A' and 'B' are the same text; remove one of them"),
    ({"A": "x", "B": 3}, '"B" is a number, expected a string'),
    ({"A": "x", "B": ["y"]}, '"B" is a list, expected a string'),
    ({"A": "x", "\ud800": "y"}, "a letter of the options holds the lone surrogate U+D800"),
    ({"C": "x", "D": "y"}, "the answer 'A' is not among the options 'C', 'D'; correct the answer key"),
    ({"c": "x", "d": "y"}, "the answer 'A' is not among the options 'c', 'd'"),
    ({str(i): str(i) for i in range(10**5)}, "100,000 options, at most 26 have letters"),
    (["x", "y"], '"options" is a list, expected an object'),
]


@pytest.mark.parametrize(("options", "problem"), OPTIONS, ids=lambda value: value[:30] if type(value) is str else "")
def test_options_that_nobody_could_choose_from(tmp_path: Path, count_faults: Count, options: Any, problem: str) -> None:
    for path, place in (
        (write(tmp_path, {"medqa.json": [MEDQA | {"options": options}]}), "row 1"),
        (
            write(tmp_path, {"step1.json": [STEP | {"options": options}], "step1_solutions.json": {"1": "A"}}),
            "question 1",
        ),
    ):
        error = refused(path)
        assert problem in str(error) and error.place.startswith(place)
        count_faults("bad exam files")


KEYS: list[tuple[Any, str]] = [
    ({}, "question 1: has no solution; add it to step1_solutions.json"),
    ({"2": "A", "3": "B"}, "question 1: has no solution"),
    ({"01": "A"}, "question 1: has no solution"),
    ({"1": "C"}, "question 1: the answer 'C' is not among"),
    ({"1": ""}, "question 1: the answer '' is not among"),
    ({"1": "A" * 10**6}, "question 1: the answer 'AAA"),
    ({"1": "\ud800"}, r"the answer '\ud800' is not among"),
    ({"1": ["A"]}, 'step1_solutions.json: "1" is a list, expected a string'),
    ({"1": "A", "2": None}, 'step1_solutions.json: "2" is null, expected a string'),
    ({"x\n" * 100: 1}, r'step1_solutions.json: "x\nx\nx'),
    (["A"], "step1_solutions.json: the root is a list, expected an object"),
    ("{'1': 'A'}", "step1_solutions.json: not valid JSON"),
    ("", "step1_solutions.json: not valid JSON"),
    ('{"1": "A", "1": "A"}', 'step1_solutions.json: the key "1" occurs twice'),
    ('{"1": "A"', "step1_solutions.json: not valid JSON"),
    ('{"1": ' + "[" * 10**5, "step1_solutions.json: not valid JSON (nested too deeply)"),
]


@pytest.mark.parametrize(("key", "problem"), KEYS, ids=lambda value: value[:30] if type(value) is str else "")
def test_answer_keys_of_other_exams_and_of_none(tmp_path: Path, count_faults: Count, key: Any, problem: str) -> None:
    write(tmp_path, {"step1.json": [STEP], "step1_solutions.json": key})
    assert problem in str(refused(tmp_path / "step1.json"))
    assert problem in str(refused(tmp_path))
    count_faults("bad exam files", 2)


def test_solutions_of_questions_that_were_removed_do_no_harm(tmp_path: Path) -> None:
    write(tmp_path, {"step1.json": [STEP], "step1_solutions.json": {"1": "B", "2": "Z", "77": "?"}})
    assert [question.answer for question in load_exam(tmp_path)] == ["B"]


IMAGES: list[tuple[Any, str]] = [
    ({"step1": [1, "2"]}, "all its questions need images; name another exam"),
    ({"stepp1": [1, 2]}, "'stepp1': there is no such step file beside it; correct its name"),
    ({"step1": [], "step4": [1]}, "'step4': there is no such step file beside it"),
    ({"../step1": [1]}, "'../step1': there is no such step file"),
    ({"\ud800" * 10**4: [1]}, "there is no such step file"),
    ({"step1": [999, 1]}, "step1: lists questions that step1.json does not hold ['999']; correct their numbers"),
    ({"step1": ["01", "3"]}, "lists questions that step1.json does not hold ['01', '3']"),
    ({"step1": [None]}, "'step1': None is no question's number"),
    ({"step1": [[1]]}, "[1] is no question's number"),
    ({"step1": [True]}, "True is no question's number"),
    ({"step1": [1.0]}, "1.0 is no question's number"),
    ({"step1": {"1": True}}, '"step1" is an object, expected a list'),
    ({"step1": 1}, '"step1" is a number, expected a list'),
    ([1, 2], "the root is a list, expected an object"),
    ("[", "question_with_images.json: not valid JSON"),
]


@pytest.mark.parametrize(("images", "problem"), IMAGES, ids=lambda value: value[:30] if type(value) is str else "")
def test_lists_of_images(tmp_path: Path, count_faults: Count, images: Any, problem: str) -> None:
    files = {"step1.json": [STEP, STEP | {"no": "2"}], "step1_solutions.json": {"1": "A", "2": "A"}}
    write(tmp_path, files | {"question_with_images.json": images})
    assert problem in str(refused(tmp_path / "step1.json"))
    count_faults("bad exam files")


@pytest.mark.parametrize("numbers", [(1, 1), (1, "1"), ("7", 7)])
def test_a_number_that_occurs_twice(tmp_path: Path, count_faults: Count, numbers: tuple[Any, Any]) -> None:
    rows = [STEP | {"no": number} for number in numbers]
    write(tmp_path, {"step1.json": rows, "step1_solutions.json": {str(n): "A" for n in numbers}})
    with pytest.raises(DamagedFileError, match=rf"question 'step1/{numbers[0]}' occurs twice; number the questions"):
        load_exam(tmp_path)
    count_faults("bad exam files")


def test_two_files_of_one_step_number_are_both_read(tmp_path: Path) -> None:
    write(tmp_path, {"step1.json": [STEP], "step1_solutions.json": {"1": "A"}})
    write(tmp_path, {"step01.json": [STEP], "step01_solutions.json": {"1": "B"}})
    assert {question.id: question.answer for question in load_exam(tmp_path)} == {"step1/1": "A", "step01/1": "B"}


TRUTHS: list[tuple[Any, str]] = [
    ({"11": "perhaps"}, "article 11: the answer is 'perhaps'; it must be one of yes, no, maybe"),
    ({"11": ["yes"]}, 'test_ground_truth.json: "11" is a list, expected a string'),
    ({"33": "yes", "4" * 10**5: "no"}, "2 articles of test_ground_truth.json are missing, such as '33'"),
    ({}, "test_ground_truth.json: lists no articles; complete it, or remove it"),
    ("{", "test_ground_truth.json: not valid JSON"),
    ([], "test_ground_truth.json: the root is a list"),
]


@pytest.mark.parametrize(("truth", "problem"), TRUTHS, ids=lambda value: value[:30] if type(value) is str else "")
def test_lists_of_test_articles(tmp_path: Path, count_faults: Count, truth: Any, problem: str) -> None:
    path = write(tmp_path, {"pqal.json": {"11": ARTICLE}, "test_ground_truth.json": truth})
    assert problem in str(refused(path))
    count_faults("bad exam files")


def test_articles_and_rows_whose_names_cannot_be_printed(tmp_path: Path, count_faults: Count) -> None:
    for content in (
        {"\ud800": ARTICLE},
        {"question": {"\ud800": "Q?"}, "answer_idx": {"\ud800": "A"}, "opa": {"\ud800": "x"}, "opb": {"\ud800": "y"}},
    ):
        assert "lone surrogate U+D800" in str(refused(write(tmp_path, {"exam.json": content})))
        count_faults("bad exam files")


@pytest.mark.parametrize("columns", [{"opb": {}}, {"opb": {"1": "y"}}, {"answer_idx": {"0": "E"}}, {"opa": {"0": "y"}}])
def test_columns_that_do_not_agree(tmp_path: Path, count_faults: Count, columns: dict[str, Any]) -> None:
    refused(write(tmp_path, {"bullets.json": BULLETS | columns}))
    count_faults("bad exam files")


WHOLE = {
    "step1.json": [STEP, STEP | {"no": 2}],
    "medqa.json": [MEDQA, MEDQA],
    "bullets.json": BULLETS,
    "pqal.json": {"11": ARTICLE, "é": ARTICLE},
}


@pytest.mark.parametrize("name", WHOLE)
def test_an_exam_that_ends_anywhere_is_refused(tmp_path: Path, count_faults: Count, name: str) -> None:
    path = write(tmp_path, {name: WHOLE[name], "step1_solutions.json": {"1": "A", "2": "A"}})
    assert load_exam(path)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        refused(path)
    count_faults("bad exam files", len(content))


@pytest.mark.parametrize("name", WHOLE)
def test_an_exam_in_another_encoding(tmp_path: Path, count_faults: Count, name: str) -> None:
    path = write(tmp_path, {name: WHOLE[name], "step1_solutions.json": {"1": "A", "2": "A"}})
    text = json.dumps(WHOLE[name], ensure_ascii=False)
    path.write_bytes(text.encode("utf-8-sig"))
    assert load_exam(path), "a byte order mark is no content"
    for content in (
        text.encode("utf-16"),
        text.encode("utf-32"),
        text.encode()[:-1] + b"\xff",
        text.encode() + b"\xc3",
    ):
        path.write_bytes(content)
        assert "UTF-" in str(refused(path))
        count_faults("bad exam files")


@pytest.mark.parametrize("name", ["step1.json", "step1_solutions.json", "question_with_images.json"])
def test_a_pipe_in_an_exams_folder_is_refused_without_waiting(tmp_path: Path, count_faults: Count, name: str) -> None:
    write(tmp_path, {"step1.json": [STEP], "step1_solutions.json": {"1": "A"}})
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(UnsuitableFileError, match=f"{name}: it is a pipe, not a regular file"):
        load_exam(tmp_path)
    count_faults("bad exam files")
