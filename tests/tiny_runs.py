"""A run small enough to be saved hundreds of times in a test, and the ways to tell that nothing of it has changed."""

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from pickle import dumps, loads
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data import Example, collate
from llama import Llama, LlamaConfig
from optim8bit import Adam8bit, AdamW8bit
from training import RunPosition, Team, optimizer_step, save_state
from training.manifest import RUN, measured, read_run

TRAINABLE, OPTIMIZER, RANDOM, CONFIG = (
    *(f"{n}.safetensors" for n in ("trainable", "optimizer", "random")),
    "config.toml",
)
FILES = (TRAINABLE, OPTIMIZER, RANDOM, CONFIG, RUN)
SHAPE = LlamaConfig(31, 64, 1, 2, 2, 96)
BATCH = collate([[Example([1, 5, 6, 7, 2], [False, True, True, True, True])]], pad_id=0)
SAME = {"optim.lr": "0.01"}


def make(
    seed: int, optimizer: type[torch.optim.Optimizer] = AdamW8bit, **options: object
) -> tuple[Llama, torch.optim.Optimizer]:
    """A model with weights of its own, and an optimizer of it that has no state yet.

    Under AdamW8bit the matrices of the block have 8-bit moments; embedding, head and norms have too few elements.
    """
    model = Llama(SHAPE).init_weights(torch.Generator().manual_seed(seed), std=0.2)
    return model, optimizer(model.parameters(), lr=0.01, **options)  # type: ignore[call-arg]


def train(model: Llama, optimizer: torch.optim.Optimizer, steps: int) -> list[str]:
    """The losses of some steps, every bit of them."""
    return [optimizer_step(model, optimizer, [BATCH], clip=1.0).loss.hex() for _ in range(steps)]


def a_checkpoint(folder: Path, seed: int = 0, step: int = 2, keep: int = 2) -> Path:
    """A checkpoint of a run that has taken two steps."""
    model, optimizer = make(seed)
    train(model, optimizer, 2)
    position = RunPosition(step, 10, SAME)
    return save_state(folder, model, optimizer, position, keep=keep, config_text="[optim]\nlr = 0.01\n")


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All that a checkpoint is about, copied: weights, moments, step counts, random generators."""
    found = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            found[f"{name}.{key}"] = value.clone() if isinstance(value, Tensor) else torch.tensor(value)
    _, key, place, has_gauss, gauss = np.random.get_state()
    found["numpy"] = torch.tensor([*map(int, key), place, has_gauss])  # type: ignore[call-overload]
    found["numpy gauss"] = torch.tensor(gauss)
    found["python"] = torch.tensor(random.getstate()[1])
    return found | {"torch": torch.get_rng_state()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two such collections hold the same bits under the same names."""
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


def vouch_again(checkpoint: Path, **changes: Any) -> None:
    """Let run.json vouch for the files as they are, as one who forges a checkpoint would."""
    names = [path.name for path in checkpoint.iterdir() if path.name != RUN]
    run = replace(read_run(checkpoint), manifest=measured(checkpoint, names), **changes)
    (checkpoint / RUN).write_bytes(run.text())


def kinds_of_state(optimizer: torch.optim.Optimizer) -> set[str]:
    """The keys of all states: which kinds of moments a test is about."""
    assert isinstance(optimizer, (Adam8bit, torch.optim.AdamW))
    return {key for state in optimizer.state.values() for key in state}


# --- A team of threads ---


@dataclass
class Meeting:
    """Where the ranks of a team of threads exchange what they have to say. None of them waits for ever."""

    size: int
    slots: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.slots = [b""] * self.size
        self.barrier = threading.Barrier(self.size, timeout=20)

    def exchange(self, rank: int, value: object) -> list[Any]:
        """Everyone's value, as it comes out of a pickle on another process."""
        self.slots[rank] = dumps(value)
        self.barrier.wait()
        everyones = [loads(slot) for slot in self.slots]
        self.barrier.wait()
        return everyones


@dataclass(frozen=True)
class ThreadTeam(Team):
    """A team whose processes are threads of this one."""

    meeting: Meeting = field(default_factory=lambda: Meeting(1))

    def everyones(self, value: Any) -> list[Any]:
        return self.meeting.exchange(self.rank, value)

    def leaders(self, value: Any) -> Any:
        return self.everyones(value)[0]


def run_team(size: int, work: Callable[[ThreadTeam], object]) -> list[Any]:
    """What each rank's work returned, or the exception it raised."""
    results: list[Any] = [None] * size
    meeting = Meeting(size)

    def run(rank: int) -> None:
        try:
            results[rank] = work(ThreadTeam(rank, size, rank, meeting))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in threads), "a rank waits for one that has left"
    return results
