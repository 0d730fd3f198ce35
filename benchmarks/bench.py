"""The 8-bit training path on a CPU, in one go: runs its benchmarks and compares what they find with what
is promised.

    make bench EXTRAS=test,viz,parity REAL_DATA=DIR

A promise is checked at its worst case: of all rows of a table that it speaks of, the one with the worst ratio.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from harness import RESULTS, record
from lora_step import PEER_BF16, PEER_INT8

from recipe import plain_errors

SCRIPTS = ("linear.py", "adam.py", "lora_step.py", "packing.py", "large_step.py")
READ_REAL_DATA = ("packing.py", "large_step.py")
NEED_REAL_DATA = ("packing.py",)
CLAIM = "8-bit training on a CPU: what is promised, at its worst case, ours beside the peer and the limit"
ADAM_8BIT = ("bitsandbytes, 8 bits", "torchao, 8 bits")
BNB_TRAINING, BNB_EVALUATION = "bitsandbytes, decoding", "bitsandbytes, LLM.int8()"

Row = dict[str, Any]
Outcome = Literal["done", "failed", "skipped: it needs --real-data"]


@dataclass(frozen=True)
class Promise:
    """What rows of one table must come to.

    Attributes:
        result: name of the table's file in results/.
        ours: our row, by its column "what".
        value: the column compared.
        bar, aim: of the ratio, ours / peer where less is better, else peer / ours.
        peers: rows compared with, the best of them; none: the value itself is held against the bar.
        faster: whether the ratio is peer / ours, at least the bar; else it is at most that.
        work: of the rows, where the table has that column.
        limit: the column with the physical limit of `value`.
    """

    result: str
    ours: str
    value: str
    bar: float
    aim: float | None = None
    peers: tuple[str, ...] = ()
    faster: bool = False
    work: str | None = None
    limit: str | None = None

    def cases(self, rows: list[Row]) -> Iterator[Row]:
        """A row of the summary for each of ours."""
        ours = [row for row in rows if row.get("what", self.ours) == self.ours and row.get("work") == self.work]
        for row in ours:
            same = [other for other in rows if setting(other) == setting(row) and other.get("what") in self.peers]
            if self.peers and not same:
                continue
            peer = min(same, key=lambda other: other[self.value]) if same else None
            ratio = row[self.value]
            if peer is not None:
                ratio = peer[self.value] / ratio if self.faster else ratio / peer[self.value]
            yield {
                "work": ", ".join([self.result, *(f"{key} {value}" for key, value in setting(row).items())]),
                "ours": self.ours,
                "unit": self.value,
                "value": row[self.value],
                "peer": "" if peer is None else peer["what"],
                "its value": None if peer is None else peer[self.value],
                "limit": row[self.limit] if self.limit else None,
                "ratio": ratio,
                "bar": f"{'≥' if self.faster else '≤'} {self.bar:g}",
                "aim": self.aim,
                "met": "yes" if (ratio >= self.bar if self.faster else ratio <= self.bar) else "no",
            }

    def worst(self, rows: list[Row]) -> Row:
        """The case with the worst ratio.

        Raises:
            ValueError: there is none, since a row was renamed or left out.
        """
        cases = sorted(self.cases(rows), key=lambda case: case["ratio"], reverse=not self.faster)
        if not cases:
            raise ValueError(
                f"no row of results/{self.result}.json is the case of {self}: name the rows there and here alike"
            )
        return cases[0]


def linear(ours: str, work: str, bar: float, aim: float | None = 0.5) -> Promise:
    """One of the promises about a linear layer's time beside bf16's."""
    return Promise("linear", ours, "ms", bar, aim, ("bf16 linear",), work=work, limit="limit, ms")


def lora_step(ours: str, peer: str, bar: float, aim: float) -> Promise:
    """One of the promises about a training step's time."""
    return Promise("lora-step", ours, "seconds", bar, aim, (peer,), faster=True, limit="limit, seconds")


PROMISES = (
    linear("ours int8", "forward", 0.75),
    *(
        Promise("linear", "ours int8", "ms", 3, None, (peer,), True, "forward", "limit, ms")
        for peer in (BNB_TRAINING, BNB_EVALUATION)
    ),
    linear("ours int8 exact", "forward + dX", 0.95),
    linear("ours int8 fast", "forward + dX", 0.7),
    Promise("adam", "ours, 8 bits", "ms", 8, None, ADAM_8BIT, faster=True),
    Promise("adam", "ours, 8 bits", "ms", 2, None, ("torch fused, 32 bits",)),
    lora_step("ours int8 fast", PEER_INT8, 2, 3),
    lora_step("ours int8 fast", PEER_BF16, 1.25, 1.6),
    lora_step("ours bf16", PEER_BF16, 1.15, 1.4),
    Promise("lora-step", "ours int8 fast", "peak GB", 0.5, None, (PEER_INT8,)),
    Promise("large-step", "7B", "peak GB", 12),
)


@dataclass(frozen=True)
class Options:
    """Run the CPU benchmarks of 8-bit training and summarise them; 20 minutes."""

    real_data: Path | None = None
    """Directory with the real data set and tokenizer, for those benchmarks that read them."""
    only: tuple[str, ...] = SCRIPTS
    """Which of them; the summary of some does not replace that of all."""


def main() -> None:
    """Run, summarise, record; the exit status says whether all of them ran."""
    options = tyro.cli(Options, description=__doc__)
    with plain_errors():
        if unknown := set(options.only) - set(SCRIPTS):
            raise ValueError(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(SCRIPTS)}")
        outcomes = {script: run(script, options.real_data) for script in options.only}
        summarise(outcomes)
    sys.exit("failed" in outcomes.values())


def run(script: str, real_data: Path | None) -> Outcome:
    """Run one benchmark, which prints and records its own table."""
    if script in NEED_REAL_DATA and real_data is None:
        return "skipped: it needs --real-data"
    arguments = ["--real-data", str(real_data)] if script in READ_REAL_DATA and real_data is not None else []
    start = time.perf_counter()
    status = subprocess.run([sys.executable, str(Path(__file__).with_name(script)), *arguments]).returncode
    print(f"{script}: {time.perf_counter() - start:.0f} s\n", flush=True)
    return "done" if status == 0 else "failed"


def summarise(outcomes: dict[str, Outcome]) -> None:
    """The table of promises about the benchmarks that ran."""
    rows: list[Row] = []
    for promise in PROMISES:
        if outcomes.get(f"{promise.result.replace('-', '_')}.py") == "done":
            table = json.loads((RESULTS / f"{promise.result}.json").read_text(encoding="utf-8"))["rows"]
            rows.append(promise.worst(table))
    notes = ["ratio: ours / peer where it must stay below the bar, peer / ours where it must reach it"]
    notes += [f"not measured: {script} ({outcome})" for script, outcome in outcomes.items() if outcome != "done"]
    if rows:
        some = [script.removesuffix(".py") for script in outcomes] if set(outcomes) != set(SCRIPTS) else []
        record("-".join(["bench", *some]), rows, claim=CLAIM, notes=notes)


def setting(row: Row) -> Row:
    """What two rows must agree in to be compared."""
    return {
        key: row[key] for key in ("work", "shape", "outlier columns", "case", "batch", "checkpointing") if key in row
    }


if __name__ == "__main__":
    main()
