"""Data: from files of instructions to batches of supervised tokens.

records.py     rows of a JSON or JSONL file, checked         mixture.py     several files, samples, validation split
templates.py   the prompts of the published models           supervise.py   prompt + answer -> tokens and targets
text.py        plain documents, every token a target         plan.py        order, length groups and packing of an epoch
collate.py     padding, documents, the one shift             preview.py     what the model will see, in colour
overlap.py     what of an exam stands in the training texts
exams/         multiple-choice questions                     miniature/     a small self-made medical world
self_instruct/ a model writes tasks, from a few of people's

Their files are read, row by row and untrusted, by `files.rows` and `files.fields`.

A tokenizer is anything with `encode(text, *, bos, eos)` and `decode(token_ids)`.
"""

from data.collate import IGNORE, Batch, collate, shifted_targets
from data.exams import Question, load_exam
from data.mixture import MixturePart, load_mixture, split_validation
from data.overlap import Overlap, QuestionOverlap, find_overlap, training_texts
from data.plan import epoch_plan, fill_ratio, pack
from data.preview import example_text, histogram, print_preview
from data.records import Record, load_records
from data.supervise import (
    Example,
    SupervisionReport,
    TokenEncoder,
    build_examples,
    common_prefix,
    encode_jointly,
    supervise,
)
from data.templates import TEMPLATES, PromptTemplate
from data.text import load_texts, text_examples

__all__ = [
    "IGNORE",
    "TEMPLATES",
    "Batch",
    "Example",
    "MixturePart",
    "Overlap",
    "PromptTemplate",
    "Question",
    "QuestionOverlap",
    "Record",
    "SupervisionReport",
    "TokenEncoder",
    "build_examples",
    "collate",
    "common_prefix",
    "encode_jointly",
    "epoch_plan",
    "example_text",
    "fill_ratio",
    "find_overlap",
    "histogram",
    "load_exam",
    "load_mixture",
    "load_records",
    "load_texts",
    "pack",
    "print_preview",
    "shifted_targets",
    "split_validation",
    "supervise",
    "text_examples",
    "training_texts",
]
