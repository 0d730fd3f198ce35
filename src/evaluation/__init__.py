"""Exams for language models: multiple choice by likelihood, with honest statistics.

prompts.py      how a question is put: template, instruction, options
likelihood.py   log-likelihood of each option, batched over questions
scoring.py      normalised scores, predictions
statistics.py   Wilson's interval, McNemar's exact test, chance
report.py       tables for the terminal, JSON for comparisons
"""

from evaluation.likelihood import Choices, encode_choices, log_likelihoods, log_likelihoods_reference
from evaluation.prompts import Method, Wording, pose
from evaluation.report import (
    Comparison,
    Report,
    accuracies,
    accuracy_table,
    check_same_questions,
    compare,
    comparison_table,
    notes,
    read_report,
    worked_example,
    write_report,
)
from evaluation.scoring import Result, score_questions
from evaluation.statistics import Accuracy, chance_level, mcnemar_exact, wilson_interval

__all__ = [
    "Accuracy",
    "Choices",
    "Comparison",
    "Method",
    "Report",
    "Result",
    "Wording",
    "accuracies",
    "accuracy_table",
    "chance_level",
    "check_same_questions",
    "compare",
    "comparison_table",
    "encode_choices",
    "log_likelihoods",
    "log_likelihoods_reference",
    "mcnemar_exact",
    "notes",
    "pose",
    "read_report",
    "score_questions",
    "wilson_interval",
    "worked_example",
    "write_report",
]
