from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from torch import nn

from data.exams import Question
from evaluation import Outcome, Result, notes, sit_in_orders
from files import DamagedFileError, UnsuitableFileError

QUESTIONS = [
    Question("1", "Which organ?", {"A": "liver", "B": "lung", "C": "skin"}, "B"),
    Question("2", "Is it?", {"A": "yes", "B": "no"}, "A"),
    Question("3", "Which bone?", {"A": "femur", "B": "tibia", "C": "rib"}, "C"),
]
SHOTS: list[list[Question]] = [[], [QUESTIONS[0]], []]


class Reader:
    """Chooses `rule(question)`; `stop_after` chunks it is interrupted."""

    def __init__(self, rule: Callable[[Question], str], stop_after: int = 99) -> None:
        self.rule, self.left, self.prepared = rule, stop_after, list[list[Question]]()
        self.shown: list[list[list[Question]]] = []

    def __call__(self, questions: Sequence[Question], shots: Sequence[list[Question]]) -> "Sheet":
        self.prepared.append(list(questions))
        self.shown.append(list(shots))
        return Sheet(self, questions)


class Sheet:
    def __init__(self, reader: Reader, questions: Sequence[Question]) -> None:
        self.reader, self.questions, self.chunk = reader, questions, 1
        self.model, self.notes, self.lengths = nn.Linear(1, 1), ["a note of the paper"], [1] * len(questions)

    def answer(self, rows: Sequence[int]) -> Iterator[list[Result]]:
        if not self.reader.left:
            raise KeyboardInterrupt
        self.reader.left -= 1
        yield [Result.said(self.questions[i], self.reader.rule(self.questions[i]), ("said",)) for i in rows]


def longest(question: Question) -> str:
    """A model that reads: the letter of the longest text."""
    return max(question.options, key=lambda letter: (len(question.options[letter]), question.options[letter]))


def sat(reader: Reader, **options: object) -> Outcome:
    with sit_in_orders(reader, QUESTIONS, SHOTS, progress=False, **options) as result:  # type: ignore[arg-type]
        return result


def test_one_order_is_the_exam_as_it_is_printed() -> None:
    reader = Reader(lambda question: "A")
    result = sat(reader)
    assert [row.id for row in result.results] == ["1", "2", "3"]
    assert reader.prepared == [QUESTIONS] and reader.shown == [SHOTS]
    assert result.bias is None
    assert result.notes == [*notes(result.results, QUESTIONS), "a note of the paper"]


def test_every_order_asks_a_question_of_n_options_n_times() -> None:
    reader = Reader(longest)
    result = sat(reader, every_order=True)
    assert [[question.id for question in asked] for asked in reader.prepared] == [["1", "2", "3"]] * 2 + [["1", "3"]]
    assert reader.shown == [SHOTS, SHOTS, [[], []]]
    texts = [asked[0].options for asked in reader.prepared]
    assert [list(text) for text in texts] == [["A", "B", "C"]] * 3  # under the same letters, in the same order
    assert [set(text.values()) for text in texts] == [{"liver", "lung", "skin"}] * 3
    assert len({text["A"] for text in texts}) == 3
    assert result.bias is not None
    assert (result.bias.stable, result.bias.n) == (3, 3)
    assert [row.predicted for row in result.results] == [longest(question) for question in QUESTIONS]


def test_a_taste_for_a_letter_is_seen() -> None:
    bias = sat(Reader(lambda question: "A"), every_order=True).bias
    assert bias is not None
    assert bias.stable == 0 and bias.chosen["A"] == 8


def test_it_goes_on_in_the_middle_of_the_orders_and_cleans_up(tmp_path: Path) -> None:
    report, said = tmp_path / "exam.json", list[str]()
    options = {"every_order": True, "report": report, "shaped_by": {"seed": "1"}, "say": said.append}
    with pytest.raises(KeyboardInterrupt):
        sat(Reader(longest, stop_after=4), **options)
    assert said.pop() == "interrupted: 4 of 8 questions are answered; the same command goes on"
    names = ["exam.journal.jsonl", "exam.rotation-1.journal.jsonl", "exam.rotation-2.journal.jsonl"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names  # all are opened before anything is asked
    reader = Reader(longest)
    result = sat(reader, **options)
    assert reader.left == 99 - 4  # three in the first order and one in the second were there
    assert [line.split(": ", 1)[1] for line in said] == [
        "3 of 3 questions were answered before; going on",
        "1 of 3 questions were answered before; going on",
    ]
    assert (result.asked, result.in_all) == (8 - 4, 8)
    assert result.results == sat(Reader(longest), every_order=True).results
    result.finish()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", ["questions", "shots", "settings"])
def test_what_was_asked_otherwise_is_refused_and_kept(tmp_path: Path, change: str) -> None:
    report, said = tmp_path / "exam.json", list[str]()

    def ask(questions: Sequence[Question], shots: Sequence[list[Question]], seed: str) -> None:
        with sit_in_orders(
            Reader(longest), questions, shots, report=report, shaped_by={"seed": seed}, say=said.append, progress=False
        ):
            pass

    ask(QUESTIONS, SHOTS, "1")
    ask(QUESTIONS, SHOTS, "1")
    assert said.pop().endswith("3 of 3 questions were answered before; going on") and not said
    other = [*QUESTIONS[:2], Question("3", "Which bone, then?", QUESTIONS[2].options, "C")]
    named = {"questions": r"other questions \(--exam, --limit\)", "shots": "other shots", "settings": "seed: 1 then, 2"}
    with pytest.raises(UnsuitableFileError, match=named[change]):
        ask(
            other if change == "questions" else QUESTIONS,
            [[QUESTIONS[0]], [], []] if change == "shots" else SHOTS,
            "2" if change == "settings" else "1",
        )
    ask(QUESTIONS, SHOTS, "1")
    assert said.pop().endswith("3 of 3 questions were answered before; going on") and not said


def test_a_journal_whose_answers_were_changed_is_damage(tmp_path: Path) -> None:
    report = tmp_path / "exam.json"
    with sit_in_orders(Reader(longest), QUESTIONS, SHOTS, report=report, progress=False):
        pass
    journal = tmp_path / "exam.journal.jsonl"
    journal.write_text(journal.read_text().replace('"answer": "B"', '"answer": "A"'))
    with (
        pytest.raises(DamagedFileError, match="the result of question '1' is not about the exam's question"),
        sit_in_orders(Reader(longest), QUESTIONS, SHOTS, report=report, progress=False),
    ):
        pass
