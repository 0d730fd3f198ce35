"""The exams: step 1 on structures and mechanisms, step 2 on diseases and diagnosis, step 3 on treatment and tests.

Every question is made from one fact, in a phrasing that occurs in neither the corpus nor the instruction set. Half of
the questions are about facts that the instruction set teaches, half about facts that stand in the corpus alone; each
carries `"seen"` accordingly. Half have four options and half have five.

A wrong option is the value of another entity for the same relation, so it is of the same kind as the right one. It is
drawn by entity, not by value: a value that many entities share turns up as often among the wrong options as among the
right ones, and knowing which values are common does not help. `tables/distractors.toml` says what must not be
offered because it would be true as well.
"""

import tomllib
from collections import Counter
from functools import cache
from random import Random
from typing import Any

from data.miniature.meadow import taught_facts
from data.miniature.world import HERE, MIRRORS, Fact, facts

STEPS = (1, 2, 3)
QUESTIONS_PER_STEP = 200
OPTION_COUNTS = (4, 5)
LETTERS = "ABCDE"


def exams(seed: int = 0) -> dict[int, list[dict[str, Any]]]:
    """The three exams: per step, rows of `no`, `question`, `options`, `seen` and, to be split off, `answer`."""
    return {step: exam(step, Random(f"{seed} exam {step}")) for step in STEPS}


def exam(step: int, random: Random) -> list[dict[str, Any]]:
    """One exam, its questions in random order, its answers spread evenly over the letters of each size."""
    chosen = choose(step, True, random) + choose(step, False, random)
    random.shuffle(chosen)
    stems: Counter[str] = Counter()
    used: dict[int, Counter[str]] = {size: Counter() for size in OPTION_COUNTS}
    rows = []
    for number, (fact, wrong) in enumerate(chosen, start=1):
        relation, size = fact.relation, len(wrong) + 1
        stem = relation.exam[stems[relation.key] % len(relation.exam)]
        stems[relation.key] += 1
        letter = rarest(LETTERS[:size], used[size], random)
        used[size][letter] += 1
        options = [*wrong]
        options.insert(LETTERS.index(letter), fact.value)
        labelled = dict(zip(LETTERS, options, strict=False))
        seen = fact in taught_facts()
        rows.append({"no": number, "question": fact.say(stem), "options": labelled, "seen": seen, "answer": letter})
    return rows


def choose(step: int, seen: bool, random: Random) -> list[tuple[Fact, list[str]]]:
    """Facts for half an exam, taught or not, each with its wrong options; those that lack enough are passed over."""
    pool = [fact for fact in facts() if fact.relation.step == step and (fact in taught_facts()) == seen]
    random.shuffle(pool)
    chosen: list[tuple[Fact, list[str]]] = []
    for fact in pool:
        size = OPTION_COUNTS[len(chosen) % len(OPTION_COUNTS)]
        wrong = wrong_options(fact, size - 1, random)
        if fact.value not in broad(fact) and len(wrong) == size - 1:
            chosen.append((fact, wrong))
        if len(chosen) == QUESTIONS_PER_STEP // 2:
            return chosen
    raise ValueError(
        f"step {step} has {len(chosen)} facts to ask with seen = {seen}, {QUESTIONS_PER_STEP // 2} are needed: "
        "lower QUESTIONS_PER_STEP or extend the tables"
    )


def rarest(letters: str, used: Counter[str], random: Random) -> str:
    """The letter least used so far, by lot among equals."""
    fewest = min(used[letter] for letter in letters)
    return random.choice([letter for letter in letters if used[letter] == fewest])


def wrong_options(fact: Fact, count: int, random: Random) -> list[str]:
    """Up to `count` different values of other entities that are not true of this one."""
    excluded = true_values(fact) | broad(fact)
    others = [other.value for other in facts() if other.relation is fact.relation and other.value not in excluded]
    random.shuffle(others)
    return list(dict.fromkeys(others))[:count]


def true_values(fact: Fact) -> set[str]:
    """The values of the fact's relation that are true of its entity, or too near to the true one to be called wrong.

    >>> from data.miniature.world import relations
    >>> gout = Fact(relations()["diseases.treatment"], "gout", "colchicine")
    >>> sorted(true_values(gout) & {"allopurinol", "prednisone", "naproxen", "insulin"})
    ['allopurinol', 'naproxen', 'prednisone']
    """
    key = fact.relation.key
    values = {other.value for other in facts() if other.relation is fact.relation and other.entity == fact.entity}
    values |= {value for entity, value in rules()["also"].get(key, ()) if entity == fact.entity.removeprefix("the ")}
    for group in rules()["overlaps"].get(key, ()):
        if fact.value in group:
            values.update(group)
    mirror = MIRRORS.get(key)  # a treatment is also right where its own use names the disease
    return values | {other.entity for other in facts() if other.relation.key == mirror and other.value == fact.entity}


def broad(fact: Fact) -> set[str]:
    """The values of the fact's relation that are true of too much to be asked for or offered."""
    return set(rules()["broad"].get(fact.relation.key, ()))


@cache
def rules() -> dict[str, dict[str, list[Any]]]:
    """`tables/distractors.toml`."""
    return tomllib.loads((HERE / "tables" / "distractors.toml").read_text("utf-8"))
