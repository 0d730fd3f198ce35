"""The world: entities, their attributes, and the sentences about them.

`tables/*.tsv` hold what is true, one kind of entity per file and one entity per line; `phrasings/*.toml` hold how it
is said, one section per relation. A fact is one cell of a table: (entity, relation, value).

Everything is simplified medicine, written to be learnt by a very small model: one answer per question, in few words.
It is not medical advice.
"""

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
FILES = HERE / "files"
KINDS = ("diseases", "drugs", "tests", "structures")
# Relations that tell the same from either side: value and entity change places.
MIRRORS = {
    "diseases.treatment": "drugs.use",
    "drugs.use": "diseases.treatment",
    "diseases.test": "tests.detects",
    "tests.detects": "diseases.test",
}
EMPTY = "-"  # a cell that has no single good answer


@dataclass(frozen=True)
class Relation:
    """One column of a table and the sentences that express it.

    In every sentence `{x}` stands for the entity and `{v}` for the value, capitals for the start of a sentence.

    Attributes:
        kind: the table it belongs to.
        name: its column.
        step: the exam that asks about it, 1 to 3.
        labels: short names of the relation, for notes.
        overview: headings of lists that tell it of many entities.
        prose: sentences of the pretraining corpus, entity first.
        reverse: sentences of the pretraining corpus, value first.
        ask: questions of the instruction set.
        tell: full-sentence answers to them.
        converse: questions of the instruction set that name the value and ask for the entity.
        exam: question stems of the exams.
    """

    kind: str
    name: str
    step: int
    labels: tuple[str, ...]
    overview: tuple[str, ...]
    prose: tuple[str, ...]
    reverse: tuple[str, ...]
    ask: tuple[str, ...]
    tell: tuple[str, ...]
    converse: tuple[str, ...]
    exam: tuple[str, ...]

    @property
    def key(self) -> str:
        return f"{self.kind}.{self.name}"


@dataclass(frozen=True)
class Fact:
    """`entity` stands in `relation` to `value`; texts as they appear inside a sentence."""

    relation: Relation
    entity: str
    value: str

    def say(self, sentence: str) -> str:
        """Fill a sentence of the relation.

        >>> relation = relations()["diseases.organ"]
        >>> Fact(relation, "gout", "the joints").say("{X} affects {v}.")
        'Gout affects the joints.'
        """
        return sentence.format(x=self.entity, X=capital(self.entity), v=self.value, V=capital(self.value))

    @property
    def meaning(self) -> frozenset[tuple[str, str]]:
        """What is told, whichever side it is told from: a fact and its mirror image mean the same.

        >>> known = relations()
        >>> treatment = Fact(known["diseases.treatment"], "shingles", "acyclovir")
        >>> treatment.meaning == Fact(known["drugs.use"], "acyclovir", "shingles").meaning
        True
        """
        told = (self.relation.key, self.entity)
        return frozenset({told, (MIRRORS.get(self.relation.key, ""), self.value)})


def capital(text: str) -> str:
    """The text with a capital first letter and the rest unchanged.

    >>> capital("the HER2 receptor")
    'The HER2 receptor'
    """
    return text[:1].upper() + text[1:]


def read_table(kind: str) -> list[dict[str, str]]:
    """The rows of one table, each a dict from column to cell, `name` first."""
    header, *lines = (HERE / "tables" / f"{kind}.tsv").read_text("utf-8").splitlines()
    columns = header.split("\t")
    return [dict(zip(columns, line.split("\t"), strict=True)) for line in lines]


@cache
def relations() -> dict[str, Relation]:
    """All relations by key (`"drugs.target"`), in the order of the files."""
    found = {}
    for kind in KINDS:
        sections = tomllib.loads((HERE / "phrasings" / f"{kind}.toml").read_text("utf-8"))
        for name, section in sections.items():
            step = section.pop("step")
            sentences = {use: tuple(texts) for use, texts in section.items()}
            relation = Relation(kind=kind, name=name, step=step, **sentences)
            found[relation.key] = relation
    return found


@cache
def facts() -> tuple[Fact, ...]:
    """Every fact of the world, table by table, row by row."""
    known = relations()
    return tuple(
        Fact(known[f"{kind}.{column}"], in_sentence(kind, row["name"]), cell)
        for kind in KINDS
        for row in read_table(kind)
        for column, cell in row.items()
        if column != "name" and cell != EMPTY
    )


def in_sentence(kind: str, name: str) -> str:
    """A name as it stands inside a sentence: structures take the article, except those named after a person.

    >>> in_sentence("structures", "spleen"), in_sentence("structures", "Broca's area"), in_sentence("drugs", "insulin")
    ('the spleen', "Broca's area", 'insulin')
    """
    return f"the {name}" if kind == "structures" and name[0].islower() else name


def by_entity() -> dict[str, list[Fact]]:
    """The facts grouped by entity, as `kind:entity` (a name may be both a value and an entity of another kind)."""
    groups: dict[str, list[Fact]] = {}
    for fact in facts():
        groups.setdefault(f"{fact.relation.kind}:{fact.entity}", []).append(fact)
    return groups


def folder() -> Path:
    """Where the built miniature lies: corpus.txt, meadow/, alpaca.json, exams/ and base/."""
    return FILES
