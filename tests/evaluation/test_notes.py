from data.exams import Question
from evaluation import Result, counts, half_width_note, notes

QUESTION = Question("1", "Which?", {"A": "liver", "B": "lung", "C": "skin", "D": "bone"}, "B")


def scored(predicted: str, **changes: object) -> Result:
    scores = {letter: 0.0 if letter == predicted else -1.0 for letter in "ABCD"}
    return Result.scored(QUESTION, scores | changes.pop("scores", {}), **changes)  # type: ignore[arg-type, operator]


def said(*texts: str, predicted: str | None = None, accident: bool = False) -> Result:
    return Result.said(QUESTION, predicted, texts, accident=accident)


def test_every_exam_says_its_letters_and_how_far_it_can_be_trusted() -> None:
    lines = notes([scored("B"), scored("A"), scored("A")])
    assert len(lines) == 2
    assert lines[0].startswith("letters predicted (right): A 2 (0), B 1 (3), C 0 (0), D 0 (0)")
    assert lines[1] == half_width_note(3)


def test_a_hundred_questions_leave_ten_points_to_luck() -> None:
    assert notes([scored("B")] * 100)[-1] == "n = 100: 95 % intervals reach ±9.8 points"


def test_ties_and_cuts_are_counted() -> None:
    results = [scored("A", scores={"B": 0.0}), scored("B"), scored("B", truncated=True)]
    assert notes(results)[:2] == [
        "1 of 3 questions ended in a tie; the first of the best options was taken",
        "1 of 3 prompts were cut on the left to fit the model's window",
    ]
    assert counts(results) == {"questions": 3, "tied": 1, "truncated": 1}


def test_tries_accidents_and_failures_are_counted() -> None:
    results = [
        said("Hm.", "B: lung", predicted="B"),
        said("A man", predicted="A", accident=True),
        said("B cells, said the lung", predicted="B", accident=True),
        said("I think", predicted="I", accident=True),
        said("B", "B", "the lung."),
    ]
    assert counts(results) == {
        "questions": 5,
        "tied": 0,
        "truncated": 0,
        "unanswered": 1,
        "tries": {"1": 3, "2": 1, "3": 1},
        "accidents": 3,
        "accidents_right": 1,
        "no_option": 1,
    }
    lines = notes(results, [QUESTION])
    assert lines[:5] == [
        "1 of 5 questions got no acceptable answer, which counts as wrong",
        "tries used, failures included: 3 after 1, 1 after 2, 1 after 3",
        "3 answers were accepted by accident, 1 of them right: a sound parser finds none in the text "
        "(A 35-year-old man ...), or another one, or several",
        "1 answers are letters that were no option",
        "3 texts were not accepted although they give an answer",
    ]
    assert "none 1" in lines[5]


def test_what_did_not_happen_is_not_said() -> None:
    assert len(notes([said("B: lung", predicted="B")], [QUESTION])) == 2
