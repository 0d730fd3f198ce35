"""Memory and time of loading: the 16-bit model never exists whole, and the time is near that of reading the files.

    python benchmarks/make_checkpoint.py 7B DIR --format bin
    python benchmarks/loading.py DIR ...                  each as int8 and as bfloat16
    python benchmarks/loading.py DIR ... --peer           beside transformers, with bitsandbytes for int8
    python benchmarks/loading.py --arithmetic             what 7B to 65B will need; no checkpoint

Each load is a fresh process, watched from outside through /proc every 2 ms:

    anonymous   RssAnon, memory that only giving it up frees, heap and tensors: its peak gets a process killed
    resident    VmHWM, the peak of RssAnon together with the pages of mapped files, which the kernel takes back at need
    final       bytes of the model's parameters and buffers

Interpreter and libraries are part of both peaks, as they are for a user; `start` is their anonymous part. A load ends
when a byte of every page of the model has been read: transformers leaves weights in the file until they are used.
"""

import mmap
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from harness import record
from torch import nn

from llama import LlamaConfig
from recipe import plain_errors
from recipe.fit import load_need

BOUND = 1.15
"""Largest ratio of the anonymous peak to the final model that is promised, for a 7B and up."""
CHUNK = 32 * 2**20
PUBLISHED = ("7B", "13B", "33B", "65B")
WEIGHTS = ("*.safetensors", "*.bin", "*.pth")

Cache = Literal["cold", "warm"]
Row = dict[str, Any]
Load = Callable[[Path, bool], nn.Module]


@dataclass(frozen=True)
class Options:
    """Measure the memory and the time of loading."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Checkpoint directories."""
    peer: bool = False
    """Load Hugging Face's formats with transformers as well."""
    cache: Cache = "cold"
    """cold: the files' pages are dropped from memory before each read. warm: they have just been read."""
    arithmetic: bool = False
    """Only print what is predicted for the published shapes."""
    name: str = "loading"
    """Of the file in results/."""


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, measure or predict, record."""
    options = tyro.cli(Options, args=arguments, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,))
    with plain_errors():
        if options.arithmetic:
            record("loading-arithmetic", arithmetic(), claim="final model + largest tensor on its way, by arithmetic")
            return
        if not options.folders:
            raise ValueError("name the checkpoint directories to load (benchmarks/make_checkpoint.py makes some)")
        rows = [row for folder in options.folders for row in measure(folder, options)]
        notes = [
            f"page cache {options.cache}; plain GB/s: the same files, one after the other, into one reused buffer",
            "GB are 10^9 bytes; anonymous includes the interpreter and torch (start); ratio is peak anonymous / final",
            "GB/s are of the stored bytes",
        ]
        notes += (
            ["transformers bfloat16 stays mapped: its weights are in resident, not anonymous"] if options.peer else []
        )
        claim = f"loading: anonymous memory peaks at no more than {BOUND} x the final model (7B and up)"
        record(options.name, rows, claim=claim, notes=notes)


def arithmetic() -> list[Row]:
    """What loading each published shape needs, in GB."""
    rows = []
    for name in PUBLISHED:
        for int8 in (True, False):
            need = load_need(LlamaConfig.named(name), torch.bfloat16, int8=int8)
            row = {"model": name, "weights": "int8" if int8 else "bfloat16", "final GB": need.final / 1e9}
            rows.append(row | {"peak GB": need.peak / 1e9, "ratio": need.peak / need.final})
    return rows


# --- Measuring ---


def measure(folder: Path, options: Options) -> Iterator[Row]:
    """A row for each program and width."""
    files = sorted(file for pattern in WEIGHTS for file in folder.glob(pattern))
    if not files:
        raise ValueError(f"{folder} holds no weights ({', '.join(WEIGHTS)})")
    stored = sum(file.stat().st_size for file in files)
    loaders: dict[str, Load] = {"ours": load_ours}
    if options.peer and files[0].suffix != ".pth":
        loaders["transformers"] = load_transformers
    for loader, load in loaders.items():
        for int8 in (True, False):
            plain = plain_read_seconds(files, options.cache)
            set_cache(files, options.cache)
            try:
                found = watched(load, folder, int8)
            except RuntimeError as error:
                print(f"{loader}, {'int8' if int8 else 'bfloat16'}: {error}")
                continue
            yield {
                "format": f"{files[0].suffix} x {len(files)}",
                "loader": loader,
                "weights": "int8" if int8 else "bfloat16",
                "final GB": found["final"] / 1e9,
                "start GB": found["start"] / 1e9,
                "anonymous GB": found["anonymous"] / 1e9,
                "resident GB": found["resident"] / 1e9,
                "ratio": found["anonymous"] / found["final"],
                "seconds": found["seconds"],
                "GB/s": stored / found["seconds"] / 1e9,
                "plain GB/s": stored / plain / 1e9,
            }


def watched(load: Load, folder: Path, int8: bool) -> dict[str, float]:
    """Run a load in a process of its own and follow its memory, in bytes and seconds.

    Raises:
        RuntimeError: it failed; the message is the child's.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=load_and_report, args=(load, folder, int8, theirs))
    child.start()
    theirs.close()
    try:
        start = ours.recv()
        peak = start
        while not ours.poll(0.002):
            peak = max(peak, memory_of(child.pid or 0, "RssAnon"))
        report = ours.recv()
    except EOFError:
        raise RuntimeError("the process died while loading") from None
    finally:
        child.join()
    if "error" in report:
        raise RuntimeError(report["error"])
    return {**report, "start": start, "anonymous": max(peak, report["anonymous"])}


