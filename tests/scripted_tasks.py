"""A completion function without a model, and the ways in which a process can die at its journal."""

import os
import random
import signal
from collections.abc import Callable, Sequence

from data import Record
from data.self_instruct import Completion, Journal

VERBS = ("name", "list", "explain", "translate", "sort", "rewrite", "summarise", "compare", "describe", "count")
WORDS = tuple(f"{a}{b}" for a in ("ba", "do", "ki", "lu", "me") for b in ("ra", "to", "si", "nu"))
SEEDS = [Record(f"{verb} {WORDS[n]} {WORDS[-n]} please", "", f"answer {n}") for n, verb in enumerate(VERBS)]


def scripted(prompts: Sequence[str], first: int) -> list[Completion]:
    """Lists of tasks, some of them bad, that depend on the request's number alone, as a seeded sampler's do."""
    return [_completion(prompt, random.Random(first + n)) for n, prompt in enumerate(prompts)]


def _completion(prompt: str, chance: random.Random) -> Completion:
    number = int(prompt.rsplit("\n", 1)[1].split(".")[0])
    pieces = []
    for k in range(number, number + chance.randint(1, 4)):
        words = [chance.choice(VERBS), *chance.choices(WORDS, k=chance.randint(1, 7))]
        if not chance.randrange(6):
            words = [*SEEDS[k % len(SEEDS)].instruction.split(), "again"]
        if not chance.randrange(6):
            words.insert(2, "image")
        label = "Output" if chance.randrange(8) else "Answer"
        given = chance.choice(["<noinput>", 'some "input",\nin two lines \N{SNOWMAN}'])
        pieces.append(f"{k}. Instruction: {' '.join(words)}\n{k}. Input:\n{given}\n{k}. {label}:\nSo {k}.\n")
    text = "###\n".join(pieces)
    return Completion(text.removeprefix(f"{number}. Instruction:"), cut=not chance.randrange(3))


def die() -> None:
    """As `kill -9` does it."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(place: str, n: int) -> tuple[Callable[[Sequence[str], int], list[Completion]], Callable]:
    """A completion function and a `Journal.append` of which one kills the process in the n-th round (from 1)."""
    rounds = 0
    plain_append, plain_fsync = Journal.append, os.fsync

    def complete(prompts: Sequence[str], first: int) -> list[Completion]:
        nonlocal rounds
        rounds += 1
        if (place, n) == ("in a completion", rounds):
            die()
        return scripted(prompts, first)

    def append(journal: Journal, done) -> None:
        if rounds != n:
            return plain_append(journal, done)
        if place == "before the line":
            die()
        if place.startswith("within the line"):
            whole, share = journal.path.stat().st_size, float(place.split()[-1])

            def torn(descriptor: int) -> None:
                os.ftruncate(descriptor, whole + int(share * (os.fstat(descriptor).st_size - whole)))
                die()

            os.fsync = torn
        elif place == "before fsync":
            os.fsync = lambda descriptor: die()
        elif place == "after fsync":
            os.fsync = lambda descriptor: (plain_fsync(descriptor), die())
        plain_append(journal, done)

    return complete, append


PLACES = (
    "in a completion",
    "before the line",
    "within the line 0.01",
    "within the line 0.5",
    "within the line 0.999",
    "before fsync",
    "after fsync",
)
