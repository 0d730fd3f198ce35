"""One optimizer step: accumulate the gradient of several micro-batches, clip it, update.

g = (1/N) Σ_micro-batches ∇ Σ_t −log P(y_t | ·),    N = supervised tokens in all of them
g ← g · min(1, clip / ‖g‖₂)                          (arXiv 1211.5063, algorithm 1)

The micro-batches may be spread over a team of processes (`training.parallel`): N, the loss and ‖g‖₂ are the whole
team's, and so is every decision to stop.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data import Batch
from llama import Llama
from optim8bit.sharding import is_sharded, local_part
from recipe import RunConfig
from training.parallel import Engine
from training.team import ALONE, Team

Autocast = Callable[[], AbstractContextManager]


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step measured, over the whole team.

    Attributes:
        loss: mean −log P per supervised token, in nats.
        gradient_norm: ‖g‖₂ before clipping.
        n_tokens: real tokens seen, padding not counted.
    """

    loss: float
    gradient_norm: float
    n_tokens: int


class NonFiniteError(ValueError):
    """A loss or gradient is NaN or infinite; the update was not made.

    Attributes:
        micro_batch: number in the step, from 0, of the first whose loss was not finite; None if it was the gradient.
    """

    def __init__(self, message: str, micro_batch: int | None = None) -> None:
        super().__init__(message)
        self.micro_batch = micro_batch


def dropout_seed(seed: int, step: int, micro_batch: int) -> int:
    """What the random generators begin a micro-batch with: a function of its place in the run, and of nothing else.

    So a resumed run, or one on more processes, drops what the undisturbed one dropped.

    >>> dropout_seed(42, 1, 0) == dropout_seed(42, 1, 0), dropout_seed(42, 1, 0) == dropout_seed(42, 0, 1)
    (True, False)
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{micro_batch}".encode()).digest()[:8]) >> 1


def optimizer_step(
    engine: Engine | Llama,
    optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[Batch],
    *,
    clip: float,
    autocast: Autocast = nullcontext,
    numbers: Sequence[int] | None = None,
    seeds: Sequence[int] | None = None,
) -> StepResult:
    """Take one step on the token-weighted mean loss of all micro-batches.

    Args:
        engine: computes loss and gradient; a bare model is one that this process trains alone.
        micro_batches: this rank's, already on the model's device; every rank has equally many (`own_share`, `blank`).
        clip: largest gradient norm; 0 does not clip.
        autocast: makes the context the forward pass runs in.
        numbers: of this rank's micro-batches in the whole step; by default 0, 1, 2, ...
        seeds: what the random generators (dropout) are set to before each micro-batch; None leaves them.

    Raises:
        NonFiniteError: on every rank, before the update, so that weights and optimizer state are still good.
    """
    engine = engine if isinstance(engine, Engine) else Engine(engine)
    numbers = range(len(micro_batches)) if numbers is None else numbers
    n_supervised, n_tokens = engine.team.total(
        sum(batch.n_supervised for batch in micro_batches), sum(batch.n_tokens for batch in micro_batches)
    )
    if n_supervised == 0:
        raise ValueError("no supervised token in the whole step: nothing to learn from; check template and max_length")
    optimizer.zero_grad(set_to_none=True)
    losses = []
    for place, batch in enumerate(micro_batches):
        if seeds is not None:
            torch.manual_seed(seeds[place])
        with engine.gradient_sync(last=place == len(micro_batches) - 1):
            with autocast():
                loss = engine.loss(batch, 1 / n_supervised)
            loss.backward()
        losses.append(loss.item())
    [total] = engine.team.total(sum(losses))
    if not math.isfinite(total):
        _refuse_losses(losses, numbers, engine.team)
    norm = clip_gradients(engine.model, clip, engine.team)
    optimizer.step()
    return StepResult(total, norm, int(n_tokens))


def _refuse_losses(losses: Sequence[float], numbers: Sequence[int], team: Team) -> None:
    """Name the step's first micro-batch whose loss is not finite, on all ranks alike."""
    own = [(number, loss) for number, loss in zip(numbers, losses, strict=True) if not math.isfinite(loss)]
    everyones = sorted(pair for pairs in team.everyones(own) for pair in pairs)
    number, loss = everyones[0] if everyones else (numbers[0], sum(losses))
    raise NonFiniteError(
        f"the loss of micro-batch {number} is {loss}: no update was made; lower optim.lr or check the base", number
    )


def clip_gradients(model: nn.Module, clip: float, team: Team = ALONE) -> float:
    """Scale the gradient down to norm `clip` (0: leave it), and return its norm before.

    Raises:
        NonFiniteError: names the first parameter whose gradient is not finite.
    """
    gradients = [gradient for _, gradient in _gradients(model)]
    norm = nn.utils.get_total_norm(gradients)
    if any(is_sharded(p.grad) for p in model.parameters()):
        norm = torch.tensor(team.total(norm.item() ** 2)[0] ** 0.5, device=norm.device)
    if not norm.isfinite():
        own = [name for name, gradient in _gradients(model) if not gradient.isfinite().all()]
        names = [name for names in team.everyones(own[:1]) for name in names]
        what = names[0] if names else "all parameters together"
        raise NonFiniteError(f"the gradient of {what} is not finite: no update was made; lower optim.lr")
    if clip:
        # as torch's clip_grads_with_norm_, which does not take a DTensor's parts
        torch._foreach_mul_(gradients, (clip / (norm + 1e-6)).clamp(max=1.0))
    return norm.item()


@torch.no_grad()
def check_weights(engine: Engine, step: int) -> None:
    """Refuse trained weights that are no numbers, before they are saved where good ones are. All ranks call it.

    Raises:
        NonFiniteError: on every rank; an update spoilt what was finite (it overflowed). Names the first parameter.
    """
    trained = ((name, p) for name, p in engine.model.named_parameters() if p.requires_grad)
    local = ((name, local_part(p)) for name, p in trained)
    own = [name for name, weight in local if not weight.isfinite().all()]
    if names := [name for names in engine.team.everyones(own[:1]) for name in names]:
        raise NonFiniteError(
            f"step {step}: {names[0]} is no longer finite: no checkpoint was made of it; an earlier one is good, but "
            "lower optim.lr, for the same steps would lead here again"
        )


def _gradients(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and gradient of each parameter that has one; of a sharded one the rows that lie here."""
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            yield name, local_part(parameter.grad)


@torch.no_grad()
def validation_loss(
    engine: Engine | Llama,
    batches: Sequence[Batch],
    *,
    autocast: Autocast = nullcontext,
    after_batch: Callable[[], None] = lambda: None,
) -> float:
    """Mean −log P per supervised token over all batches, in nats; leaves the model's mode as it was.

    Args:
        batches: this rank's; every rank has equally many.
    """
    engine = engine if isinstance(engine, Engine) else Engine(engine)
    device = next(engine.model.parameters()).device
    was_training = engine.model.training
    engine.model.eval()
    total = 0.0
    for batch in batches:
        with autocast():
            total += engine.loss(batch.to(device)).item()
        after_batch()
    engine.model.train(was_training)
    loss, n_supervised = engine.team.total(total, sum(batch.n_supervised for batch in batches))
    return loss / n_supervised


def autocast_of(config: RunConfig, device: torch.device) -> AbstractContextManager:
    """bf16 products over float32 weights under bf16-mixed; nothing otherwise."""
    if config.train.precision != "bf16-mixed":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
