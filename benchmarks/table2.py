"""MedAlpaca's Table 2 in miniature: six models over several seeds, and what each ingredient of the recipes does.

    python benchmarks/table2.py                  the six rows (make table2)
    python benchmarks/table2.py --ablations      what each ingredient does (make ablations)

The rows are those of the table (arXiv 2304.08247) in the bundled world: the base; the base tuned on general
instructions, every weight or LoRA; the base tuned on medical ones, every weight, LoRA, or LoRA on int8 codes.
All sit the same three exams. A difference is paired: the same questions, the same seeds.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import tyro
from harness import record
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from study import Arm, Plan, Run, plan_of, run_study

from evaluation import difference_interval, seeds_interval
from evaluation.presets import STEPS
from recipe import plain_errors

BASE = "base"
FULL, LORA, LORA_8BIT = "medalpaca", "medalpaca-lora", "medalpaca-lora-8bit"
ROWS = (
    Arm(BASE, None),
    Arm("alpaca", "miniature-alpaca"),
    Arm("alpaca-lora", "miniature-alpaca-lora"),
    Arm(FULL, "miniature-full"),
    Arm(LORA, "miniature-lora"),
    Arm(LORA_8BIT, "miniature-lora-8bit"),
)

_LORA = "miniature-lora"
_QV = ("--lora.targets", "q_proj", "v_proj")
_NO_BOS, _PROMPT_LOSS = "--data.no-add-bos", "--data.train-on-prompt"
_PUBLISHED = (*_QV, "--lora.dropout", "0.1", _NO_BOS, _PROMPT_LOSS)
ABLATIONS = {
    "learning rate of LoRA, 2e-3 in the row": (
        Arm("lora-lr-2e-5", _LORA, ("--optim.lr", "2e-5")),
        Arm("lora-lr-3e-4", _LORA, ("--optim.lr", "3e-4")),
        Arm("lora-lr-5e-3", _LORA, ("--optim.lr", "5e-3")),
    ),
    "learning rate of every weight, 5e-4 in the row": (
        Arm("full-lr-2e-5", "miniature-full", ("--optim.lr", "2e-5")),
        Arm("full-lr-1e-4", "miniature-full", ("--optim.lr", "1e-4")),
        Arm("full-lr-2e-3", "miniature-full", ("--optim.lr", "2e-3")),
    ),
    "epochs of every weight, 1 in the row": (Arm("full-2-epochs", "miniature-full", ("--train.epochs", "2")),),
    "rank, 8 in the row": (
        Arm("lora-rank-1", _LORA, ("--lora.r", "1", "--lora.alpha", "2")),
        Arm("lora-rank-32", _LORA, ("--lora.r", "32", "--lora.alpha", "64")),
    ),
    "targets, all seven in the row": (Arm("lora-qv", _LORA, _QV),),
    "BOS before each row, yes in the row": (Arm("lora-no-bos", _LORA, (_NO_BOS,)),),
    "loss on the prompt too, no in the row": (Arm("lora-prompt-loss", _LORA, (_PROMPT_LOSS,)),),
    "q and v alone and loss on the prompt at once, then without BOS as well": (
        Arm("lora-qv-prompt-loss", _LORA, (*_QV, _PROMPT_LOSS)),
        Arm("lora-qv-prompt-loss-no-bos", _LORA, (*_QV, _PROMPT_LOSS, _NO_BOS)),
    ),
    "MedAlpaca's own LoRA settings (q, v; no BOS; loss on the prompt; dropout 0.1)": (
        Arm("published-lr-2e-5", _LORA, (*_PUBLISHED, "--optim.lr", "2e-5")),
        Arm("published-lr-3e-4", _LORA, (*_PUBLISHED, "--optim.lr", "3e-4")),
        Arm("published-lr-2e-3", _LORA, _PUBLISHED),
    ),
}
"""Question -> arms, each one change away from a row of the table (with the rank, alpha: their ratio stays 2); the last
two groups change at once what their titles name."""


@dataclass(frozen=True)
class Options:
    """Train and score the rows of Table 2, or its ablations, in the miniature world."""

    ablations: bool = False
    """The ablations instead of the six rows, with the three rows that they are compared with."""
    seeds: tuple[int, ...] = (42, 43, 44)
    """Of data order, dropout and the adapters' first values."""
    only: tuple[str, ...] = ()
    """Only these arms, by name: medalpaca-lora lora-rank-1. A difference needs the arm it is compared with as well."""
    folder: Path = Path("runs/table2")
    """Where the runs lie; a stopped study goes on there."""
    workers: int = 2
    """Runs at once, each with its part of the cores."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"--seeds {' '.join(map(str, self.seeds))}: give at least one, each once")
        if self.workers < 1:
            raise ValueError(f"--workers {self.workers} must be at least 1")
        known = [arm.name for arms in self.groups.values() for arm in arms]
        if unknown := [name for name in self.only if name not in known]:
            with_or_without = "with" if self.ablations else "without"
            raise ValueError(f"--only {unknown[0]}: {with_or_without} --ablations there are {', '.join(known)}")

    @property
    def groups(self) -> dict[str, tuple[Arm, ...]]:
        """Question -> arms."""
        if not self.ablations:
            return {"": ROWS}
        return {"": tuple(arm for arm in ROWS if arm.name in (BASE, FULL, LORA))} | ABLATIONS


def main(arguments: list[str] | None = None) -> None:
    """Run what is asked for, print it, record it."""
    options = tyro.cli(Options, args=arguments, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,))
    with plain_errors(RuntimeError):
        run(options)


def run(options: Options) -> None:
    """Train, examine, compare."""
    groups = options.groups
    if options.only:
        groups = {title: tuple(arm for arm in arms if arm.name in options.only) for title, arms in groups.items()}
    arms = [arm for members in groups.values() for arm in members]
    runs = run_study(arms, options.seeds, options.folder, workers=options.workers)
    rows = []
    for title, members in groups.items():
        for arm in members:
            other = _compared_with(arm)
            rows.append({"question": title, **row_of(arm, plan_of(arm), runs[arm.name], runs.get(other), other)})
    claim = "MedAlpaca's Table 2 in miniature" + (": what each ingredient does" if options.ablations else "")
    notes = [
        f"accuracy in percent, mean over the seeds {', '.join(map(str, options.seeds))}, with 95 % intervals from "
        "resampling questions and seeds; chance is 22.5",
        f"time of the training steps and resident memory with {options.workers} runs at once on one machine, "
        "PyTorch's own memory included; state: what weights, gradients, moments and activations are predicted to take",
    ]
    table = terminal(rows, claim)
    if options.only:  # a part is not what results/ keeps
        Console(width=None if sys.stdout.isatty() else 200).print(table)
    else:
        record("table2-ablations" if options.ablations else "table2", rows, claim=claim, notes=notes, table=table)
    print(f"every run with its report: {options.folder}")


def row_of(arm: Arm, plan: Plan, runs: Sequence[Run], others: Sequence[Run] | None, other: str) -> Mapping[str, Any]:
    """One line of the table."""
    verdicts = right(runs)
    row: dict[str, Any] = {"model": arm.name, **share("right", verdicts)}
    row["by seed"] = " ".join(f"{100 * accuracy:.1f}" for accuracy in verdicts.mean(1))
    questions = runs[0].results
    for step in STEPS:
        row |= share(step, verdicts[:, [result.step == step for result in questions]])
    for name, seen in (("taught", True), ("untaught", False)):
        row |= share(name, verdicts[:, [result.seen is seen for result in questions]])
    row["compared with"], row["difference"], row["difference, 95 %"] = "", None, ""
    if others and others is not runs:
        change, low, high = difference_interval(verdicts, right(others))
        row["compared with"], row["difference"] = other, points(change)
        row["difference, 95 %"] = f"{100 * low:+.1f} to {100 * high:+.1f}"
    row |= {"trainable": plan.trainable, "state MB": round(plan.memory_mb, 1)}
    row["memory GB"] = mean_of([run.memory_gb for run in runs], 2)
    row["seconds"] = mean_of([run.seconds for run in runs], 0)
    row["validation loss"] = mean_of([run.validation_loss for run in runs], 4)
    return row


SHARES = ("right", *STEPS, "taught", "untaught")
HEADINGS = ("model", *SHARES, "by seed", "difference", "to")


def cells(row: Mapping[str, Any]) -> list[str]:
    """One line as people read it: percent, and 95 % intervals in brackets."""
    shares = [f"{row[name]:.1f} [{row[f'{name}, 95 %']}]" for name in SHARES]
    difference = ["", ""]
    if row["difference"] is not None:
        difference = [f"{row['difference']:+.1f} [{row['difference, 95 %']}]", row["compared with"]]
    return [row["model"], *shares, row["by seed"], *difference]


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table as docs/table2.md has it, the arms of a question under its heading."""
    lines = [f"| {' | '.join(HEADINGS)} |", f"|{'---|' * len(HEADINGS)}"]
    for question, members in groupby(rows, key=itemgetter("question")):
        lines += [f"| **{question}** {'|' * len(HEADINGS)}"] if question else []
        lines += [f"| {' | '.join(cells(row))} |" for row in members]
    return "\n".join(lines)


