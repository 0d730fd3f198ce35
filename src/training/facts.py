"""What a run's page tells besides curves: facts.json, written when the run begins, and answers.jsonl, while it goes on.

facts.json     {"format": 1, "steps", "device", "processes", "means", "parameters", "memory", "data", "lengths",
               "versions"}: what config.toml does not say, and loading everything again would have to find out
answers.jsonl  {"step", "asked", "answers", "reference"}: one line for each question that was answered aloud
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from data import SupervisionReport
from files import FileError, json_text, printable, versions, write_whole
from files.fields import Place, field, quoted
from files.rows import read_json, rows_of_lines
from files.writing import make_folder, naming
from int8 import product_backend
from native import c_backend
from recipe import RunConfig, RunData, count_parameters, predict_memory
from training.parallel import Engine

FACTS, ANSWERS = "facts.json", "answers.jsonl"
FORMAT = 1
BINS = 8
"""Of the histogram of lengths, within the window; one more holds what is longer."""


@dataclass(frozen=True)
class RunFacts:
    """What facts.json holds.

    Attributes:
        steps: planned.
        means: by which code the products, the attention and the rest are computed, in words.
        parameters: package -> trainable, frozen, int8.
        memory: purpose -> predicted bytes at the peak, on each device.
        data: counts of rows and tokens by name.
        lengths: tokens of the rows before cutting: (from - to, rows).
        versions: of the programs.
    """

    steps: int
    device: str
    processes: int
    means: dict[str, str]
    parameters: dict[str, dict[str, int]]
    memory: dict[str, int]
    data: dict[str, int]
    lengths: list[tuple[str, int]]
    versions: dict[str, str]


def keep_facts(config: RunConfig, data: RunData, engine: Engine, *, steps: int, device: torch.device) -> None:
    """Write facts.json into the run's directory; what goes wrong is said, and stops nothing: a page can do without."""
    try:
        write_facts(config.output, facts_of(config, data, engine, steps=steps, device=device))
    except Exception as error:
        _note(f"{FACTS} was not written", error)


def facts_of(config: RunConfig, data: RunData, engine: Engine, *, steps: int, device: torch.device) -> RunFacts:
    """What is known once everything is loaded."""
    counts = {name: asdict(count) for name, count in count_parameters(engine.model).items()}
    means = {"int8 products": product_backend(device)} if config.train.method == "lora-8bit" else {}
    if device.type == "cpu":
        means["attention, norms, dropout, loss, 8-bit Adam"] = c_backend()
    lengths = data.report.full_lengths if data.report else [len(example) for example in data.train]
    return RunFacts(
        steps=steps,
        device=str(device) if device.type == "cpu" else f"{device}, {torch.cuda.get_device_name(device)}",
        processes=engine.team.size,
        means=means,
        parameters={name: count for name, count in counts.items() if any(count.values())},
        memory=asdict(predict_memory(engine.model, config, processes=engine.team.size)),
        data=_counted(data, data.report),
        lengths=histogram_of(lengths, config.data.max_length),
        versions=versions(),
    )


def _counted(data: RunData, report: SupervisionReport | None) -> dict[str, int]:
    found = {"examples to train on": len(data.train), "examples to validate on": len(data.validation)}
    if report is None:
        return found | {"tokens": sum(map(len, data.train))}
    named = {
        "rows read for training": report.rows,
        "rows cut at the window's end": report.truncated,
        "rows kept for their prompt alone": report.prompt_only,
        "rows dropped, no output": report.dropped_empty_output,
        "rows dropped, the prompt fills the window": report.dropped_prompt_too_long,
        "tokens": report.tokens,
        "supervised tokens": report.supervised_tokens,
    }
    return found | named


