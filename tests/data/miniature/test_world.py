import re
from collections import Counter
from string import Formatter

import pytest

from data.miniature import world


def test_there_are_enough_entities_with_enough_attributes():
    groups = world.by_entity()
    assert len(groups) >= 200
    assert {len(group) for group in groups.values()} <= {3, 4, 5, 6}
    assert sum(len(group) >= 4 for group in groups.values()) / len(groups) > 0.9


@pytest.mark.parametrize("kind", world.KINDS)
def test_names_are_unique_and_cells_filled(kind: str):
    rows = world.read_table(kind)
    names = Counter(row["name"] for row in rows)
    assert names.most_common(1)[0][1] == 1
    for row in rows:
        for cell in row.values():
            assert cell and cell == cell.strip() and not cell.endswith(".")


def test_every_column_has_its_phrasings_and_every_phrasing_its_column():
    columns = {f"{kind}.{column}" for kind in world.KINDS for column in world.read_table(kind)[0] if column != "name"}
    assert columns == set(world.relations())


@pytest.mark.parametrize("relation", world.relations().values(), ids=lambda relation: relation.key)
def test_phrasings_name_what_they_must(relation: world.Relation):
    """Several sentences per fact; a question names one side of the fact and never the other."""
    assert len(relation.prose) >= 5
    assert relation.step in (1, 2, 3)
    for sentence in relation.prose + relation.reverse:
        assert {"x", "v"} == {field.lower() for field in fields(sentence)}, sentence
    for question in relation.ask + relation.exam:
        assert fields(question) <= {"x", "X"} and fields(question), question
    for question in relation.converse:
        assert fields(question) == {"v"}, question
    for sentence in relation.tell:
        assert "v" in fields(sentence), sentence


def fields(sentence: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(sentence) if name}


def test_filling_leaves_no_placeholder():
    for fact in world.facts():
        for sentence in fact.relation.prose + fact.relation.reverse + fact.relation.exam:
            said = fact.say(sentence)
            assert not re.search(r"[{}]", said)
            assert said[0].isupper() or said[0].isdigit()


def test_diseases_refer_to_tables_consistently():
    """Where a drug's use or what a test detects is a disease of the table, it is spelt as there."""
    diseases = {row["name"] for row in world.read_table("diseases")}
    near = {name.lower().rstrip("s"): name for name in diseases}
    for kind, column in (("drugs", "use"), ("tests", "detects")):
        for row in world.read_table(kind):
            cell = row[column]
            assert cell in diseases or cell.lower().rstrip("s") not in near, cell
