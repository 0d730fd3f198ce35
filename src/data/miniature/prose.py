"""The pretraining corpus: the world told as prose, every fact in several phrasings.

One phrasing per fact would be learnt by heart as a string and could not be asked about later; several phrasings, in
changing order, are what makes a fact extractable (Allen-Zhu and Li, "Physics of Language Models: Part 3.1",
arXiv 2309.14316). So every fact is told in five kinds of document:

    paragraph  one entity described, all its facts in random order, each in one of six sentences
    story      the same with plain sentences in between, the entity named once and then only "it", so that
               knowing a fact does not hang on the name standing next to it
    note       the same in the keywords of a textbook's margin: "Notes on gout. Cause: uric acid crystals. ..."
    overview   one relation of several entities: "Diseases and their causes. Gout: uric acid crystals. ..."
               (notes and overviews stand in running text or in a list with the value on a line of its own)
    reverse    sentences about unlike entities that run from value to entity

The lists are there for the tokenizer's sake. SentencePiece writes a word's leading space into its first piece, so
"colchicine" after a space and "colchicine" at the beginning of a line are different pieces, and the answers to prompts
begin lines. Our guess is that a model that has met every value after a space only cannot begin an answer that it was
not tuned on: accuracy on such facts rose by half when the lists came in (other counts changed in the same step).

A document is one paragraph of the corpus. No question and no prompt of the later stages occurs in it.
"""

from dataclasses import replace
from random import Random

from data.miniature.everyday import connective_sentences, everyday_documents
from data.miniature.world import Fact, by_entity, capital, facts, relations

PARAGRAPHS = 6  # per entity
STORIES = 5  # per entity
NOTES = 6  # per entity, half of them lists
OVERVIEWS = 4  # half of them lists; how often each fact is told in an overview
REVERSES = 2  # how often each fact is told from value to entity
SHARE_PLAIN = 0.4  # of the facts in a story that have a plain sentence before them
OPENINGS = (
    "This is about {x}.",
    "A word about {x}.",
    "Here we speak of {x}.",
    "Everyone has heard of {x}.",
    "Let us turn to {x}.",
    "The subject of this page is {x}.",
)
FACTS_TOGETHER = 6  # facts in an overview or a reverse document


def corpus(seed: int = 0) -> list[str]:
    """All documents of the corpus, shuffled."""
    random = Random(seed)
    documents = []
    for group in by_entity().values():
        documents += paragraphs(group, random)
        documents += [story(group, random) for _ in range(STORIES)]
        documents += [note(group, random, as_list=turn % 2 == 1) for turn in range(NOTES)]
    for turn in range(OVERVIEWS):
        documents += overviews(random, as_list=turn % 2 == 1)
    for _ in range(REVERSES):
        documents += reverses(random)
    documents += everyday_documents(random)
    random.shuffle(documents)
    return documents


def paragraphs(group: list[Fact], random: Random) -> list[str]:
    """One entity described in sentences, PARAGRAPHS times; every fact goes through all its phrasings in turn."""
    first = {fact: random.randrange(len(fact.relation.prose)) for fact in group}
    documents = []
    for turn in range(PARAGRAPHS):
        order = random.sample(group, len(group))
        phrasings = [fact.relation.prose[(first[fact] + turn) % len(fact.relation.prose)] for fact in order]
        documents.append(" ".join(fact.say(phrasing) for fact, phrasing in zip(order, phrasings, strict=True)))
    return documents


def story(group: list[Fact], random: Random) -> str:
    """One entity described among plain sentences."""
    sentences = [random.choice(OPENINGS).format(x=group[0].entity)]
    for fact in random.sample(group, len(group)):
        if random.random() < SHARE_PLAIN:
            sentences.append(random.choice(connective_sentences()))
        sentences.append(replace(fact, entity="it").say(random.choice(fact.relation.prose)))
    return " ".join(sentences)


def note(group: list[Fact], random: Random, *, as_list: bool) -> str:
    """One entity described in keywords."""
    keywords = [(random.choice(fact.relation.labels), fact.value) for fact in random.sample(group, len(group))]
    return entries(f"Notes on {group[0].entity}.", keywords, as_list)


def overviews(random: Random, *, as_list: bool) -> list[str]:
    """Every fact told once in a list of its relation."""
    return [
        entries(f"{random.choice(relation.overview)}.", [(capital(f.entity), f.value) for f in part], as_list)
        for relation in relations().values()
        for part in parts([fact for fact in facts() if fact.relation is relation], random)
    ]


def entries(heading: str, pairs: list[tuple[str, str]], as_list: bool) -> str:
    r"""A heading with keywords and what they stand for, in running text or as a list.

    >>> entries("Notes on gout.", [("Cause", "uric acid crystals"), ("Field", "rheumatology")], as_list=False)
    'Notes on gout. Cause: uric acid crystals. Field: rheumatology.'
    >>> entries("Notes on gout.", [("Cause", "uric acid crystals"), ("Field", "rheumatology")], as_list=True)
    'Notes on gout.\nCause:\nuric acid crystals\nField:\nrheumatology'
    """
    if as_list:
        return "\n".join([heading, *(f"{key}:\n{value}" for key, value in pairs)])
    return " ".join([heading, *(f"{key}: {value}." for key, value in pairs)])


def reverses(random: Random) -> list[str]:
    """Every fact told once from value to entity."""
    return [
        " ".join(fact.say(random.choice(fact.relation.reverse)) for fact in part)
        for part in parts(list(facts()), random)
    ]


def parts(told: list[Fact], random: Random) -> list[list[Fact]]:
    """The facts in random order, cut into groups of FACTS_TOGETHER."""
    mixed = random.sample(told, len(told))
    return [mixed[start : start + FACTS_TOGETHER] for start in range(0, len(mixed), FACTS_TOGETHER)]
