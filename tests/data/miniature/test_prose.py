import re
from dataclasses import replace
from random import Random

import pytest

from data.miniature import prose, world


def test_the_same_seed_gives_the_same_corpus_and_another_seed_another():
    assert prose.corpus(3) == prose.corpus(3)
    assert prose.corpus(3) != prose.corpus(4)


def test_every_fact_is_told_in_several_phrasings():
    """Several wordings per fact are what makes it extractable; a single one would be learnt as a string."""
    for group in world.by_entity().values():
        text = " ".join(prose.paragraphs(group, Random(0)))
        for fact in group:
            wordings = [sentence for sentence in fact.relation.prose if fact.say(sentence) in text]
            assert len(wordings) == len(fact.relation.prose) >= 5, fact


@pytest.mark.parametrize("as_list", [False, True])
def test_every_fact_is_told_in_notes_and_overviews(as_list: bool):
    """In a list the value begins its line: after a space it would be other tokens."""
    random = Random(0)
    told = ":\n{}\n" if as_list else ": {}."
    overviews = prose.overviews(random, as_list=as_list)
    assert all(("\n" in document) == as_list for document in overviews)
    in_overviews = "\n".join(overviews) + "\n"
    for group in world.by_entity().values():
        note = prose.note(group, random, as_list=as_list) + "\n"
        for fact in group:
            assert told.format(fact.value) in note
            assert world.capital(fact.entity) + told.format(fact.value) in in_overviews


def test_every_fact_is_told_in_stories_and_from_its_value():
    random = Random(0)
    reverses = "\n".join(prose.reverses(random))
    for group in world.by_entity().values():
        story = prose.story(group, random)
        assert story.split(".")[0].endswith(group[0].entity)
        for fact in group:
            assert any(replace(fact, entity="it").say(sentence) in story for sentence in fact.relation.prose)
            assert any(fact.say(sentence) in reverses for sentence in fact.relation.reverse)


def test_documents_hold_neither_blank_lines_nor_prompts():
    """Blank lines divide the documents of corpus.txt."""
    for document in prose.corpus():
        assert document == document.strip() and "\n\n" not in document
        assert not re.search(r"###|Context:|Question:|Response:", document)


def test_parts_lose_nothing():
    facts = list(world.facts())[:20]
    parts = prose.parts(facts, Random(1))
    assert [len(part) for part in parts] == [6, 6, 6, 2]
    assert {fact for part in parts for fact in part} == set(facts)
