from collections.abc import Iterator, Sequence

import pytest
from torch import nn

from data.exams import Question
from evaluation import Result, first_of_each_step, sit


class Sheet:
    """A paper whose answer is always A, which remembers who was asked together.

    Args:
        singly: give each result by itself, the last question's first.
    """

    def __init__(self, lengths: Sequence[int], chunk: int, *, singly: bool = False) -> None:
        self.singly = singly
        self.model, self.chunk, self.lengths, self.notes = nn.Linear(1, 1), chunk, list(lengths), []
        self.questions = [Question(str(i), "Which?", {"A": "x", "B": "y"}, "A") for i in range(len(lengths))]
        self.asked: list[list[int]] = []
        self.was_training: list[bool] = []

    def answer(self, rows: Sequence[int]) -> Iterator[list[Result]]:
        self.asked.append(list(rows))
        self.was_training.append(self.model.training)
        results = [Result.scored(self.questions[i], {"A": -float(i), "B": -99.0}) for i in rows]
        yield from ([result] for result in reversed(results)) if self.singly else [results]


LENGTHS = [5, 9, 5, 7, 1]


def test_the_longest_are_asked_first_and_results_come_in_the_exams_order() -> None:
    sheet = Sheet(LENGTHS, 2)
    assert [result.id for result in sit(sheet)] == list("01234")
    assert sheet.asked == [[1, 3], [0, 2], [4]]


def test_each_chunk_is_recorded_before_the_next_is_asked() -> None:
    sheet, recorded = Sheet(LENGTHS, 2), []
    sit(sheet, record=lambda results: recorded.append(([result.id for result in results], len(sheet.asked))))
    assert recorded == [(["1", "3"], 1), (["0", "2"], 2), (["4"], 3)]


def test_what_comes_singly_is_recorded_singly() -> None:
    sheet, recorded = Sheet(LENGTHS, 2, singly=True), []
    results = sit(sheet, record=lambda results: recorded.append(([result.id for result in results], len(sheet.asked))))
    assert recorded == [(["3"], 1), (["1"], 1), (["2"], 2), (["0"], 2), (["4"], 3)]
    assert [result.id for result in results] == list("01234")


def test_what_was_kept_is_not_asked_and_the_rest_in_the_same_company() -> None:
    whole = sit(Sheet(LENGTHS, 2))
    sheet = Sheet(LENGTHS, 2)
    assert sit(sheet, kept={name: whole[int(name)] for name in ("1", "3")}) == whole
    assert sheet.asked == [[0, 2], [4]]
    nothing_left = Sheet(LENGTHS, 2)
    assert sit(nothing_left, kept={result.id: result for result in whole}) == whole
    assert nothing_left.asked == []


def test_the_model_is_asked_in_eval_mode_and_left_as_it_was() -> None:
    sheet = Sheet(LENGTHS, 2)
    sheet.model.train()
    sit(sheet)
    assert sheet.was_training == [False] * 3 and sheet.model.training


def test_nothing_to_ask_is_refused() -> None:
    with pytest.raises(ValueError, match="no questions"):
        sit(Sheet([], 2))


def test_a_limit_takes_the_first_of_each_step() -> None:
    steps = ["b", "a", "b", "a", "b"]
    questions = [Question(str(i), "Which?", {"A": "x", "B": "y"}, "A", step=step) for i, step in enumerate(steps)]
    assert [question.id for question in first_of_each_step(questions, 2)] == ["0", "2", "1", "3"]
    assert first_of_each_step(questions, None) == questions
