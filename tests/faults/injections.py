"""Faults inside a run: processes killed, numbers poisoned, memory refused. Each is set up before train.py begins.

A place in the run is a step, counted from 1 from where this process begins, and a micro-batch, counted from 0.
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import train
from files.writing import raw_bytes
from training.parallel import Engine

POINTS = ("before forward", "before backward", "before update", "after update")

Act = Callable[[train.Run, Any], Any]
"""What happens at a place; given the run and, before the backward pass, the loss, of which it may return another."""


def kill(step: int, micro_batch: int, point: str) -> None:
    """SIGKILL at one of `POINTS`; an update belongs to no micro-batch."""
    at(step, micro_batch, point, lambda run, value: os.kill(os.getpid(), signal.SIGKILL))


def interrupt(step: int, micro_batch: int, point: str, signals: list[int]) -> None:
    """Signals, one after the other, at one of `POINTS`."""

    def send(run: train.Run, value: object) -> object:
        for number in signals:
            os.kill(os.getpid(), number)
        return value

    at(step, micro_batch, point, send)


def refuse_memory(step: int, micro_batch: int, how: str) -> None:
    """A forward pass needs memory that is not there: a GPU's, Python's, or what the CPU's allocator asks for."""

    def refuse(run: train.Run, value: object) -> None:
        if how == "gpu":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        if how == "python":
            raise MemoryError
        torch.empty(2**60, dtype=torch.uint8)

    at(step, micro_batch, "before forward", refuse)


def poison(step: int, micro_batch: int, what: str, value: float, verdict: str) -> None:
    """Something is no number, in a new run. Whether weights and moments stay the same goes into the file `verdict`.

    Args:
        what: "loss", "gradient" (of what is trained last), "embedding" (of a token in the micro-batch), or "weight"
            (of the last block's SwiGLU).
    """
    before: dict[str, bytes] = {}

    def spoil(run: train.Run, loss: Any) -> Any:
        if what == "loss":
            loss = loss * value
        elif what == "gradient":
            trained = [parameter for parameter in run.engine.model.parameters() if parameter.requires_grad]
            trained[-1].register_hook(lambda gradient: gradient * value)
        else:
            tensors = run.engine.model.state_dict()  # which share the parameters' memory
            row = run.batch(run.plan.steps[step - 1][micro_batch]).token_ids[0, 1]
            name = next(n for n, t in tensors.items() if "layers.1.feed_forward.w1" in n and t.is_floating_point())
            tensors["tok_embeddings.weight" if what == "embedding" else name][row if what == "embedding" else 0] = value
        before.update(bytes_of(run))
        return loss

    def judge(run: train.Run) -> None:
        Path(verdict).write_text("unchanged" if bytes_of(run) == before else "changed")

    at(step, micro_batch, "before backward" if what in ("loss", "gradient") else "before forward", spoil, judge)


def overflow(step: int) -> None:
    """An update makes a weight infinite."""

    def spoil(run: train.Run, value: object) -> object:
        trained = [parameter for parameter in run.engine.model.parameters() if parameter.requires_grad]
        with torch.no_grad():
            trained[-1].view(-1)[-1] = torch.inf
        return value

    at(step, 0, "after update", spoil)


def survey(log: str) -> None:
    """Nothing fails; step and micro-batch of each forward pass become a line of the file `log`."""
    plain_one, plain_loss = train.one_step, Engine.loss

    def one_step(run: train.Run, number: int) -> object:
        passes = iter(range(1000))

        def loss(engine: Engine, batch: Any, scale: float = 1.0) -> Tensor:
            with open(log, "a") as file:
                file.write(f"{number} {next(passes)}\n")
            return plain_loss(engine, batch, scale)

        Engine.loss = loss
        try:
            return plain_one(run, number)
        finally:
            Engine.loss = plain_loss

    train.one_step = one_step


def at(
    step: int, micro_batch: int, point: str, act: Act, judge: Callable[[train.Run], None] = lambda run: None
) -> None:
    """Let `act` happen at a point of the run, and `judge` look at the run if the step fails."""
    plain_one, plain_step, plain_loss = train.one_step, train.optimizer_step, Engine.loss
    place = {"step": 0, "micro_batch": 0}
    runs: list[train.Run] = []

    def reached(here: str, value: object = None) -> Any:
        on_time = place["step"] == step and here == point
        return act(runs[-1], value) if on_time and place["micro_batch"] == micro_batch else value

    def one_step(run: train.Run, number: int) -> object:
        runs.append(run)
        place.update(step=place["step"] + 1, micro_batch=-1)
        Engine.loss = loss
        try:
            return plain_one(run, number)
        except Exception:
            judge(run)
            raise
        finally:
            Engine.loss = plain_loss

    def loss(engine: Engine, batch: Any, scale: float = 1.0) -> Tensor:
        place["micro_batch"] += 1
        reached("before forward")
        return reached("before backward", plain_loss(engine, batch, scale))

    def optimizer_step(engine: Engine, optimizer: Any, *rest: Any, **options: Any) -> object:
        plain_update = optimizer.step

        def update() -> None:
            place.update(micro_batch=micro_batch)
            reached("before update")
            plain_update()

        optimizer.step = update
        result = plain_step(engine, optimizer, *rest, **options)
        del optimizer.step
        reached("after update")
        return result

    train.one_step, train.optimizer_step = one_step, optimizer_step


def bytes_of(run: train.Run) -> dict[str, bytes]:
    """Every weight and every moment as bytes, for NaN is not equal to itself."""
    tensors = dict(run.engine.model.state_dict())
    for number, state in enumerate(run.optimizer.state_dict()["state"].values()):
        tensors |= {f"{number}.{key}": value for key, value in state.items() if isinstance(value, Tensor)}
    return {name: bytes(raw_bytes(tensor.detach())) for name, tensor in tensors.items()}
