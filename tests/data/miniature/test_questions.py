import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from data.exams import load_exam
from data.miniature import folder, meadow, prose, questions, world

NOVEL = 4  # words in a row


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return [row for rows in questions.exams().values() for row in rows]


def test_enough_questions_with_four_or_five_options(rows: list[dict]):
    exams = questions.exams()
    assert sorted(exams) == [1, 2, 3]
    for step_rows in exams.values():
        assert len(step_rows) >= 100
        assert [row["no"] for row in step_rows] == list(range(1, len(step_rows) + 1))
    assert {len(row["options"]) for row in rows} == {4, 5}
    assert all(list(row["options"]) == list("ABCDE")[: len(row["options"])] for row in rows)


def test_half_of_the_questions_are_about_facts_of_the_instruction_set(rows: list[dict]):
    assert Counter(row["seen"] for row in rows) == {True: len(rows) // 2, False: len(rows) // 2}


def test_answers_are_spread_over_the_letters(rows: list[dict]):
    """Always answering one letter must not pay."""
    for size in (4, 5):
        counts = Counter(row["answer"] for row in rows if len(row["options"]) == size)
        assert len(counts) == size and max(counts.values()) - min(counts.values()) <= 3  # at most 1 per step


def test_the_answer_is_true_and_the_other_options_are_of_its_kind_and_not(rows: list[dict]):
    for row in rows:
        [fact] = facts_asked(row)
        assert row["options"][row["answer"]] == fact.value
        assert row["seen"] == (fact in meadow.taught_facts())
        values = {other.value for other in world.facts() if other.relation is fact.relation}
        wrong = [option for letter, option in row["options"].items() if letter != row["answer"]]
        assert len(set(wrong)) == len(wrong)
        assert set(wrong) <= values - questions.true_values(fact) - questions.broad(fact)


def facts_asked(row: dict) -> list[world.Fact]:
    return askable()[row["question"]]


@cache
def askable() -> dict[str, list[world.Fact]]:
    """Every question that could be asked -> the facts it could be about."""
    index: dict[str, list[world.Fact]] = {}
    for fact in world.facts():
        for stem in fact.relation.exam:
            index.setdefault(fact.say(stem), []).append(fact)
    return index


def test_common_values_are_no_likelier_to_be_right(rows: list[dict]):
    """Choosing the option that most entities share must stay near chance: the wrong ones are drawn the same way."""
    counts = Counter((fact.relation.key, fact.value) for fact in world.facts())
    expected = chance = 0.0
    for row in rows:
        [fact] = facts_asked(row)
        frequencies = {letter: counts[fact.relation.key, option] for letter, option in row["options"].items()}
        commonest = [letter for letter, n in frequencies.items() if n == max(frequencies.values())]
        expected += (row["answer"] in commonest) / len(commonest)
        chance += 1 / len(row["options"])
    deviation = (chance * (1 - chance / len(rows))) ** 0.5  # binomial
    assert expected - chance < 3 * deviation


def test_no_stem_shares_four_words_in_a_row_with_what_was_trained_on():
    """Word for word, the exam's phrasings are new: what carries over is knowledge and not a string."""
    rows = [row for rows in meadow.meadow().values() for row in rows] + meadow.alpaca()
    texts = prose.corpus() + [". ".join(row.values()) for row in rows]
    known = {gram for text in texts for gram in word_runs(text)}
    for relation in world.relations().values():
        for stem in relation.exam:
            assert not known.intersection(word_runs(stem)), stem


def word_runs(text: str) -> Iterator[tuple[str, ...]]:
    for fragment in re.split(r"[.?!:]|\{\w\}", text.lower()):
        words = re.findall(r"[a-z0-9'-]+", fragment)
        yield from zip(*(words[start:] for start in range(NOVEL)), strict=False)


def test_every_word_of_the_stems_was_met_in_the_corpus():
    """New phrasings of known words: an unknown word would test the vocabulary instead."""
    known = set(re.findall(r"[a-z']+", " ".join(prose.corpus()).lower()))
    for relation in world.relations().values():
        for stem in relation.exam + relation.ask + relation.converse:
            words = re.findall(r"[a-z']+", re.sub(r"\{\w\}", " ", stem).lower())
            assert not set(words) - known, stem


def test_the_rules_about_wrong_options_name_existing_values():
    values = {key: set() for key in world.relations()}
    entities = {key: set() for key in world.relations()}
    for fact in world.facts():
        values[fact.relation.key].add(fact.value)
        entities[fact.relation.key].add(fact.entity.removeprefix("the "))
    rules = questions.rules()
    for key, listed in rules["broad"].items():
        assert set(listed) <= values[key]
    for key, groups in rules["overlaps"].items():
        assert {value for group in groups for value in group} <= values[key]
    for key, pairs in rules["also"].items():
        for entity, value in pairs:
            assert entity in entities[key] and value in values[key], (key, entity, value)


def test_the_bundled_exams_load():
    loaded = load_exam(folder() / "exams")
    assert len(loaded) == 3 * questions.QUESTIONS_PER_STEP
    assert Counter(question.seen for question in loaded) == {True: len(loaded) // 2, False: len(loaded) // 2}
    assert Path(folder() / "exams" / "step1_solutions.json").exists()
