r"""The protocol `medalpaca`: how MedAlpaca (arXiv 2304.08247) read an answer off a text, to the letter.

From eval/eval_usmle.py and medalpaca/inferer.py of its repository:

    1. the question in the template, the answer begun with "The Answer to the question is:"
    2. sampled: temperature 0.4, then the 50 most probable tokens, then of these a mass of 0.9; 128 new tokens
    3. what follows the last "### Response: ... is:" of prompt and answer together
    4. everything but ASCII letters and digits stripped from both ends
    5. accepted if `^[A-Z](:|\.|) .+` matches: the first letter is the answer; otherwise again from 2, up to five tries
    6. five failures count as wrong

The pattern accepts what gives no answer ("A 35-year-old man", "I think", "E. coli") and rejects what gives one ("B",
"(B) Pancreas": the bracket behind the letter remains). `judge` calls the first an accident.

Two details of the programs of that time. Control ids were decoded as text, so that an answer ends with "</s>", whose
"s" outlives step 4: "A: " and nothing else is accepted. And the settings of step 2 went to the library without the id
of end-of-text; if that kept it from stopping there, which was not verified, it wrote 128 tokens each time: `--no-stop`.
The texts were drawn without a seed; ours are seeded.
"""

import re

from data import PromptTemplate
from data.exams import Question
from evaluation.answers import parse_answer

ACCEPTED = re.compile(r"[A-Z](:|\.|) .+")
OUTSIDE = re.compile(r"^[^A-Za-z0-9]+|[^A-Za-z0-9]+$")
END_OF_TEXT = "</s>"


def published_answer(response: str) -> str | None:
    """Steps 4 and 5: the letter that the pattern accepts.

    >>> [published_answer(text) for text in (" B: Pancreas.", "B", "A 35-year-old man", "(B) Pancreas")]
    ['B', None, 'A', None]
    """
    stripped = OUTSIDE.sub("", response)
    return stripped[0] if ACCEPTED.match(stripped) else None


def judge(question: Question, text: str, ended: bool, *, marker: str) -> tuple[str | None, bool]:
    """Steps 3 to 5 on what was said, and whether it was accepted by accident.

    Args:
        ended: whether the model ended its text itself.
        marker: the prompt's end, see `response_marker`.

    Returns:
        The letter or None, and whether a sound parser finds no answer in the text or another one, as it does for every
        letter that is no option.
    """
    response = (text + END_OF_TEXT * ended).split(marker)[-1]
    letter = published_answer(response)
    return letter, letter is not None and letter != parse_answer(text, question.options)


def response_marker(template: PromptTemplate, answer_prefix: str) -> str:
    """What follows a prompt's question: "\\n\\n### Response:\\nThe Answer to the question is:"."""
    return template.render("\0", "\0").rpartition("\0")[2] + answer_prefix
