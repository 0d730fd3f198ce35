"""Whether a model fits into memory, asked before it is loaded; and if it does not, which flags would make it fit.

    need = Σ bytes of parameters and buffers + the largest tensor on its way from the file      to ask a model
    need = the prediction of `recipe.memory`                                                    to train one

Free memory is the kernel's estimate of what can be had without swapping, or less where a container's limit is lower.
Estimates may be wrong, so a refusal also names the flag that overrules it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from int8 import convert_to_int8
from llama import Llama, LlamaConfig
from llama.config import NAMED
from recipe.config import RunConfig
from recipe.memory import meta_model, predict_memory

STORED_WIDTH = 2
"""Bytes per weight on its way from the file: models ship in 16 bits."""

TRAINING_CHANGES: dict[str, dict[str, Any]] = {
    "--train.gradient-checkpointing": {"gradient_checkpointing": True},
    "--train.micro-batch-size 1": {"micro_batch_size": 1},
    "--train.method lora-8bit --train.precision bf16": {"method": "lora-8bit", "precision": "bf16"},
}
"""What makes a run smaller, by flag: settings of `train`. The first two leave the result as it is."""


@dataclass(frozen=True)
class LoadNeed:
    """Bytes that loading takes: `final`, which stay, and `in_flight`, beside them until the last tensor has arrived."""

    final: int
    in_flight: int

    @property
    def peak(self) -> int:
        """The most at any time."""
        return self.final + self.in_flight


def load_need(shape: LlamaConfig, dtype: torch.dtype, *, int8: bool = False) -> LoadNeed:
    """What a model of that shape needs, counted on the meta device.

    Args:
        dtype: of the weights; with `int8`, of those that stay as they are: embedding, head and norms.

    >>> need = load_need(LlamaConfig.named("7B"), torch.bfloat16, int8=True)
    >>> need.final, need.in_flight
    (7006265344, 262144000)
    """
    with torch.device("meta"):
        model = Llama(shape).to(dtype)
        largest = max(parameter.numel() for parameter in model.parameters())
        if int8:
            convert_to_int8(model)
    final = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    return LoadNeed(final, largest * max(STORED_WIDTH, dtype.itemsize))


def check_load_fits(shape: LlamaConfig, dtype: torch.dtype, *, int8: bool, free: int | None) -> None:
    """Refuse a model that cannot be loaded into `free` bytes; None, where nobody knows, refuses nothing.

    Raises:
        ValueError: it needs more. The message names the flags that would do, or what is missing and what would fit.
    """

    def need(flags: Sequence[str] = ()) -> int:
        width = torch.bfloat16 if "--dtype bfloat16" in flags else dtype
        return load_need(shape, width, int8=int8 or "--int8" in flags).peak

    if free is None or need() <= free:
        return
    flags = [] if int8 else ["--int8"]
    flags += ["--dtype bfloat16"] if dtype.itemsize > torch.bfloat16.itemsize else []
    width = str(dtype).removeprefix("torch.")
    what = f"a LLaMA of {shape.n_parameters / 1e9:.3g}B parameters in {f'int8 and {width}' if int8 else width}"
    remedy = _what_fits(flags, need, free) or f"{_missing(need, flags, free)}; {_shape_that_fits(free)}"
    raise ValueError(_refusal(what, need(), free, remedy, "--ignore-memory"))


def training_need(config: RunConfig, shape: LlamaConfig, flags: Sequence[str] = (), *, processes: int = 1) -> int:
    """Bytes that a run is predicted to take on each of its devices, with some of `TRAINING_CHANGES` made."""
    settings = {name: value for flag in flags for name, value in TRAINING_CHANGES[flag].items()}
    changed = replace(config, train=replace(config.train, **settings))
    return predict_memory(meta_model(changed, shape), changed, processes=processes).total


def open_changes(config: RunConfig) -> list[str]:
    """The flags of `TRAINING_CHANGES` that the run does not have yet."""
    now = vars(config.train).items()
    return [flag for flag, settings in TRAINING_CHANGES.items() if not settings.items() <= now]


def memory_remedies(config: RunConfig, shape: LlamaConfig, *, processes: int = 1) -> str:
    """For a run that did not fit after all: what it was predicted to need, and what it would with each change."""

    def need(changed: RunConfig, *flags: str) -> str:
        return _gb(training_need(changed, shape, flags, processes=processes))

    length = max(1, config.data.max_length // 2)
    halved = replace(config, data=replace(config.data, max_length=length))
    ways = [f"{flag} ({need(config, flag)})" for flag in open_changes(config)]
    ways.append(f"--data.max-length {length} ({need(halved)})")
    return f"this run is predicted to need {need(config)}: try {', '.join(ways)}"


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory is missing: a GPU's, Python's, or the CPU allocator's, whose error has no class of its own."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator: " in str(error)


def check_training_fits(config: RunConfig, shape: LlamaConfig, free: int | None, *, processes: int = 1) -> None:
    """Refuse a run that cannot train in `free` bytes; None, where nobody knows, refuses nothing.

    Args:
        free: on each device.
        processes: how many train together, each on a device of its own.

    Raises:
        ValueError: it needs more. The message names the settings that would do, or what is missing.
    """

    def need(flags: Sequence[str] = ()) -> int:
        return training_need(config, shape, flags, processes=processes)

    if free is None or need() <= free:
        return
    flags = open_changes(config)
    remedy = _what_fits(flags, need, free) or f"{_missing(need, flags, free)}; take a smaller base or data.max_length"
    rows = f"{config.train.micro_batch_size} x {config.data.max_length} tokens at once"
    what = f"this run (method {config.train.method}, {rows})"
    raise ValueError(_refusal(what, need(), free, remedy, "--train.ignore-memory"))


def _refusal(what: str, need: int, free: int, remedy: str, overrule: str) -> str:
    return f"{what} needs {_gb(need)}, {_gb(free)} are free: {remedy} ({overrule} tries all the same)"


def _what_fits(flags: Sequence[str], need: Callable[[Sequence[str]], int], free: int) -> str:
    """The fewest flags that make it fit, each alternative with what it needs; empty if all together do not."""
    for count in range(1, len(flags) + 1):
        needs = {" ".join(chosen): need(chosen) for chosen in combinations(flags, count)}
        if fitting := [f"{chosen}, which needs {_gb(least)}" for chosen, least in needs.items() if least <= free]:
            return "try " + ", or ".join(fitting)
    return ""


def _missing(need: Callable[[Sequence[str]], int], flags: Sequence[str], free: int) -> str:
    least = need(flags)
    at_best = f"even with {' '.join(flags)} it needs {_gb(least)}, and " if flags else ""
    return f"{at_best}{_gb(least - free)} are missing"


def _shape_that_fits(free: int) -> str:
    needs = {name: load_need(shape, torch.bfloat16, int8=True).peak for name, shape in NAMED.items()}
    fitting = {name: need for name, need in needs.items() if need <= free}
    if not fitting:
        return "no published LLaMA fits"
    largest = max(fitting, key=lambda name: fitting[name])
    return f"the largest that fits is {largest} with --int8, which needs {_gb(fitting[largest])}"


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB"


# --- Free memory ---


def free_memory(device: torch.device, root: Path = Path("/"), *, shared_by: int = 1) -> int | None:
    """Bytes that can be allocated on a device, or None if its system does not say.

    On a CPU: the kernel's MemAvailable, or what a control group (containers and notebooks are in one) still allows if
    that is less. Pages of files count as free: they are given up for memory that is asked for.

    Args:
        root: where `proc` and `sys` are.
        shared_by: processes of this machine among which a CPU's memory is divided; a GPU is one's own.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    available = _fields(root / "proc/meminfo").get("MemAvailable:")
    rooms = [*_group_rooms(root)] if available is None else [available * 1024, *_group_rooms(root)]
    return max(0, min(rooms)) // shared_by if rooms else None


def _group_rooms(root: Path) -> Iterator[int]:
    """What each control group around this process still allows, in version 2's files and in version 1's."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, limit, usage, files = "sys/fs/cgroup", "memory.max", "memory.current", ("active_file", "inactive_file")
        elif "memory" in controllers.split(","):
            top, limit, usage = "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            files = ("total_active_file", "total_inactive_file")
        else:
            continue
        # Seen from inside a container the path may be the host's: then only the top, the container's own, is there.
        group = Path(path.lstrip("/"))
        for folder in (root / top / inner for inner in (group, *group.parents)):
            allowed, used = _number(folder / limit), _number(folder / usage)
            if allowed is not None and used is not None:
                stat = _fields(folder / "memory.stat")
                yield allowed - used + sum(stat.get(name, 0) for name in files)


def _number(file: Path) -> int | None:
    """The number that is a file's content; None for the word max and for no file."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _fields(file: Path) -> dict[str, int]:
    """Name -> number of each line `name number ...`; empty if there is no such file."""
    try:
        lines = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdigit()}
