"""Plain English around the world: what everybody knows, and sentences that only connect.

A model that had read nothing but medicine would meet the words of the prompts and exams untrained.
`tables/everyday.toml` holds small general knowledge (opposites, colors, capitals) with the sentences that tell it and
the tasks that ask for it; `tables/connective.txt` holds plain sentences in the words of questions and instructions,
none of them a question about the world.
"""

import tomllib
from dataclasses import dataclass
from functools import cache
from random import Random

from data.miniature.world import HERE, capital

ROUNDS = 6  # how often every everyday fact and every connective sentence is told
SENTENCES = 4  # in a document


@dataclass(frozen=True)
class Topic:
    """Pairs of general knowledge with the sentences that tell and the tasks (instruction, input) that ask for `v`."""

    name: str
    pairs: tuple[tuple[str, str], ...]
    prose: tuple[str, ...]
    tasks: tuple[tuple[str, str], ...]


@cache
def topics() -> tuple[Topic, ...]:
    """The topics of `tables/everyday.toml`."""
    sections = tomllib.loads((HERE / "tables" / "everyday.toml").read_text("utf-8"))
    return tuple(
        Topic(
            name,
            tuple((x, v) for x, v in section["pairs"]),
            tuple(section["prose"]),
            tuple((instruction, text) for instruction, text in section["tasks"]),
        )
        for name, section in sections.items()
    )


@cache
def connective_sentences() -> tuple[str, ...]:
    """The sentences of `tables/connective.txt`."""
    return tuple((HERE / "tables" / "connective.txt").read_text("utf-8").splitlines())


def fill(sentence: str, pair: tuple[str, str]) -> str:
    """Put a pair into a sentence.

    >>> fill("{V} is the capital of {x}.", ("Norway", "Oslo"))
    'Oslo is the capital of Norway.'
    """
    x, v = pair
    return sentence.format(x=x, X=capital(x), v=v, V=capital(v))


def everyday_documents(random: Random) -> list[str]:
    """Documents of mixed plain sentences."""
    documents = []
    for _ in range(ROUNDS):
        sentences = [*connective_sentences()] + [
            fill(random.choice(t.prose), pair) for t in topics() for pair in t.pairs
        ]
        random.shuffle(sentences)
        documents += [" ".join(sentences[start : start + SENTENCES]) for start in range(0, len(sentences), SENTENCES)]
    return documents