def terminal(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    """The same for the terminal, with what a run took."""
    table = Table(*HEADINGS, "trained", "state MB", "memory GB", "seconds", title=title, title_justify="left")
    for question, members in groupby(rows, key=itemgetter("question")):
        if question:
            table.add_section()
            table.add_row(f"[bold]{escape(question)}[/]")
        for row in members:
            took = (row["trainable"], row["state MB"], row["memory GB"], row["seconds"])
            table.add_row(*cells(row), *(f"{value:,}" if value else "" for value in took))
    return table


def right(runs: Sequence[Run]) -> np.ndarray:
    """(S, Q) bool: which questions each seed's model answered rightly, in the exam's order."""
    return np.array([[result.correct for result in run.results] for run in runs])


def share(name: str, verdicts: np.ndarray) -> dict[str, Any]:
    """Accuracy in percent and its 95 % interval, under two keys."""
    mean, low, high = seeds_interval(verdicts)
    return {name: points(mean), f"{name}, 95 %": f"{100 * low:.0f}–{100 * high:.0f}"}


def mean_of(values: Sequence[float | None], digits: int) -> float | None:
    """The rounded mean; None for the base, which was not trained."""
    known = [value for value in values if value is not None]
    return round(fmean(known), digits) if known else None


def points(share: float) -> float:
    """A share in percent, to a tenth."""
    return round(100 * share, 1)


def _compared_with(arm: Arm) -> str:
    """The row an arm is one change away from; LoRA is held against full tuning, full tuning against the base."""
    if arm.name in (BASE, "alpaca", FULL):
        return BASE
    if arm.name == "alpaca-lora":
        return "alpaca"
    if arm.name == LORA:
        return FULL
    return FULL if arm.config == "miniature-full" else LORA


if __name__ == "__main__":
    main()
