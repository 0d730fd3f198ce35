"""Seeds, journals and preambles, damaged at random: what is read can be used, and what is refused is named."""

import io
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from byte_mutations import EXAMPLES, damaged, retyped
from hypothesis import given, settings
from rich.console import Console
from scripted_tasks import SEEDS, scripted

from data.self_instruct import (
    PREAMBLES,
    SelfInstruct,
    Settings,
    load_preamble,
    load_seeds,
    make_tasks,
    open_journal,
    print_summary,
    read_journal,
    render_prompt,
)
from files import FileError

ROWS = [
    {"instruction": "Add.", "instances": [{"input": "1, 2", "output": "3"}], "is_classification": False},
    {"instruction": "Sagen Sie »hallo« 😊", "instances": [{"input": "", "output": "Hallo\n!"}] * 2},
    {"instruction": "Name a fruit.", "output": "Apple"},
]


def use_seeds(path: Path) -> None:
    seeds = load_seeds(path)
    work = SelfInstruct(seeds, Settings(shots=1, batch_size=1))
    done = work.round(1, scripted)
    print_summary([done], console=Console(file=io.StringIO()))


def use_journal(path: Path) -> None:
    """Show it, then go on from a copy."""
    rounds = read_journal(path)
    print_summary(rounds, console=Console(file=io.StringIO()))
    again = path.with_name("again.journal.jsonl")
    again.write_bytes(path.read_bytes())
    work = SelfInstruct(SEEDS, Settings(batch_size=1))
    with open_journal(again, work.identity()) as journal:
        make_tasks(work, journal, scripted, count=2, give_up=3)
        kept = journal.rounds
    assert read_journal(again, work.identity()) == kept


def use_preamble(path: Path) -> None:
    render_prompt(load_preamble(str(path)), SEEDS[:2], 20).encode()


def a_journal(folder: Path) -> bytes:
    work = SelfInstruct(SEEDS, Settings(batch_size=1))
    with open_journal(folder / "x.journal.jsonl", work.identity()) as journal:
        make_tasks(work, journal, scripted, count=2, give_up=3)
    return journal.path.read_bytes()


class Kind(NamedTuple):
    name: str
    content: Callable[[Path], bytes]
    use: Callable[[Path], Any]


def lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


KINDS = {
    "seed lines": Kind("seeds.jsonl", lambda _: lines(ROWS), use_seeds),
    "seed lists": Kind("seeds.json", lambda _: json.dumps(ROWS, indent=1).encode(), use_seeds),
    "journals": Kind("x.journal.jsonl", a_journal, use_journal),
    "preambles": Kind("mine.txt", lambda _: PREAMBLES["full"].encode(), use_preamble),
}


@pytest.mark.parametrize("name", KINDS)
def test_damaged_they_are_used_or_refused_by_name(name, tmp_path, count_faults):
    kind = KINDS[name]
    whole = kind.content(tmp_path)
    file = tmp_path / kind.name
    file.write_bytes(whole)
    kind.use(file)
    tried = 0

    @settings(max_examples=EXAMPLES, deadline=timedelta(seconds=30), derandomize=True, database=None)
    @given(damaged(whole) | retyped(whole))
    def try_one(content: bytes) -> None:
        nonlocal tried
        file.write_bytes(content)
        try:
            kind.use(file)
        except FileError as refused:
            assert refused.file in (file, file.with_name("again.journal.jsonl"))
            assert str(refused).isprintable() and len(str(refused)) < 2000
        tried += 1

    try_one()
    count_faults("damaged files of tasks", tried)
