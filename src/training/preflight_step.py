"""One forward and backward pass before the first step: what it shows of the model, what it takes, and no trace of it.

The pass is that of a real step: the longest micro-batch of the run, its true scale, autocast and collectives. So it is
also the most memory that any step will take, but for the optimizer's state, which is not there yet.
"""

import math
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from data import Batch, Example
from data.plan import MicroBatch
from llama import Llama
from lora import lora_layers
from optim8bit.sharding import local_part
from recipe import RunConfig, RunData, RunPlan, predict_memory
from training.parallel import Engine
from training.preflight_rows import Finding
from training.progress import peak_memory_gb
from training.step import Autocast, dropout_seed

ABSURD_LOSS = 1.5
"""In units of ln V, the loss of a model that holds all tokens for equally likely."""
MUCH_MORE, ALLOWANCE = 1.25, 0.5e9
"""Measured memory that deserves a warning: so many times the prediction, and so many bytes."""
NAMED = 4

ToBatch = Callable[[Sequence[Sequence[Example]]], Batch]


@dataclass(frozen=True)
class MicroStep:
    """What one forward and backward pass showed, the same on every rank but for the memory.

    Attributes:
        loss: nats per supervised token.
        rows, width: of the micro-batch, padding included.
        broken, idle, stray: parameters whose gradient is not finite; is missing or zero; is there though they are
            frozen.
        measured, predicted: bytes, see `what`; measured is None where the system does not say.
        what: what both numbers count.
    """

    loss: float
    rows: int
    width: int
    broken: list[str]
    idle: list[str]
    stray: list[str]
    measured: int | None
    predicted: int
    what: str

    @property
    def memory(self) -> str:
        """Both numbers in words."""
        measured = "not" if self.measured is None else f"{self.measured / 1e9:.2f} GB"
        return f"{self.what} {measured} measured, {self.predicted / 1e9:.2f} predicted"


def longest(plan: RunPlan, lengths: Sequence[int]) -> tuple[int, MicroBatch]:
    """The micro-batch of most positions, with its step, from 0."""

    def positions(rows: MicroBatch) -> int:
        return len(rows) * max(sum(lengths[i] for i in row) for row in rows)

    candidates = ((step, rows) for step, micro_batches in enumerate(plan.steps) for rows in micro_batches)
    return max(candidates, key=lambda candidate: positions(candidate[1]))


def micro_step(
    config: RunConfig, data: RunData, plan: RunPlan, engine: Engine, to_batch: ToBatch, autocast: Autocast
) -> MicroStep:
    """One pass on the longest micro-batch, as a step would make it; every rank takes the same one."""
    device = next(engine.model.parameters()).device
    number, rows = longest(plan, list(map(len, data.train)))
    indices = [i for micro_batch in plan.steps[number] for row in micro_batch for i in row]
    scale = 1 / (sum(sum(data.train[i].supervised[1:]) for i in indices) * engine.team.size)
    batch = to_batch([[data.train[i] for i in row] for row in rows]).to(device)
    torch.manual_seed(dropout_seed(config.train.seed, number + 1, 0))
    memory = _Memory(device)
    with engine.gradient_sync(last=True):
        with autocast():
            loss = engine.loss(batch, scale)
        memory.look()
        loss.backward()
    memory.look()
    predicted = predict_memory(engine.model, config, processes=engine.team.size)
    passing = predicted.gradients + predicted.activations + predicted.logits + predicted.scratch
    broken, idle, stray = _everyones_gradients(engine)
    return MicroStep(
        loss=loss.item() / scale / batch.n_supervised,
        rows=batch.token_ids.shape[0],
        width=batch.token_ids.shape[1],
        broken=broken,
        idle=idle,
        stray=stray,
        measured=memory.peak,
        predicted=predicted.total - predicted.optimizer if device.type == "cuda" else passing,
        what="peak" if device.type == "cuda" else "a pass takes",
    )


class _Memory:
    """A pass's memory in bytes: on a GPU the peak, with all that was there; on a CPU what the process grew by.

    A CPU's peak that lies under an earlier one (of loading) cannot be seen, so the process is also measured at the end
    of both passes, when most is held.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak: int | None = None
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self._before, self._earlier = _resident(), peak_memory_gb(device)

    def look(self) -> None:
        """Measure now."""
        highest, now = peak_memory_gb(self.device), _resident()
        if self.device.type == "cuda":
            self.peak = round(highest * 1e9)
        elif self._before is not None and now is not None:
            reached = round(highest * 1e9) if highest > self._earlier else now
            self.peak = max(self.peak or 0, reached - self._before)


def _resident() -> int | None:
    """Bytes of this process in memory; None where the system does not say it as Linux does."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError, ValueError):
        return None


