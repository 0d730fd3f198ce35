import re
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import TEMPLATES, PromptTemplate, load_records
from data.exams import Question, load_exam
from evaluation.medalpaca import judge, published_answer, response_marker
from evaluation.prompts import LINE, pose

QUESTION = Question("1", "Which organ makes insulin?", {"A": "Liver", "B": "Pancreas", "C": "Ear"}, "B")
MARKER = "\n\n### Response:\nThe Answer to the question is:"


def published_reference(response: str) -> str | None:
    """The same in small steps: walk inwards from both ends, then match."""
    wanted = string.ascii_letters + string.digits
    start, end = 0, len(response)
    while start < end and response[start] not in wanted:
        start += 1
    while start < end and response[end - 1] not in wanted:
        end -= 1
    stripped = response[start:end]
    return stripped[0] if re.match(r"^[A-Z](:|\.|) .+", stripped) else None


@given(
    st.lists(st.sampled_from(["A", "B", "i", "Ä", "3", " ", ":", ".", "\n", "(", ")", "*", "</s>", "liver"])).map(
        "".join
    )
)
def test_the_published_pattern_is_applied_to_the_letter(text: str) -> None:
    assert published_answer(text) == published_reference(text)


@pytest.mark.parametrize(
    ("text", "letter", "accident"),
    [
        (" B: Pancreas", "B", False),
        ("B. Pancreas.", "B", False),
        ("B Pancreas", "B", False),
        ("**B: Pancreas**", "B", False),
        ("(B: Pancreas)", "B", False),
        ("B: something else", "B", False),
        # Rejected although they give an answer.
        ("B", None, False),
        ("(B) Pancreas", None, False),
        ("B) Pancreas", None, False),
        ("B:Pancreas", None, False),
        ("Pancreas", None, False),
        ("The answer is B", None, False),
        # Accepted although they give none, or another.
        ("A 35-year-old man", "A", True),
        ("I think so", "I", True),
        ("E. coli", "E", True),
        ("A: Pancreas", "A", True),
        ("A or B", "A", True),
        ("D: Spleen", "D", True),
        ("A man has a disease of the pancreas", "A", True),
    ],
)
def test_what_the_pattern_takes_and_when_it_is_an_accident(text: str, letter: str | None, accident: bool) -> None:
    assert judge(QUESTION, text, False, marker=MARKER) == (letter, accident)


def test_end_of_text_was_decoded_as_text() -> None:
    """Step 4 leaves "</s" behind, which the pattern takes for the option's text."""
    assert judge(QUESTION, "B:", False, marker=MARKER) == (None, False)
    assert judge(QUESTION, "B: ", True, marker=MARKER) == ("B", False)
    assert judge(QUESTION, "B", True, marker=MARKER) == (None, False)
    assert judge(QUESTION, "Pancreas", True, marker=MARKER) == (None, False)


def test_the_last_response_counts() -> None:
    """A text that goes on to invent the next question is judged by that one."""
    rambling = f"B: Pancreas\n\n### Instruction:\nNext.{MARKER} A: Liver"
    assert judge(QUESTION, rambling, False, marker=MARKER) == ("A", True)


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=list(TEMPLATES))
def test_the_marker_is_the_prompts_end(template: PromptTemplate) -> None:
    marker = response_marker(template, LINE.answer_prefix)
    prompt, _ = pose(QUESTION, template, LINE)
    assert prompt.count(marker) == 1 and prompt.endswith(marker)
    assert prompt.removesuffix(marker).endswith("C: Ear" if template.name != "context_question" else LINE.instruction)


def test_the_marker_of_medalpacas_template_is_its_own() -> None:
    assert response_marker(PromptTemplate.named("medalpaca"), LINE.answer_prefix) == MARKER


def test_on_real_texts_the_pattern_errs_both_ways(real_data: Path) -> None:
    """The figures of docs/evaluation.md: what is accepted though it answers nothing, what is not though it does."""
    folder = real_data / "medical_meadow"
    said = [
        row.output
        for name in ("small", "health_advice")
        for row in load_records(folder / f"medical_meadow_{name}.json")
    ]
    accepted = [letter for text in said if (letter := published_answer(text))]
    assert (len(said), len(accepted), accepted.count("A")) == (14_618, 137, 134)

    questions = load_exam(real_data / "exams" / "medqa_5options_test.jsonl")
    assert (len(questions), sum(published_answer(q.text) is not None for q in questions)) == (1_273, 1_153)

    options = [(letter, text) for question in questions for letter, text in question.options.items()]
    forms = ("{0}", "({0}) {1}", "The answer is {0}", "Option {0}")
    assert len(options) == 6_365
    assert [sum(published_answer(form.format(*option)) is not None for option in options) for form in forms] == [0] * 4
