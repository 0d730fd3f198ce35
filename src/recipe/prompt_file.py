"""The prompt template travels with what was trained on it: `prompt_template.json` beside an adapter or a checkpoint.

A model asked in other words than it was trained on answers worse, and nothing else in the files would say so.
"""

import json
from pathlib import Path

from data import PromptTemplate

PROMPT_FILE = "prompt_template.json"


def write_prompt(template: PromptTemplate, folder: Path) -> None:
    """Save the template in `folder`."""
    text = json.dumps(template.to_dict(), indent=2, ensure_ascii=False) + "\n"
    (folder / PROMPT_FILE).write_text(text, encoding="utf-8")


def read_prompt(folder: Path) -> PromptTemplate:
    """The template saved in `folder`."""
    return PromptTemplate.from_file(folder / PROMPT_FILE)
