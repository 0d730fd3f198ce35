"""Contamination: how much of an exam's wording stands in the texts that a model was trained on.

    share(q) = |grams(q) ∩ grams(training texts)| / |grams(q)|

Grams are runs of n words, in lower case and without punctuation. GPT-3 (arXiv 2005.14165, appendix C) removed what
shared one run of 8 to 13 words, its n depending on the exam, with the web. Against a fine-tuning set that is too much:
"which of the following is the most likely diagnosis" has nine words. So a question counts as contaminated when a
*share* of its grams is found, half of them by default; the share itself is reported, and the longest run found, which
tells boilerplate from a leak. A question of fewer words than n has no gram and cannot be judged; it is counted.

What this does not see is a question asked in other words. What it sees and need not matter: a stem without its answer.

The exam is the small side: its grams are held, 170 bytes for each of its words (27 MB for MedQA's test), and the
training texts are read past, one at a time. Runs of words come out of `zip` and go through `filter`, so no loop of
Python's goes over them: a million words a second on one core, 100,000 rows of Medical Meadow's length (86 words) in
8 seconds.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

from data.exams import Question
from data.text import load_texts
from files.fields import Place, text_field
from files.rows import read_rows

WORDS = 8
THRESHOLD = 0.5
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class QuestionOverlap:
    """What of one question was found.

    Attributes:
        id: the question's.
        found, total: its different grams found, and all of them.
        longest: the longest run of its words that the grams found cover, as normalised; "" if none was found.
        where: the training text with the most of its grams, as "cards.json, row 7", of several the first; "" if none
            was found.
    """

    id: str
    found: int
    total: int
    longest: str = ""
    where: str = ""

    @property
    def share(self) -> float:
        """The share of its grams found."""
        return self.found / self.total


@dataclass(frozen=True)
class Overlap:
    """What of an exam was found in training texts.

    Attributes:
        n: words in a gram.
        threshold: share of a question's grams from which on it counts as contaminated.
        rows: every question that has a gram, in the exam's order.
        too_short: ids of those that have none.
        n_texts: training texts read.
    """

    n: int
    threshold: float
    rows: tuple[QuestionOverlap, ...]
    too_short: tuple[str, ...]
    n_texts: int

    @property
    def contaminated(self) -> list[QuestionOverlap]:
        """Questions at or above the threshold, the worst first."""
        return [row for row in self.examples(len(self.rows)) if row.share >= self.threshold]

    def examples(self, count: int) -> list[QuestionOverlap]:
        """The questions of which most was found; none of which nothing was."""
        touched = [row for row in self.rows if row.found]
        return sorted(touched, key=lambda row: -row.share)[:count]

    def sentences(self, count: int = 3) -> list[str]:
        """The finding, and its worst examples, for people."""
        touched = self.examples(len(self.rows))
        said = [
            f"{len(self.contaminated)} of {len(self.rows)} questions have {self.threshold:.0%} or more of their "
            f"{self.n}-word runs in the {self.n_texts:,} training texts, {len(touched)} have any"
        ]
        if self.too_short:
            said.append(f"{len(self.too_short)} questions are shorter than {self.n} words and were not judged")
        said += [
            f"{row.id}, {row.share:.0%}, most in {row.where}: {_shortened(row.longest)}" for row in touched[:count]
        ]
        return said


def normalised_words(text: str) -> list[str]:
    """The words of a text as they are compared.

    >>> normalised_words("A 35-year-old man's β-blocker")
    ['a', '35', 'year', 'old', 'man', 's', 'β', 'blocker']
    """
    return _WORD.findall(text.lower())


def find_overlap(
    questions: Sequence[Question], texts: Iterable[tuple[str, str]], n: int = WORDS, threshold: float = THRESHOLD
) -> Overlap:
    """Look for every question's text (not its options or context) in the training texts.

    Args:
        texts: where each stands, and the text; read once, one at a time. `training_texts` gives those of files.

    Raises:
        ValueError: n < 1, or a threshold outside (0, 1].

    >>> question = Question("1", "Which organ makes insulin in man?", {"A": "Liver", "B": "Pancreas"}, "B")
    >>> texts = [("row 1", "The liver."), ("row 2", "Tell me which organ makes insulin.")]
    >>> find_overlap([question], texts, n=3).rows
    (QuestionOverlap(id='1', found=2, total=4, longest='which organ makes insulin', where='row 2'),)
    """
    if n < 1:
        raise ValueError(f"n = {n} words must be at least 1")
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold = {threshold} must be a share above 0, at most 1")
    stems = [normalised_words(question.text) for question in questions]
    askers: dict[tuple[str, ...], tuple[int, ...]] = {}
    for index, words in enumerate(stems):
        for gram in set(_grams(words, n)):
            askers[gram] = (*askers.get(gram, ()), index)
    met: set[tuple[str, ...]] = set()
    most, holders = [0] * len(stems), [""] * len(stems)
    n_texts = 0
    for where, text in texts:
        n_texts += 1
        held = set(filter(askers.__contains__, _grams(normalised_words(text), n)))
        met |= held
        for index, count in Counter(chain.from_iterable(map(askers.__getitem__, held))).items():
            if count > most[index]:
                most[index], holders[index] = count, where
    judged = [
        _judge(question.id, words, n, met, where)
        for question, words, where in zip(questions, stems, holders, strict=True)
        if len(words) >= n
    ]
    short = tuple(question.id for question, words in zip(questions, stems, strict=True) if len(words) < n)
    return Overlap(n, threshold, tuple(judged), short, n_texts)


def training_texts(paths: Iterable[str | Path]) -> Iterator[tuple[str, str]]:
    """Every training text of the files, one at a time, behind its file and row: of a record its instruction, input and
    output in one, of a row of plain text its "text", of a .txt file its paragraphs.

    Raises:
        FileError: what is none of these, or no file; file and place are named.
        OSError: a file cannot be read.
    """
    for path in map(Path, paths):
        if not path.exists():
            raise Place(path).unsuitable("no such file", "check the path of the training file")
        if path.suffix == ".txt":
            yield from ((f"{path}, paragraph {i}", text) for i, text in enumerate(load_texts([path]), start=1))
            continue
        for _, place, row in read_rows(path):
            yield f"{path}, {place.within}", _row_text(row, place)


# --- Parts ---


def _row_text(row: object, place: Place) -> str:
    if isinstance(row, dict) and "text" in row and "instruction" not in row:
        return text_field(row, "text", place)
    instruction, output = text_field(row, "instruction", place), text_field(row, "output", place)
    return f"{instruction}\n{text_field(row, 'input', place, default='')}\n{output}"


def _grams(words: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(n)), strict=False)


def _judge(name: str, words: list[str], n: int, met: set[tuple[str, ...]], where: str) -> QuestionOverlap:
    grams = list(_grams(words, n))
    hits = [i for i, gram in enumerate(grams) if gram in met]
    if not hits:
        return QuestionOverlap(name, 0, len(set(grams)))
    # Neighbouring grams cover one run: cut the hits where they do not follow each other.
    cuts = [0, *(i for i, (a, b) in enumerate(pairwise(hits), start=1) if b != a + 1), len(hits)]
    begin, end = max(pairwise(cuts), key=lambda run: run[1] - run[0])
    return QuestionOverlap(
        name,
        found=len({grams[i] for i in hits}),
        total=len(set(grams)),
        longest=" ".join(words[hits[begin] : hits[end - 1] + n]),
        where=where,
    )


def _shortened(words: str, limit: int = 100) -> str:
    return words if len(words) <= limit else f"{words[:limit].rstrip()} ..."
