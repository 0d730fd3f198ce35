"""The whole GPU table, in under ten minutes, as one JSON file.

    python benchmarks/gpu/run.py                                 on a GPU, with the extra `parity`
    python benchmarks/gpu/run.py --device cpu --tiny --out FILE  tries the code anywhere; the figures mean nothing

Sections run one after the other, each in a process of its own with a limit of time, and write every row as it is
measured: one that fails, hangs or breaks the GPU's context costs its own remaining rows and no others. What was not
measured says so, and why. `--sections` runs some of them and leaves the others' rows in the file.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.append(str(Path(__file__).parents[1]))  # the other benchmarks, whose parts are used here

import ceilings
import decoding
import linears
import memory_proof
import optimizers
import steps
import torch
from bars import bars
from harness import RESULTS, machine
from rich.console import Console
from rich.table import Table
from timing import NOT_MEASURED, Row, Setting


class Section(NamedTuple):
    """A part of the table.

    Attributes:
        measure: gives its rows.
        limit: seconds it may take, the start of its process included; most take half of that.
        title: what it shows.
    """

    measure: Callable[[Setting], Iterator[Row]]
    limit: int
    title: str


SECTIONS = {  # in this order; what is likeliest to be cut off comes last
    "ceilings": Section(ceilings.measure, 60, "the device's ceilings"),
    "memory": Section(memory_proof.measure, 90, "LoRA-8bit of 7B, 2 × 256 tokens, within 8.9 GB"),
    "linear": Section(linears.measure_forward, 120, "a linear layer of 7B, forward"),
    "lora": Section(linears.measure_with_lora, 120, "a linear layer of 7B with an adapter, forward and backward"),
    "optimizers": Section(optimizers.measure, 90, "a step of AdamW"),
    "steps": Section(steps.measure, 180, "a LoRA step of 7B"),
    "decoding": Section(decoding.measure, 180, "one-token steps of 7B, batch 1"),
}


def main() -> None:
    """Run the sections, or in a child one of them; print and write what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="shapes for trying the code; the figures mean nothing")
    parser.add_argument("--skip-peers", action="store_true", help="ours alone")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.json", help="what it holds already is kept")
    parser.add_argument("--minutes", type=float, default=9.5, help="after which nothing more is measured")
    parser.add_argument("--child", choices=SECTIONS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here; --device cpu --tiny --out FILE tries the code without one")
    if options.out == RESULTS / "gpu.json" and (options.tiny or options.device == "cpu"):
        parser.error("these figures would mean nothing beside a GPU's: name another file with --out")
    if options.child:
        run_section(options.child, options)
    else:
        run_all(options)


def run_all(options: argparse.Namespace) -> None:
    """Each section in a child, within its limit and what is left of the whole time; then the bars."""
    end = time.monotonic() + 60 * options.minutes
    content = read(options.out)
    content["command"] = " ".join(["python", "benchmarks/gpu/run.py", *_without_paths(sys.argv[1:])])
    for name in options.sections:
        content["sections"][name] = new_entry()  # nothing of an earlier run passes for this one's
    write(options.out, content)
    for name in options.sections:
        limit = min(SECTIONS[name].limit, end - time.monotonic())
        failure = _in_child(name, limit) if limit > 0 else "no time was left for it"
        content = read(options.out)
        entry = content["sections"][name]
        entry["error"] = entry["error"] or failure
        write(options.out, content)
        show(SECTIONS[name].title, entry["rows"])
        if entry["error"]:
            print(f"{name}: {NOT_MEASURED} further: {entry['error']}")
    measured = {} if options.tiny else {name: entry["rows"] for name, entry in content["sections"].items()}
    content["bars"] = bars(measured)
    write(options.out, content)
    show("bars", content["bars"])
    print(f"written: {options.out.name}")


def run_section(name: str, options: argparse.Namespace) -> None:
    """In the child: measure, and write after every row."""
    device = torch.device(options.device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())  # some of torch.cuda's functions want a number
    content = read(options.out)
    content["machine"] = machine() | ceilings.gpu(device)
    entry = content["sections"][name] = new_entry()
    rates = ceilings.rates(content["sections"].get("ceilings", new_entry())["rows"])
    setting = Setting(device, options.tiny, not options.skip_peers, rates)
    start = time.monotonic()
    try:
        for row in SECTIONS[name].measure(setting):
            entry["rows"].append(row)
            entry["seconds"] = round(time.monotonic() - start, 1)
            write(options.out, content)
    except Exception as error:  # it is written down, and the next section runs
        entry["error"] = trace(error)
        write(options.out, content)


def _in_child(name: str, limit: float) -> str | None:
    """Run one section; what kept it from ending, if anything did."""
    command = [sys.executable, __file__, *sys.argv[1:], "--child", name]
    try:
        code = subprocess.run(command, timeout=limit).returncode
    except subprocess.TimeoutExpired:
        return f"stopped after {limit:.0f} s"
    return f"its process ended with code {code}" if code else None


def new_entry() -> dict[str, Any]:
    """What the file says of a section."""
    return {"rows": [], "seconds": None, "error": None}


def read(file: Path) -> dict[str, Any]:
    """What was written there, or an empty beginning."""
    if file.exists():
        return json.loads(file.read_text(encoding="utf-8"))
    claim = "8-bit LoRA on a GPU: smaller and faster than 16-bit; figures are null where they were not measured"
    return {"claim": claim, "command": None, "machine": {}, "sections": {}, "bars": []}


def write(file: Path, content: dict[str, Any]) -> None:
    """Replace the file in one go: a child may be stopped at any time."""
    fresh = file.with_suffix(".part")
    fresh.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(fresh, file)


def show(title: str, rows: Sequence[Row]) -> None:
    """Print rows as a table, whose columns are those of all rows."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    table = Table(*columns, title=title if rows else f"{title}: {NOT_MEASURED}", title_justify="left")
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    Console(width=240).print(table)


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return NOT_MEASURED
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def trace(error: BaseException) -> str:
    """An error and the way to it, files by their names alone: results name no place on this machine."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
    return " > ".join([*places, f"{type(error).__name__}: {error}"])


def _without_paths(words: Sequence[str]) -> list[str]:
    return [Path(word).name if os.path.isabs(word) else word for word in words]


if __name__ == "__main__":
    main()
