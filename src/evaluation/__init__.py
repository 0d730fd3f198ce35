"""Exams for language models: multiple choice, three ways to sit one, and what the accuracies prove.

settings      sitting.py      the protocol and all its numbers; start here
              presets.py      the rows of MedAlpaca's Table 2
asking        prompts.py      a question -> the prompt, and each option's continuation
              shots.py        answered questions before it
              likelihood.py   log p(option | prompt)                 scoring.py      the protocol likelihood
              generation.py   the protocols medalpaca and generate
              medalpaca.py    text -> letter, as published           answers.py      text -> letter, soundly
                                                                     option_names.py where a text names an option
sitting       paper.py        one exam, longest questions first      orders.py       the same in every order of options
              journal.py      what an interrupted one has done       result.py       what came of one question
figures       statistics.py   Wilson's interval, McNemar's test      bootstrap.py    several seeds, differences
              letters.py      a taste for a letter                   bias.py         what the options' order changes
              comparison.py   accuracies by group, two runs paired   alike.py         were they asked the same way
telling       notes.py        what a reader should know              report.py       the JSON report
              destination.py  what --out may replace
              tables.py       all that is printed as a table
              page.py         the web page                           page_letters.py, page_examples.py  parts of it
"""

from evaluation.alike import asked_otherwise, check_same_texts, text_digest
from evaluation.answers import parse_answer
from evaluation.bias import RotationBias, rotated
from evaluation.bootstrap import (
    bootstrap_interval,
    difference_interval,
    paired_bootstrap_interval,
    seeds_interval,
)
from evaluation.comparison import Comparison, accuracies, check_same_questions, compare
from evaluation.destination import check_destination
from evaluation.journal import Journal, journal_path, open_journal
from evaluation.letters import LetterHistogram, confusion, letter_histogram
from evaluation.likelihood import Choices, encode_choices, log_likelihoods, log_likelihoods_reference
from evaluation.notes import counts, notes
from evaluation.orders import Outcome, sit_in_orders
from evaluation.page import exam_page
from evaluation.paper import Paper, first_of_each_step, sit
from evaluation.presets import PRESETS, Preset, find_preset, published_beside
from evaluation.prompts import Method, Wording, pose
from evaluation.report import Report, read_report, write_report
from evaluation.result import Result
from evaluation.scoring import score_questions
from evaluation.shots import draw_shots
from evaluation.sitting import Protocol, Sitting
from evaluation.statistics import Accuracy, chance_level, half_width_note, mcnemar_exact, wilson_interval
from evaluation.tables import (
    accuracy_table,
    comparison_table,
    evenly,
    presets_table,
    rotation_table,
    worked_example,
)

__all__ = [
    "PRESETS",
    "Accuracy",
    "Choices",
    "Comparison",
    "Journal",
    "LetterHistogram",
    "Method",
    "Outcome",
    "Paper",
    "Preset",
    "Protocol",
    "Report",
    "Result",
    "RotationBias",
    "Sitting",
    "Wording",
    "accuracies",
    "accuracy_table",
    "asked_otherwise",
    "bootstrap_interval",
    "chance_level",
    "check_destination",
    "check_same_questions",
    "check_same_texts",
    "compare",
    "comparison_table",
    "confusion",
    "counts",
    "difference_interval",
    "draw_shots",
    "encode_choices",
    "evenly",
    "exam_page",
    "find_preset",
    "first_of_each_step",
    "half_width_note",
    "journal_path",
    "letter_histogram",
    "log_likelihoods",
    "log_likelihoods_reference",
    "mcnemar_exact",
    "notes",
    "open_journal",
    "paired_bootstrap_interval",
    "parse_answer",
    "pose",
    "presets_table",
    "published_beside",
    "read_report",
    "rotated",
    "rotation_table",
    "score_questions",
    "seeds_interval",
    "sit",
    "sit_in_orders",
    "text_digest",
    "wilson_interval",
    "worked_example",
    "write_report",
]
