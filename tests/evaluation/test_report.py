import json
import math
from pathlib import Path

import pytest
from exam_results import ROW, exam, result

from data.exams import Question
from evaluation import Result, notes, read_report, write_report
from files import FileError

QUESTION = Question("1", "Which?", {"A": "w", "B": "x", "C": "y", "D": "z"}, "B")


def test_report_round_trip(tmp_path: Path) -> None:
    results = [
        result("é", True, "step1", seen=True),
        result("2", False, "step2", seen=False, truncated=True),
        result("3", True, "step2", letters=("A", "B"), predicted="A", scores={"A": -1.0 / 3, "B": -1.0 / 3}),
        Result("4", "step2", None, "A", ("A", "B"), None, texts=("\0 Hm.", "… \u2028")),
        Result("5", "step2", None, "A", ("A", "B"), "I", texts=("I think",), accident=True),
    ]
    path = tmp_path / "new" / "folder" / "report.json"
    write_report(path, results, {"description": "a model", "limit": None})
    report = read_report(path)
    assert report.results == results  # floats included: JSON keeps their shortest exact form
    assert report.settings == {"description": "a model", "limit": None}
    assert [file.name for file in path.parent.iterdir()] == ["report.json"]


def test_report_says_what_a_reader_needs(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    results = exam("rrw")
    write_report(path, results, {}, notes(results), {"rotations": {"stable": 3}})
    content = json.loads(path.read_text())
    assert content["format"] == 2
    assert content["notes"] == notes(results) and content["rotations"] == {"stable": 3}
    assert content["counts"] == {
        "questions": 3,
        "tied": 0,
        "truncated": 0,
        "letters": {"B": {"B": 2, "C": 1}},
    }
    assert content["accuracy"]["all"]["correct"] == 2
    assert content["accuracy"]["all"]["value"] == 2 / 3
    assert content["accuracy"]["all"]["chance"] == 0.25
    assert content["versions"].keys() >= {"python", "torch", "medalpaca-from-scratch"}
    assert content["questions"][2] == {
        "id": "/2",
        "step": "",
        "seen": None,
        "answer": "B",
        "letters": ["A", "B", "C", "D"],
        "predicted": "C",
        "scores": {"A": -3.0, "B": -4.0, "C": -2.0, "D": -5.5},
        "texts": [],
        "accident": False,
        "truncated": False,
        "correct": False,
        "margin": -2.0,
        "tied": False,
    }


def test_a_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    write_report(path, exam("r"), {})
    old = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match=r"not written: No space left on device.*report\.json"):
        write_report(path, exam("rw"), {})
    assert path.read_bytes() == old
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]


SAID = ROW | {"scores": {}, "texts": ["A: one"]}
GOOD = {"format": 2, "settings": {}, "questions": [ROW]}


def changed(row: dict[str, object] = ROW, **values: object) -> str:
    """A report of one question with some of its values replaced."""
    return json.dumps(GOOD | {"questions": [row | values]})


HOSTILE: list[tuple[str, str]] = [
    ("", "not valid JSON"),
    (json.dumps(GOOD)[:-1], "not valid JSON"),
    ("[]", "the root is a list, expected an object"),
    ("null", "the root is null"),
    ("{}", 'the key "format" is missing'),
    (json.dumps(GOOD | {"format": 1}), "its format is 1, expected 2; score the exam again"),
    (json.dumps(GOOD | {"format": True}), '"format" is a boolean'),
    (json.dumps(GOOD | {"settings": []}), '"settings" is a list, expected an object'),
    (json.dumps(GOOD | {"settings": {"description": 3}}), 'settings: "description" is a number, expected a string'),
    (json.dumps(GOOD | {"settings": {"description": "\ud800"}}), "lone surrogate U+D800"),
    (json.dumps(GOOD | {"questions": {}}), '"questions" is an object, expected a list'),
    (json.dumps(GOOD | {"questions": []}), "holds no questions"),
    (json.dumps(GOOD | {"questions": [ROW, ROW]}), "two of its questions have one id"),
    (json.dumps(GOOD | {"questions": [ROW, None]}), "question 2: the row is null"),
    (changed(answer="C"), "question 1: its answer 'C' is not one of two or more letters ['A', 'B']"),
    (changed(letters=["A"]), "its answer 'A' is not one of two or more letters ['A']"),
    (changed(letters=["A", "B", "B"]), "not one of two or more letters"),
    (changed(letters=["A", 3]), '"letters" holds 3, expected strings'),
    (changed(letters=["A", "\ud800"]), "a letter holds the lone surrogate"),
    (changed(scores={"A": -1.0}), "its scores are not those of its letters"),
    (changed(scores={"B": -2.0, "A": -1.0}), "its scores are not those of its letters"),
    (changed(predicted="B"), "the highest is not the one predicted"),
    (changed(predicted=None), "the highest is not the one predicted"),
    (changed(predicted="\ud800"), "lone surrogate"),
    (changed(scores={"A": "high", "B": -1.0}), 'scores: "A" is a string'),
    (changed(scores={"A": -1, "B": -1.0}), 'scores: "A" is a number'),
    (changed(scores={"A": math.nan, "B": -1.0}), "NaN, which is no number"),
    (changed(scores={}), "either scores or texts"),
    (changed(texts=["A: one"]), "either scores or texts"),
    (changed(SAID, texts=[None]), '"texts" holds None, expected strings'),
    (changed(SAID, texts=["\ud800"]), "a text holds the lone surrogate"),
    (changed(SAID, predicted=None, accident=True), "an accident needs a prediction"),
    (json.dumps(GOOD).replace("-2.0", "-1e999"), 'the score of "B" is no finite number'),
    (json.dumps(GOOD).replace('"B":', '"A":'), 'the key "A" occurs twice'),
    (json.dumps(GOOD).replace("-2.0", "[" * 10**5), "nested too deeply"),
]
WRONG_TYPES = {
    "id": (None, 3, [], "a\0"),
    "step": (None, 3, [], "\ud800"),
    "seen": (0, "yes", []),
    "answer": (None, 3, ["A"], {}),
    "letters": (None, 3, {}, "AB", []),
    "predicted": (3, [], "a\0"),
    "scores": (None, 3, [], [["A", -1.0]], "A", {}),
    "texts": (None, 3, "A: one", {}),
    "accident": (None, 0, "no"),
    "truncated": (None, 0, "no"),
}
HOSTILE += [
    (json.dumps(GOOD | {"questions": [ROW | {key: value}]}), "question 1")
    for key, values in WRONG_TYPES.items()
    for value in values
]
HOSTILE += [
    (json.dumps(GOOD | {"questions": [{k: v for k, v in ROW.items() if k != key}]}), f'the key "{key}" is missing')
    for key in ROW
]


@pytest.mark.parametrize(("content", "problem"), HOSTILE, ids=[str(n) for n in range(len(HOSTILE))])
def test_a_bad_report_is_named(tmp_path: Path, count_faults, content: str, problem: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(content)
    with pytest.raises(FileError, match=r"report\.json.*; ") as refused:
        read_report(path)
    assert problem in str(refused.value) and refused.value.remedy
    assert str(refused.value).isprintable() and len(str(refused.value)) < 1000
    count_faults("bad reports")


def test_a_missing_report_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.json: cannot be read .*--out"):
        read_report(tmp_path / "none.json")
    (tmp_path / "report.json").write_text(json.dumps(GOOD))
    assert len(read_report(tmp_path / "report.json").results) == 1  # the rows above fail for their change alone
