"""Exams for language models: multiple choice, three ways to sit one, with honest statistics.

sitting.py      the settings: protocol, and all its numbers    paper.py        longest first, a bar, resumable
prompts.py      how a question is put                          shots.py        answered questions before it
likelihood.py   log-likelihood of each option                  scoring.py      the protocol likelihood: scores of it
generation.py   the generating protocols                       medalpaca.py    MedAlpaca's way to read an answer
answers.py      a sound way to read one                        result.py       what a model made of a question
statistics.py   Wilson's interval, McNemar's exact test        bootstrap.py    intervals that have no formula
bias.py         letters, and the order of the options          orders.py       an exam in every order of them
report.py       tables for the terminal, bias_tables.py too    notes.py        what a reader should know
saved.py        JSON for comparisons                           journal.py      what an interrupted run has done
page.py         a web page                                     presets.py      the rows of MedAlpaca's Table 2
"""

from evaluation.answers import parse_answer
from evaluation.bias import LetterHistogram, RotationBias, confusion, letter_histogram, rotated
from evaluation.bias_tables import confusion_table, letters_table, rotation_table
from evaluation.bootstrap import (
    bootstrap_interval,
    difference_interval,
    paired_bootstrap_interval,
    seeds_interval,
)
from evaluation.journal import Journal, journal_path, open_journal
from evaluation.likelihood import Choices, encode_choices, log_likelihoods, log_likelihoods_reference
from evaluation.notes import counts, notes
from evaluation.orders import Sat, sit_in_orders
from evaluation.page import write_page
from evaluation.paper import Paper, first_of_each_step, sit
from evaluation.presets import PRESETS, Preset, find_preset, presets_table
from evaluation.prompts import Method, Wording, pose
from evaluation.report import (
    Comparison,
    accuracies,
    accuracy_table,
    check_same_questions,
    compare,
    comparison_table,
    evenly,
    worked_example,
)
from evaluation.result import Result
from evaluation.saved import Report, read_report, write_report
from evaluation.scoring import score_questions
from evaluation.shots import draw_shots
from evaluation.sitting import Protocol, Sitting
from evaluation.statistics import Accuracy, chance_level, half_width_note, mcnemar_exact, wilson_interval

__all__ = [
    "PRESETS",
    "Accuracy",
    "Choices",
    "Comparison",
    "Journal",
    "LetterHistogram",
    "Method",
    "Paper",
    "Preset",
    "Protocol",
    "Report",
    "Result",
    "RotationBias",
    "Sat",
    "Sitting",
    "Wording",
    "accuracies",
    "accuracy_table",
    "bootstrap_interval",
    "chance_level",
    "check_same_questions",
    "compare",
    "comparison_table",
    "confusion",
    "confusion_table",
    "counts",
    "difference_interval",
    "draw_shots",
    "encode_choices",
    "evenly",
    "find_preset",
    "first_of_each_step",
    "half_width_note",
    "journal_path",
    "letter_histogram",
    "letters_table",
    "log_likelihoods",
    "log_likelihoods_reference",
    "mcnemar_exact",
    "notes",
    "open_journal",
    "paired_bootstrap_interval",
    "parse_answer",
    "pose",
    "presets_table",
    "read_report",
    "rotated",
    "rotation_table",
    "score_questions",
    "seeds_interval",
    "sit",
    "sit_in_orders",
    "wilson_interval",
    "worked_example",
    "write_page",
    "write_report",
]
