"""What a reader of the accuracies should know, in numbers (for the JSON report) and in sentences (for people).

Likelihood: ties broken, prompts cut. Generation: questions without an answer, tries used, answers read by accident,
answers overlooked. Both: which letters were chosen, and how far so few questions can be trusted.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from data.exams import Question
from evaluation.answers import parse_answer
from evaluation.letters import letter_histogram_line
from evaluation.result import Result
from evaluation.statistics import half_width_note


def counts(results: Sequence[Result]) -> dict[str, Any]:
    """How often what happened; the generating protocols' counts only where texts are.

    >>> result = Result("1", "", None, "A", ("A", "B"), "I", texts=("Hm.", "I think"), accident=True)
    >>> counts([result])  # doctest: +NORMALIZE_WHITESPACE
    {'questions': 1, 'tied': 0, 'truncated': 0, 'unanswered': 0, 'tries': {'2': 1}, 'accidents': 1,
     'accidents_right': 0, 'no_option': 1}
    """
    numbers: dict[str, Any] = {
        "questions": len(results),
        "tied": sum(result.tied for result in results),
        "truncated": sum(result.truncated for result in results),
    }
    if any(result.texts for result in results):
        tries = Counter(len(result.texts) for result in results)
        numbers |= {
            "unanswered": sum(result.predicted is None for result in results),
            "tries": {str(n): tries[n] for n in sorted(tries)},
            "accidents": sum(result.accident for result in results),
            "accidents_right": sum(result.accident and result.correct for result in results),
            "no_option": sum(result.predicted not in (None, *result.letters) for result in results),
        }
    return numbers


def overlooked(results: Sequence[Result], questions: Sequence[Question]) -> int:
    """Texts that were not accepted although `parse_answer` finds an answer in them."""
    options = {question.id: question.options for question in questions}
    refused = (
        (text, options[result.id])
        for result in results
        for text in (result.texts if result.predicted is None else result.texts[:-1])
    )
    return sum(parse_answer(text, known) is not None for text, known in refused)


def notes(results: Sequence[Result], questions: Sequence[Question] = ()) -> list[str]:
    """The sentences; with the questions also what their options tell."""
    numbers = counts(results)
    n = numbers["questions"]
    said = []
    if numbers["tied"]:
        said.append(f"{numbers['tied']} of {n} questions ended in a tie; the first of the best options was taken")
    if numbers["truncated"]:
        said.append(f"{numbers['truncated']} of {n} prompts were cut on the left to fit the model's window")
    if "tries" in numbers:
        said += _generated(numbers, results, questions)
    said.append(letter_histogram_line(results))
    said.append(half_width_note(n))
    return said


def _generated(numbers: dict[str, Any], results: Sequence[Result], questions: Sequence[Question]) -> list[str]:
    n, said = numbers["questions"], []
    if numbers["unanswered"]:
        said.append(f"{numbers['unanswered']} of {n} questions got no acceptable answer, which counts as wrong")
    if list(numbers["tries"]) != ["1"]:
        used = ", ".join(f"{count} after {tries}" for tries, count in numbers["tries"].items())
        said.append(f"tries used, failures included: {used}")
    if numbers["accidents"]:
        said.append(
            f"{numbers['accidents']} answers were accepted by accident, {numbers['accidents_right']} of them right: "
            "a sound parser finds none in the text (A 35-year-old man ...), or another one, or several"
        )
    if numbers["no_option"]:
        said.append(f"{numbers['no_option']} answers are letters that were no option")
    if questions and (missed := overlooked(results, questions)):
        said.append(f"{missed} texts were not accepted although they give an answer")
    return said
