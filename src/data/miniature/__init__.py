"""The miniature: a small world of medicine that makes the whole study reproducible offline.

world.py      entities and facts, from tables/ and phrasings/    everyday.py    plain English around them
prose.py      -> corpus.txt, for pretraining                     meadow.py      -> meadow/*.json and alpaca.json
questions.py  -> exams/step{1,2,3}.json                          vocabulary.py  -> base/tokenizer.model
build.py      writes them all to files/, where the pretrained base/ lies too
"""

from data.miniature.meadow import demo_questions
from data.miniature.world import folder

__all__ = ["demo_questions", "folder"]