def _everyones_gradients(engine: Engine) -> tuple[list[str], list[str], list[str]]:
    """Names of parameters whose gradient is broken, idle or stray; of a sharded one the rows of all ranks count."""
    resting = {f"{name}.lora_A" for name, layer in lora_layers(engine.model) if not layer.lora_B.any()}
    broken, idle, stray = [], [], []
    for name, parameter in engine.model.named_parameters():
        gradient = None if parameter.grad is None else local_part(parameter.grad)
        if not parameter.requires_grad:
            stray += [name] * (gradient is not None)
        elif gradient is None:
            idle.append(name)
        else:
            broken += [name] * (not gradient.isfinite().all().item())
            # While B is zero no gradient reaches A, but a zero one, and there it shows that the adapter is in use.
            idle += [name] * (name not in resting and not gradient.any().item())
    found = engine.team.everyones((broken, idle, stray))
    idle_everywhere = [name for name in idle if all(name in theirs[1] for theirs in found)]
    return _union([theirs[0] for theirs in found]), idle_everywhere, _union([theirs[2] for theirs in found])


def _union(lists: Sequence[list[str]]) -> list[str]:
    return list(dict.fromkeys(name for names in lists for name in names))


@torch.no_grad()
def check_step(step: MicroStep, model: Llama) -> Finding:
    """Loss finite and not absurd; every gradient there, finite and not zero; none for what is frozen."""
    equal = math.log(model.config.vocab_size)
    if not math.isfinite(step.loss):
        tensors = [*model.named_parameters(), *model.named_buffers()]
        spoilt = [n for n, t in tensors if t.is_floating_point() and not _finite(t)]
        what = f"{len(spoilt)} tensors of the model hold such values: {_some(spoilt)}; copy the base again"
        none = "every weight is finite; train in train.precision = bf16 or float32, and check the base's dtype"
        raise ValueError(
            f"the loss of {step.rows} x {step.width} tokens is {step.loss}, not finite; {what if spoilt else none}"
        )
    if step.broken:
        raise ValueError(
            f"{len(step.broken)} gradients are not finite at a loss of {step.loss:.2f}: {_some(step.broken)}; check "
            "the base, or train in train.precision = float32"
        )
    trained = sum(p.requires_grad for p in model.parameters())
    if step.idle:
        raise ValueError(
            f"{len(step.idle)} of {trained} trained tensors get no gradient and would never learn: {_some(step.idle)}; "
            "does the model use them, or are they merged, disabled or detached?"
        )
    if step.stray:
        raise ValueError(
            f"{len(step.stray)} frozen tensors get a gradient: {_some(step.stray)}; train them, or leave "
            "them out of the graph"
        )
    found = f"{step.rows} x {step.width} tokens: loss {step.loss:.3f}, gradients in all {trained} trained tensors"
    if step.loss <= ABSURD_LOSS * equal:
        return Finding(found)
    warning = f"the loss is {step.loss:.2f}, guessing would cost ln V = {equal:.2f}"
    return Finding(found, f"{warning}: do base and tokenizer belong together?")


def _finite(tensor: Tensor) -> bool:
    local = local_part(tensor)
    return local is not None and bool(local.isfinite().all())


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (" ..." if len(names) > NAMED else "")


def check_memory(step: MicroStep) -> Finding:
    """Measured beside predicted; on a GPU, where both count the same, far more is worth a warning."""
    much = step.measured is not None and step.measured > MUCH_MORE * step.predicted + ALLOWANCE
    warns = step.what == "peak" and much
    return Finding(step.memory, f"{step.memory}: the run may need more than it was found to fit into" if warns else "")


# --- Nothing left behind ---


@contextmanager
def left_as_found(model: nn.Module) -> Iterator[list[str]]:
    """Take gradients, drawn random numbers and the mode back after the block; yields names of tensors that changed."""
    on_gpu = any(p.device.type == "cuda" for p in model.parameters())
    devices = list(range(torch.cuda.device_count())) if on_gpu else []  # a seed is given to all of them
    versions = {name: tensor._version for name, tensor in _tensors(model)}
    modes = {module: module.training for module in model.modules()}
    changed: list[str] = []
    try:
        with torch.random.fork_rng(devices):
            model.train()
            yield changed
    finally:
        for module, mode in modes.items():
            module.training = mode
        model.zero_grad(set_to_none=True)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
    changed += [name for name, tensor in _tensors(model) if tensor._version != versions.get(name)]


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def check_trace(changed: Sequence[str]) -> Finding:
    """No weight was written to; torch counts that for each tensor."""
    if changed:
        raise ValueError(
            f"{len(changed)} tensors were written to by a pass without an update: {_some(changed)}; look for what in "
            "the model's forward pass changes its weights"
        )
    return Finding("weights, generators and mode are as they were")
