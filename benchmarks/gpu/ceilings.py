"""The device's ceilings, which the other sections are held against: bytes and operations per second.

copy       bytes read and written by one copy of a tensor far larger than any cache
read       bytes read by a sum, which writes nothing
bf16       2·n³ operations of an n×n×n product
int8       the same by `torch._int_mm`, int8 × int8 → int32, with the second operand transposed: y = x·Ŵ, Ŵ stored
           as the rows of Ŵᵀ
int8, dX   with the second operand as it is stored, dX = dY·Ŵᵀ; None where cuBLASLt has no such product
"""

import subprocess
from collections.abc import Iterator
from typing import Any

import torch
from peers import DTYPE
from timing import Row, Setting, Work, only_working, seconds


def measure(setting: Setting) -> Iterator[Row]:
    """One row per ceiling."""
    n_bytes, n = (2**20, 64) if setting.tiny else (2**32, 8192)
    device = setting.device
    source = torch.randint(2**31, (n_bytes // 8,), device=device)
    target = torch.empty_like(source)
    x, w = (torch.randn(n, n, device=device).to(DTYPE) for _ in range(2))
    a, b = (torch.randint(-127, 128, (n, n), dtype=torch.int8, device=device) for _ in range(2))
    works: dict[str, tuple[Work, int, str]] = {  # key -> (work, its bytes or operations, unit)
        "copy": (lambda: target.copy_(source), 2 * n_bytes, "GB/s"),
        "read": (source.sum, n_bytes, "GB/s"),
        "bf16": (lambda: x @ w, 2 * n**3, "GFLOP/s"),
        "int8": (lambda: torch._int_mm(a, b.t()), 2 * n**3, "GOP/s"),
        "int8, dX": (lambda: torch._int_mm(a, b), 2 * n**3, "GOP/s"),
    }
    working, failures = only_working({key: work for key, (work, _, _) in works.items()}, device)
    taken = seconds(working, setting, calls=4)
    for key, (_, amount, unit) in works.items():
        rate = amount / taken[key] if key in taken else None
        yield {"ceiling": key, "rate": rate and rate / 1e9, "unit": unit, "note": failures.get(key, "")}


def rates(rows: list[Row]) -> dict[str, float]:
    """The measured ceilings by key, per second."""
    return {row["ceiling"]: row["rate"] * 1e9 for row in rows if row["rate"] is not None}


def gpu(device: torch.device) -> dict[str, Any]:
    """The card's name, memory, architecture, and the versions below PyTorch."""
    if device.type != "cuda":
        return {}
    properties = torch.cuda.get_device_properties(device)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        driver = None
    return {
        "gpu": properties.name,
        "gpu_memory_gb": round(properties.total_memory / 1e9, 1),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "driver": driver,
    }
