"""One optimizer step: accumulate the gradient of several micro-batches, clip it, update.

g = (1/N) Σ_micro-batches ∇ Σ_t −log P(y_t | ·),    N = supervised tokens in all of them
g ← g · min(1, clip / ‖g‖₂)                          (arXiv 1211.5063, algorithm 1)
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from data import Batch
from llama import Llama
from training.loss import causal_lm_loss

Autocast = Callable[[], AbstractContextManager]


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step measured.

    Attributes:
        loss: mean −log P per supervised token, in nats.
        gradient_norm: ‖g‖₂ before clipping.
        n_tokens: real tokens seen, padding not counted.
    """

    loss: float
    gradient_norm: float
    n_tokens: int


class NonFiniteError(ValueError):
    """A loss or gradient is NaN or infinite; the update was not made."""


def optimizer_step(
    model: Llama,
    optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[Batch],
    *,
    clip: float,
    autocast: Autocast = nullcontext,
) -> StepResult:
    """Take one step on the token-weighted mean loss of all micro-batches.

    Args:
        micro_batches: already on the model's device.
        clip: largest gradient norm; 0 does not clip.
        autocast: makes the context the forward pass runs in.

    Raises:
        NonFiniteError: before the update, so that weights and optimizer state are still good.
    """
    n_supervised = sum(batch.n_supervised for batch in micro_batches)
    if n_supervised == 0:
        raise ValueError("no supervised token in the whole step: nothing to learn from; check template and max_length")
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for batch in micro_batches:
        with autocast():
            loss = causal_lm_loss(model, batch, scale=1 / n_supervised)
        if not torch.isfinite(loss):
            raise NonFiniteError(f"the loss is {loss.item()}: no update was made; lower optim.lr or check the base")
        loss.backward()
        total += loss.item()
    norm = clip_gradients(model, clip)
    optimizer.step()
    return StepResult(total, norm, sum(batch.n_tokens for batch in micro_batches))


def clip_gradients(model: nn.Module, clip: float) -> float:
    """Scale the gradient down to norm `clip` (0: leave it), and return its norm before.

    Raises:
        NonFiniteError: names the first parameter whose gradient is not finite.
    """
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    if not norm.isfinite():
        name = next(n for n, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all())
        raise NonFiniteError(f"the gradient of {name} is not finite: no update was made; lower optim.lr")
    if clip:
        nn.utils.clip_grads_with_norm_(model.parameters(), clip, norm)
    return norm.item()


@torch.no_grad()
def validation_loss(
    model: Llama,
    batches: Sequence[Batch],
    *,
    autocast: Autocast = nullcontext,
    after_batch: Callable[[], None] = lambda: None,
) -> float:
    """Mean −log P per supervised token over all batches, in nats; leaves the model's mode as it was."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    total = 0.0
    for batch in batches:
        with autocast():
            total += causal_lm_loss(model, batch.to(device)).item()
        after_batch()
    model.train(was_training)
    return total / sum(batch.n_supervised for batch in batches)
