"""Self-Instruct: a model writes tasks for training, from a few that people wrote (arXiv 2212.10560).

seeds.py      the tasks that people wrote          prompts.py   demonstrations -> a list to go on with
parsing.py    a completion -> tasks                filters.py   which are not kept, and why
rouge.py      ROUGE-L, one text against many       pool.py      whether a task is new
journal.py    rounds on the disk, to go on from    pipeline.py  all of it, round by round
summary.py    what came of it

The model is any function from prompts to `Completion`s.
"""

from data.self_instruct.journal import Journal, Round, open_journal, read_journal
from data.self_instruct.parsing import Completion, parse_completion
from data.self_instruct.pipeline import (
    Complete,
    SelfInstruct,
    Settings,
    barren_requests,
    check_unchanged,
    make_tasks,
    write_tasks,
)
from data.self_instruct.pool import Kept, Pool
from data.self_instruct.prompts import PREAMBLES, load_preamble, render_prompt
from data.self_instruct.rouge import RougeIndex, most_similar, rouge_l_reference, rouge_tokens
from data.self_instruct.seeds import load_seeds
from data.self_instruct.summary import print_summary

__all__ = [
    "PREAMBLES",
    "Complete",
    "Completion",
    "Journal",
    "Kept",
    "Pool",
    "RougeIndex",
    "Round",
    "SelfInstruct",
    "Settings",
    "barren_requests",
    "check_unchanged",
    "load_preamble",
    "load_seeds",
    "make_tasks",
    "most_similar",
    "open_journal",
    "parse_completion",
    "print_summary",
    "read_journal",
    "render_prompt",
    "rouge_l_reference",
    "rouge_tokens",
    "write_tasks",
]
