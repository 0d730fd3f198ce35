"""What travels with weights: the tokenizer, and the prompt template that they were trained on.

    tokenizer.model        SentencePiece's file, as every published base has it
    prompt_template.json   a template in Alpaca-LoRA's form, beside an adapter or a checkpoint

A model asked in other words than it was trained on answers worse, and nothing else in the files would say so.
"""

from collections.abc import Sequence
from pathlib import Path

from data import PromptTemplate
from files import json_text, write_whole
from llama import TOKENIZER_FILE

PROMPT_FILE = "prompt_template.json"


def write_prompt(template: PromptTemplate, folder: Path) -> None:
    """Save the template in `folder`."""
    write_whole(folder / PROMPT_FILE, json_text(template.to_dict()))


def read_prompt(folder: Path) -> PromptTemplate:
    """The template saved in `folder`."""
    return PromptTemplate.from_file(folder / PROMPT_FILE)


def holder_of_prompt(folders: Sequence[Path]) -> Path | None:
    """The first of the folders with a template; name an adapter before its base, for it was trained later."""
    return next((folder for folder in folders if (folder / PROMPT_FILE).is_file()), None)


def copy_companions(to: Path, *, tokenizer: Path, prompts: Sequence[Path] = ()) -> list[str]:
    """Take the tokenizer and the prompt template along to a new checkpoint.

    Args:
        to: the checkpoint's directory.
        tokenizer: a directory that may hold one, or the file itself, whatever it is called.
        prompts: directories to look for a template in, see `holder_of_prompt`.

    Returns:
        Names of the files that were not there to copy.
    """
    file = tokenizer / TOKENIZER_FILE if tokenizer.is_dir() else tokenizer
    holder = holder_of_prompt(prompts)
    sources = {TOKENIZER_FILE: file, PROMPT_FILE: holder / PROMPT_FILE if holder else None}
    missing = []
    for name, source in sources.items():
        if source is not None and source.is_file():
            write_whole(to / name, source.read_bytes())
        else:
            missing.append(name)
    return missing
