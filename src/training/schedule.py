"""The learning rate over a run: a linear warm-up from zero, then a decay to zero.

    warm-up   t / w                      for t < w
    linear    (n − t) / (n − w)
    cosine    ½ (1 + cos(π (t − w) / (n − w)))          (SGDR, arXiv 1608.03983, eq. 5, without restarts)

t counts the optimizer steps already taken, n all steps, w those of the warm-up. As in the published recipes (Hugging
Face's schedules) the very first step has t = 0, and with a warm-up a learning rate of zero.
"""

import math
from collections.abc import Callable

from recipe import RunConfig

_DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "constant": lambda progress: 1.0,
}


def learning_rate_factor(step: int, *, total_steps: int, warmup_steps: int, schedule: str) -> float:
    """Share of the peak learning rate for the step after `step` steps.

    Args:
        step: optimizer steps already taken, 0 … total_steps.
        schedule: linear, cosine or constant: the shape after the warm-up.

    >>> [learning_rate_factor(t, total_steps=10, warmup_steps=2, schedule="linear") for t in (0, 1, 2, 6, 10)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if schedule not in _DECAYS:
        raise ValueError(f"schedule {schedule!r} must be one of {', '.join(_DECAYS)}")
    if step < warmup_steps:
        return step / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return _DECAYS[schedule](min(1.0, progress))


def warmup_steps(total_steps: int, *, steps: int = 0, ratio: float = 0.0) -> int:
    """Length of the warm-up from a count or a share of all steps, rounded up.

    >>> warmup_steps(1218, ratio=0.03)
    37
    """
    return steps or math.ceil(total_steps * ratio)


def learning_rates(config: RunConfig, n_steps: int) -> list[float]:
    """The learning rate of every step."""
    settings = config.optim
    warmup = warmup_steps(n_steps, steps=settings.warmup_steps, ratio=settings.warmup_ratio)
    rates = [
        settings.lr * learning_rate_factor(step, total_steps=n_steps, warmup_steps=warmup, schedule=settings.schedule)
        for step in range(n_steps)
    ]
    if not any(rates):
        raise ValueError(f"all {n_steps} steps have a learning rate of zero: train longer, or warm up less")
    return rates
