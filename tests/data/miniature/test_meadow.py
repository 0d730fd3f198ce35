import re

from data.miniature import meadow, world

SOURCES = ["flashcards", "wikidoc", "patient_information", "stack_exchange"]


def test_sources_and_rows_have_the_form_of_medical_meadow():
    sets = meadow.meadow()
    assert list(sets) == SOURCES
    for row in [row for rows in sets.values() for row in rows] + meadow.alpaca():
        assert list(row) == ["instruction", "input", "output"]
        assert row["instruction"] and row["output"]


def test_the_stated_share_of_facts_is_taught_and_the_others_are_not():
    taught = meadow.taught_facts()
    assert abs(len(taught) / len(world.facts()) - meadow.SHARE_TAUGHT) < 0.02  # mirror images count as one
    answers = {(row["input"], row["output"]) for row in meadow.meadow()["flashcards"]}
    for fact in world.facts():
        asked = [(fact.say(ask), fact.value) in answers for ask in fact.relation.ask]
        assert all(asked) if fact in taught else not any(asked), fact


def test_no_row_tells_an_untaught_fact():
    """Not in a whole sentence, not in a letter, not turned round: the facts held back stand in the corpus alone."""
    held_back = set(world.facts()) - meadow.taught_facts()
    answers: dict[str, list[str]] = {}
    for row in [row for rows in meadow.meadow().values() for row in rows]:
        for sentence in re.split(r"(?<=[.?]) ", row["input"]):
            answers.setdefault(sentence, []).append(row["output"])
    for fact in held_back:
        for ask in fact.relation.ask:
            for said in answers.get(fact.say(ask), ()):
                assert fact.value != said and fact.value not in said.split(" is ")[-1], (fact, said)
        for converse in fact.relation.converse:
            assert fact.entity not in answers.get(fact.say(converse), ()), fact


def test_everyday_tasks_hold_their_answers():
    rows = meadow.alpaca()
    assert {"instruction": "Name the capital of the country", "input": "Norway", "output": "Oslo"} in rows
    for row in rows:
        if row["instruction"] == "Give the last word of the list":
            assert row["input"].endswith(f", {row['output']}")
