"""The instruction sets: questions about a part of the world in Medical Meadow's form, and a general set in Alpaca's.

Rows are {"instruction", "input", "output"}, in files named after Medical Meadow's sources, each with its manner:

    flashcards           a question in five wordings, answered in a few words
    wikidoc              a question answered by a whole sentence
    patient_information  a question inside a letter, answered in a few words
    stack_exchange       the question turned round: the value is given, the entity asked for

They cover SHARE_TAUGHT of the facts. The rest stand in the corpus alone, so that an exam can tell what was learnt as
an answer from what was known and could merely be asked for.
"""

from dataclasses import replace
from functools import cache
from random import Random

from data.miniature.everyday import fill, topics
from data.miniature.world import Fact, facts

SHARE_TAUGHT = 0.6
LETTERS_PER_FACT = 3
INSTRUCTION = "Answer this question truthfully"  # the one of most of Medical Meadow

# What stands around a question in letters and forums; where the opener names the entity, the question may say "it".
OPENERS = (
    "My doctor spoke about {x}.",
    "I read about {x}.",
    "My sister asked about {x}.",
    "The nurse said a word about {x} and then had to go.",
    "For two weeks I have heard of nothing but {x}.",
    "There was a letter from the hospital, and it was about {x}.",
    "Our teacher says that {x} will be in the test.",
    "My neighbor, an old man of 71, knows all about {x}, and I know nothing.",
)
BARE_OPENERS = (
    "I could not find this in my books.",
    "This came up at work.",
    "A short question.",
    "I am a student and have to answer this by Monday.",
    "My father is 58 and wants to understand his papers.",
    "Nobody at home could tell me.",
    "Yesterday I was at the doctor's and forgot to ask.",
    "It is late and I cannot sleep.",
)
CLOSERS = (
    "I would like to know it.",
    "Please answer in a few words.",
    "It is for my mother.",
    "Thank you.",
    "I hope that somebody knows.",
    "We have talked about it all day.",
    "The answer must be short.",
    "I am 33 years old.",
)

Row = dict[str, str]


@cache
def taught_facts(seed: int = 0) -> frozenset[Fact]:
    """The facts that the instruction set asks about; never one without its mirror image, which would give it away."""
    meanings = list(dict.fromkeys(fact.meaning for fact in facts()))
    taught = set(Random(f"{seed} taught").sample(meanings, round(SHARE_TAUGHT * len(meanings))))
    return frozenset(fact for fact in facts() if fact.meaning in taught)


def demo_questions() -> list[str]:
    """Three questions to ask before and after tuning, drawn by lot.

    Two are about facts that the instruction set teaches, the last about one that stands in the corpus alone.
    """
    random = Random("demo")
    taught = [fact for fact in facts() if fact in taught_facts()]
    held_back = [fact for fact in facts() if fact not in taught_facts()]
    return [fact.say(fact.relation.ask[0]) for fact in random.sample(taught, 2) + random.sample(held_back, 1)]


def meadow(seed: int = 0) -> dict[str, list[Row]]:
    """The four sets by source, each in random order."""
    random = Random(f"{seed} meadow")
    sets: dict[str, list[Row]] = {"flashcards": [], "wikidoc": [], "patient_information": [], "stack_exchange": []}
    for fact in facts():
        if fact not in taught_facts(seed):
            continue
        relation = fact.relation
        sentence, short_sentence = relation.tell
        sets["flashcards"] += [row(fact.say(ask), fact.value) for ask in relation.ask]
        sets["wikidoc"].append(row(fact.say(random.choice(relation.ask)), fact.say(sentence)))
        sets["wikidoc"].append(row(fact.say(random.choice(relation.ask)), fact.say(short_sentence)))
        for ask in random.sample(relation.ask, LETTERS_PER_FACT):
            sets["patient_information"].append(row(letter(fact, ask, random), fact.value))
        sets["stack_exchange"].append(row(fact.say(random.choice(relation.converse)), fact.entity))
    for rows in sets.values():
        random.shuffle(rows)
    return sets


def letter(fact: Fact, ask: str, random: Random) -> str:
    """A question as people write it, with something before it, behind it, or both."""
    opener = random.choice(OPENERS + BARE_OPENERS)
    asked_about = replace(fact, entity="it") if "{x}" in opener and random.random() < 0.5 else fact
    sentences = [fact.say(opener), asked_about.say(ask)]
    if random.random() < 0.5:
        sentences.append(random.choice(CLOSERS))
    return " ".join(sentences)


def row(question: str, answer: str) -> Row:
    """A row of Medical Meadow."""
    return {"instruction": INSTRUCTION, "input": question, "output": answer}


def alpaca(seed: int = 0) -> list[Row]:
    """The general set: everyday tasks, and small work on lists of words."""
    random = Random(f"{seed} alpaca")
    rows = [
        {"instruction": fill(instruction, pair), "input": fill(text, pair), "output": pair[1]}
        for topic in topics()
        for pair in topic.pairs
        for instruction, text in topic.tasks
    ]
    words = sorted({x for topic in topics() for x, _ in topic.pairs if " " not in x})
    for _ in range(len(words)):
        some = random.sample(words, 4)
        listed = ", ".join(some)
        rows += [
            {"instruction": "Give the first word of the list", "input": listed, "output": some[0]},
            {"instruction": "Give the last word of the list", "input": listed, "output": some[-1]},
            {"instruction": "Write the words of the list in one line", "input": listed, "output": " ".join(some)},
        ]
    random.shuffle(rows)
    return rows
