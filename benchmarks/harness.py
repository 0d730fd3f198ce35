"""What every benchmark shares: interleaved timing, errors, the machine's name and bandwidth, and where results go.

A figure is a ratio against a peer or a physical limit measured in the same run. Repeats are interleaved (a, b, a, b),
so that a noisy minute falls on all of them, and medians are compared.
"""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from native import advise_huge_pages

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "torchao", "safetensors", "rouge-score")


def interleaved(works: Mapping[str, Callable[[], object]], repeats: int = 7) -> dict[str, list[float]]:
    """Seconds of every repeat of every work, taken in turns after one warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(repeats):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def medians(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each work's repeats."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def relative_error(found: Tensor, exact: Tensor) -> float:
    """‖found − exact‖ / ‖exact‖, in float32."""
    found, exact = found.float(), exact.float()
    return ((found - exact).norm() / exact.norm()).item()


def bandwidth_probe(n_bytes: int = 2 * 10**9) -> Callable[[], object]:
    """A work that reads `n_bytes` of memory once, in torch's threads: the limit of whatever must read its weights."""
    numbers = advise_huge_pages(torch.empty(n_bytes // 8, dtype=torch.int64)).random_()  # as weights are kept
    return numbers.sum


def machine() -> dict[str, Any]:
    """The machine and the versions, as results record them."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "accelerator": accelerator,
        "python": platform.python_version(),
        "versions": versions,
        "date": date.today().isoformat(),
    }


def record(
    name: str, rows: Sequence[Mapping[str, Any]], *, claim: str, notes: Sequence[str] = (), table: Table | None = None
) -> Path:
    """Print rows as a table and write them, with the machine and the command, to `results/`.

    Args:
        name: of the file; one per benchmark, the machine's kind appended by the caller if several are kept.
        rows: dictionaries with the same keys.
        claim: what the benchmark is to show, in a sentence.
        notes: what a reader must know to trust or doubt the figures.
        table: printed instead of one with a column per key.
    """
    if table is None:
        table = Table(*rows[0], title=claim, title_justify="left")
        for row in rows:
            table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    console = Console()
    (console if console.is_terminal else Console(width=200)).print(table)
    for note in notes:
        print(f"note: {note}")
    words = ["DIR" if os.path.isabs(word) else word for word in sys.argv[1:]]  # results name no place on this machine
    command = " ".join(["python", os.path.relpath(sys.argv[0]), *words])
    content = {"claim": claim, "command": command, "machine": machine(), "rows": list(rows), "notes": list(notes)}
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.json"
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"written: {os.path.relpath(file)}")
    return file


def _cpu_name() -> str:
    """The processor's model name with the vector extensions that matter here."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    flags = set(fields.get("flags", "").split())
    wanted = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile") if flag in flags]
    return " ".join([fields.get("model name", platform.machine()), *wanted])