def load_and_report(load: Load, folder: Path, int8: bool, parent: Connection) -> None:
    """In the child: load, and say what came of it."""
    pid = os.getpid()
    parent.send(memory_of(pid, "RssAnon"))
    begin = time.perf_counter()
    try:
        model = load(folder, int8)
    except Exception as error:  # a peer may fail in any way: its row is left out, the others go on
        parent.send({"error": f"{type(error).__name__}: {error}"})
        return
    tensors = {tensor.data_ptr(): tensor for tensor in (*model.parameters(), *model.buffers())}  # shared ones once
    for tensor in tensors.values():
        tensor.detach().flatten().view(torch.uint8)[:: mmap.PAGESIZE].sum()
    seconds = time.perf_counter() - begin
    final = sum(tensor.nbytes for tensor in tensors.values())
    memory = {"anonymous": memory_of(pid, "RssAnon"), "resident": memory_of(pid, "VmHWM")}
    parent.send({"seconds": seconds, "final": final, **memory})


def load_ours(folder: Path, int8: bool) -> nn.Module:
    """This project's loader."""
    from int8 import Int8Linear
    from llama import load_checkpoint

    convert = Int8Linear.from_linear if int8 else None
    return load_checkpoint(folder, dtype=torch.bfloat16, convert_linear=convert, progress=False)


def load_transformers(folder: Path, int8: bool) -> nn.Module:
    """transformers, and bitsandbytes for int8."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    how = {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)} if int8 else {}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **how)


def memory_of(pid: int, field: str) -> int:
    """A field of a process's status, in bytes; 0 once it has ended."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0


def plain_read_seconds(files: list[Path], cache: Cache) -> float:
    """Time to read all files once, in order."""
    set_cache(files, cache)
    begin = time.perf_counter()
    read_plainly(files)
    return time.perf_counter() - begin


def read_plainly(files: list[Path]) -> None:
    """Every byte, into one reused buffer."""
    buffer = bytearray(CHUNK)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def set_cache(files: list[Path], cache: Cache) -> None:
    """Bring the files' pages into memory, or ask the kernel to drop them (those not yet on the disk stay)."""
    if cache == "warm":
        read_plainly(files)
        return
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
