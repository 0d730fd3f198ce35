"""The page of an exam: its figures are the report's, its examples spread, its texts stay texts."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markup import markup_of
from reported import generated, questions_of, scored

from data.exams import Question
from evaluation import Result, accuracies, compare
from evaluation.bias import RotationBias, rotated
from evaluation.page import exam_page, sureness
from evaluation.page_examples import worked_examples
from evaluation.page_letters import letter_bars, letter_matrix, rotation_parts
from pages import Heat

SETTINGS = {"exam": "usmle", "description": "a tiny model", "limit": None, "int8": True, "seconds": 1.25}
QUESTIONS = questions_of(60)
RESULTS = scored(QUESTIONS)


def row(answer: str, predicted: str | None, number: int = 0, letters: str = "ABC") -> Result:
    return Result(f"q{number}", "s", None, answer, tuple(letters), predicted)


def text_of(results, questions=QUESTIONS, **options) -> str:
    return markup_of(exam_page(results, settings=SETTINGS, questions=questions, **options).content()).text


def test_the_page_says_what_the_tables_of_the_terminal_say():
    said = text_of(RESULTS)
    for name, group in accuracies(RESULTS).items():
        assert (
            f"{name}: {group.n}, {100 * group.value:.1f}\u00a0%, {100 * group.low:.0f}–{100 * group.high:.0f}" in said
        )
    whole = accuracies(RESULTS)["all"]
    assert f"{100 * whole.low:.1f} to {100 * whole.high:.1f}\u00a0%, 95 % interval" in said
    assert "the model is above chance" in said and "a tiny model" in said and "usmle" in said


def test_a_model_that_guesses_is_not_said_to_be_above_chance():
    guesses = [replace(result, predicted="ABCDE"[i % 5] if i % 5 else "B") for i, result in enumerate(RESULTS)]
    guesses = [replace(result, answer="A") for result in guesses]
    assert "above chance" not in text_of(guesses)


def test_a_comparison_shows_both_and_what_was_gained_and_lost():
    before = scored(QUESTIONS, seed=1, skill=0.0)
    comparison = compare(before, RESULTS)
    said = text_of(RESULTS, comparison=comparison)
    whole = comparison["all"]
    points, low, high = (100 * figure for figure in (whole.change, *whole.interval))
    assert f"{points:+.1f}{low:+.1f} to {high:+.1f}, 95 % interval; p" in said
    assert f"all{points:+.0f} ({low:.0f} to {high:.0f})+{whole.gained} −{whole.lost}" in said
    assert "all, before" in said and "McNemar" in said and "points since before" in said


def test_the_confusion_counts_every_question_once():
    results = [row("A", "A"), row("A", "B"), row("B", "B"), row("B", None), row("C", "A")]
    heat = letter_matrix(results)
    assert (heat.rows, heat.columns) == (["A", "B", "C"], ["A", "B", "C", "none"])
    assert heat.counts == [[1, 1, 0, 0], [0, 1, 0, 1], [1, 0, 0, 0]]
    assert "none" not in letter_matrix(results[:3]).columns


def test_a_preference_for_a_letter_is_seen():
    drawn = letter_bars([row("A", "C"), row("B", "C"), row("C", "C"), row("C", None)])
    assert [(bar.label, bar.value, bar.chance, list(bar.cells)) for bar in drawn.rows] == [
        ("A", 0.0, 0.25, ["0", "1"]),
        ("B", 0.0, 0.25, ["0", "1"]),
        ("C", 0.75, 0.5, ["3", "2"]),
        ("none", 0.25, None, ["1", ""]),
    ]
    assert "with a probability of p = " in drawn.caption


def test_a_letter_that_is_no_option_is_counted_as_such():
    heat = letter_matrix([row("A", "I"), row("B", "A")])
    assert heat.columns == ["A", "B", "C", "no option"] and heat.counts == [[0, 0, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]]


def test_other_orders_show_their_accuracies_and_letters_against_fair_shares():
    """A model that always says A is right once in five orders, and the same text never comes out on top."""
    turned = [[rotated(question, k) for question in QUESTIONS] for k in range(5)]
    bias = RotationBias.of([[Result.said(q, "A", ()) for q in questions] for questions in turned])
    orders, letters = rotation_parts(bias)
    assert [bar.label for bar in orders.rows][:2] == ["as printed", "moved on by 1"]
    assert orders.caption.startswith("0 of 60 questions got the same text in every order")
    assert "over all orders 20.0\u00a0% are right" in orders.caption
    assert [(bar.label, bar.value, bar.chance) for bar in letters.rows] == [("A", 1.0, 0.2)] + [
        (letter, 0.0, 0.2) for letter in "BCDE"
    ]
    assert "Order of the options" in text_of(RESULTS, rotations=bias)


def test_an_exam_of_many_letters_shows_the_first_and_says_so():
    many = [row("a", "b", letters=[chr(97 + i) for i in range(20)])]
    heat = letter_matrix(many)
    assert isinstance(heat, Heat) and len(heat.rows) == 12 and "8 letters more" in heat.caption


def test_sureness_puts_each_question_into_one_bin():
    drawn = sureness(RESULTS)
    assert sum(int(bar.cells[0]) for bar in drawn.rows) == len(RESULTS)
    n_right = sum(round(bar.value * int(bar.cells[0])) for bar in drawn.rows)
    assert n_right == sum(result.correct for result in RESULTS)
    assert sureness(generated(QUESTIONS)) is None


def test_a_probability_of_one_is_in_the_last_bin():
    question = Question("q", "?", {"A": "x", "B": "y"}, "A")
    [bar] = sureness([Result.scored(question, {"A": 0.0, "B": -1e9})]).rows
    assert bar.label == "90 to 100 %" and bar.value == 1


def test_the_examples_are_a_spread_and_no_question_is_shown_twice():
    examples = list(worked_examples(RESULTS, QUESTIONS))
    kinds = [example.heading.split(":")[0] for example in examples]
    assert kinds == ["right and sure"] * 2 + ["wrong and sure"] * 2 + ["undecided"] * 2
    assert len({example.heading for example in examples}) == len({e.heading.split(": ")[1] for e in examples}) == 6
    surest = max((r for r in RESULTS if r.correct), key=lambda r: max(r.probabilities.values()))
    assert examples[0].heading == f"right and sure: {surest.id}"
    assert examples[0].verdict == "good" and examples[2].verdict == "bad"
    shares = [choice.share for choice in examples[0].choices]
    assert sum(shares) == pytest.approx(1) and [c.share for c in examples[0].choices if c.chosen] == [max(shares)]


def test_generated_answers_show_what_was_said_at_each_try():
    results = generated(QUESTIONS)
    examples = {e.heading.split(":")[0]: e for e in worked_examples(results, QUESTIONS)}
    assert examples.keys() == {"right", "wrong", "no answer", "by accident"}
    assert [who for who, _ in examples["no answer"].said] == ["try 1", "try 2", "try 3"]
    assert [who for who, _ in examples["right"].said] == ["model"]
    said = text_of(results)
    assert "without an answer" in said and "answers by accident" in said


def test_a_question_that_is_not_at_hand_is_no_example():
    assert list(worked_examples(RESULTS, [])) == []
    assert "Some of the questions" not in text_of(RESULTS, questions=[])


def test_the_same_results_make_the_same_page():
    a, b = (exam_page(RESULTS, settings=SETTINGS, questions=QUESTIONS, notes=["two ties"]).content() for _ in range(2))
    assert a == b and b"<p>two ties</p>" in a


def test_no_results_are_no_page():
    with pytest.raises(ValueError, match="at least one question"):
        exam_page([], settings=SETTINGS, questions=QUESTIONS)


def test_the_largest_exam_fits_into_300_kb():
    questions = questions_of(1273, text="A 45-year-old man comes to the physician because of chest pain. " * 20)
    before = scored(questions, seed=1)
    after = scored(questions)
    comparison = compare(before, after)
    page = exam_page(after, settings=SETTINGS, questions=questions, notes=["a note"], comparison=comparison)
    assert len(page.content()) < 300_000


def test_an_exam_of_a_thousand_steps_does_not_make_a_page_without_end():
    results = [replace(result, step=f"step {i}") for i, result in enumerate(scored(questions_of(1000)))]
    page = exam_page(results, settings=SETTINGS, questions=questions_of(1000))
    assert len(page.content()) < 300_000 and "groups more" in markup_of(page.content()).text


characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")  # which no exam may hold
foreign = st.text(characters, min_size=1, max_size=40).filter(str.strip)


@given(foreign, foreign)
@settings(max_examples=30, deadline=None)
def test_no_text_of_an_exam_a_model_or_a_setting_becomes_markup(text, other):
    ours = markup_of(hostile_page("x", "y"))
    found = markup_of(hostile_page(text, other))
    assert {*found.tags} <= {*ours.tags, "wbr"}
    assert {(tag, name) for tag, name, _ in found.attributes} == {(tag, name) for tag, name, _ in ours.attributes}
    assert found.declarations == ["DOCTYPE html"]


def hostile_page(text: str, other: str) -> bytes:
    options = {"A": f"{text} 1", "B": f"{other} 2", f"{text[:5]}C": "c"}
    asked = [Question(f"{text}{i}", text, options, "A", f"{other}{i % 2}", other) for i in range(4)]
    results = [Result.said(q, [None, "A", "B", "A"][i], (text, other), accident=i == 3) for i, q in enumerate(asked)]
    settings_ = {text: other, "exam": text, "description": text, "list": [text, other]}
    comparison = compare(results, results)
    page = exam_page(results, settings=settings_, questions=asked, notes=[text], comparison=comparison, date=other)
    return page.content()