def histogram_of(lengths: Sequence[int], window: int) -> list[tuple[str, int]]:
    """How many of the lengths fall into each part of the window, and beyond it.

    >>> histogram_of([1, 64, 65, 600], 512)[:2], histogram_of([1, 64, 65, 600], 512)[-1]
    ([('1 to 64', 2), ('65 to 128', 1)], ('more, cut', 1))
    """
    edges = [window * i // BINS for i in range(BINS + 1)]
    bins = [
        (f"{low + 1:,} to {high:,}", sum(low < n <= high for n in lengths))
        for low, high in pairwise(edges)
        if low < high
    ]
    longer = sum(n > window for n in lengths)
    return bins + ([("more, cut", longer)] if longer else [])


def write_facts(folder: Path, facts: RunFacts) -> None:
    """Write facts.json whole."""
    write_whole(folder / FACTS, json_text({"format": FORMAT, **asdict(facts)}))


def read_facts(folder: Path) -> RunFacts | None:
    """The facts of a run, or None of one that kept none.

    Raises:
        FileError: the file is damaged, or of another format.
        OSError: it is there and cannot be read.
    """
    path = folder / FACTS
    if not path.exists():
        return None
    content, place = read_json(path, remedy="remove the file: the page will do without"), Place(path)
    if field(content, "format", place, int) != FORMAT:
        raise place.unsuitable(f"its format is {content['format']}, expected {FORMAT}", "remove the file")
    lengths = []
    for number, row in enumerate(field(content, "lengths", place, list), start=1):
        if not (isinstance(row, list) and [type(part) for part in row] == [str, int]):
            raise place.at(f"lengths, {number}").unsuitable("expected a text and a number")
        lengths.append((row[0], row[1]))
    packages = field(content, "parameters", place, dict)
    return RunFacts(
        steps=field(content, "steps", place, int),
        device=field(content, "device", place, str),
        processes=field(content, "processes", place, int),
        means=_all(content, "means", place, str),
        parameters={name: _all(packages, name, place.at("parameters"), int) for name in packages},
        memory=_all(content, "memory", place, int),
        data=_all(content, "data", place, int),
        lengths=lengths,
        versions=_all(content, "versions", place, str),
    )


def _all(content: Any, key: str, place: Place, kind: type) -> dict[str, Any]:
    values = field(content, key, place, dict)
    return {name: field(values, name, place.at(quoted(key)), kind) for name in values}


# --- Answers ---


@dataclass(frozen=True)
class Answer:
    """What the model said to a question of the validation set after some step."""

    step: int
    asked: str
    answers: str
    reference: str


class AnswersLog:
    """Keeps what is answered aloud.

    Args:
        folder: the run's directory; created if missing.
        after_step: keep the lines up to this step; a resumed run says the later ones again.
    """

    def __init__(self, folder: Path, *, after_step: int = 0) -> None:
        make_folder(folder)
        self.path = folder / ANSWERS
        try:
            kept = [answer for answer in read_answers(folder) if answer.step <= after_step] if after_step else []
        except (FileError, OSError) as error:
            _note("the answers so far are dropped", error)
            kept = []
        try:
            if kept or self.path.exists():
                write_whole(self.path, "".join(map(_line, kept)).encode())
        except OSError as error:  # a page's log is never worth a run
            _note("the answers so far were not kept", error)

    def listening(self, step: int, say: Callable[[str], None]) -> Callable[[str], None]:
        """A `say` for `answer_aloud` that keeps each answer when its last line has been said."""
        heard: dict[str, str] = {}

        def hear(text: str) -> None:
            say(text)
            label, _, rest = text.strip().partition(" ")
            heard[label] = rest.strip()
            if label == "reference":
                self.write(Answer(step, heard.get("asked", ""), heard.get("answers", ""), heard["reference"]))
                heard.clear()

        return hear

    def write(self, answer: Answer) -> None:
        """Append one line; a disk that is full is said, and stops nothing."""
        try:
            with naming(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(_line(answer))
        except OSError as error:
            _note("an answer was not kept", error)


def read_answers(folder: Path) -> list[Answer]:
    """All whole lines of answers.jsonl; of a run that kept none, nothing.

    Raises:
        FileError: a line is damaged.
        OSError: it is there and cannot be read.
    """
    path = folder / ANSWERS
    if not path.exists():
        return []
    texts = ("asked", "answers", "reference")
    return [
        Answer(field(row, "step", place, int), *(field(row, key, place, str) for key in texts))
        for _, place, row in rows_of_lines(path, own=True)
    ]


def _note(what: str, error: Exception) -> None:
    print(f"note: {what}: {printable(f'{type(error).__name__}: {error}')}", file=sys.stderr)


def _line(answer: Answer) -> str:
    return json.dumps(asdict(answer)) + "\n"
