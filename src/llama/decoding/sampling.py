"""From logits to the next token id: each step a pure function of (B, V) float32 logits.

    p_i = exp(x_i / T) / Σ_j exp(x_j / T)         temperature T; T → 0 is greedy

applied in the order penalty, temperature, top-k, top-p, the order of `transformers`: top-p after top-k keeps p of the
mass that top-k has left. A token that is cut has logit −∞, so that the softmax renormalises what is kept.

Letters: B batch, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MIN_TEMPERATURE = 1e-6
"""Below, dividing float32 logits by T could underflow to 0 / 0; long before, sampling has become greedy."""


@dataclass(frozen=True)
class Sampling:
    """How to choose a token. The defaults are greedy decoding.

    Attributes:
        temperature: T ≥ 0; 0 takes the most probable token.
        top_k: keep the k most probable tokens; None keeps all.
        top_p: keep the fewest most probable tokens whose mass reaches p in (0, 1]; None keeps all.
        repetition_penalty: θ > 0 against tokens seen before; 1 is none.

    Raises:
        ValueError: a value outside its range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature != 0 and not MIN_TEMPERATURE <= self.temperature < math.inf:
            raise ValueError(
                f"temperature = {self.temperature} must be 0 (greedy), or finite and at least {MIN_TEMPERATURE}"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k = {self.top_k} must be at least 1; None keeps every token")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p = {self.top_p} must be in (0, 1]; None keeps every token")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty = {self.repetition_penalty} must be positive and finite; 1 is none")


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make seen tokens less likely: x_i / θ for x_i > 0 (CTRL, arXiv 1909.05858, section 4.1), x_i · θ for x_i ≤ 0.

    CTRL divides whatever the sign, which would favour a seen token with a negative logit; multiplying there is what all
    implementations do since. Seen are the prompt's tokens and the generated ones.

    Args:
        seen: (B, V) bool.

    >>> penalize_repetition(torch.tensor([[2.0, -2.0, 2.0]]), torch.tensor([[True, True, False]]), 2.0)
    tensor([[ 1., -4.,  2.]])
    """
    penalized = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, penalized, logits)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """All but the k largest logits of each row become −∞ (arXiv 1805.04833, section 5.4); of equals, any.

    >>> keep_top_k(torch.tensor([[1.0, 3.0, 2.0]]), 2)
    tensor([[-inf, 3., 2.]])
    """
    top, indices = logits.topk(min(k, logits.shape[-1]), dim=-1)
    return torch.full_like(logits, -math.inf).scatter(-1, indices, top)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the smallest set V⁽ᵖ⁾ of most probable tokens with Σ_{x ∈ V⁽ᵖ⁾} P(x) ≥ p (nucleus, arXiv 1904.09751, eq. 2).

    A token stays if the tokens before it have not reached p yet, so the most probable one always does.

    >>> keep_top_p(torch.tensor([[0.5, 0.1, 0.4]]).log(), 0.8).exp()
    tensor([[0.5000, 0.0000, 0.4000]])
    """
    if p == 1:  # nothing to cut; a rounded sum could reach 1 before the last token
        return logits
    ordered, indices = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(-1)
    mass_before = probabilities.cumsum(-1) - probabilities
    ordered = ordered.masked_fill(mass_before >= p, -math.inf)
    return torch.empty_like(logits).scatter(-1, indices, ordered)


def distribution(logits: Tensor, sampling: Sampling, seen: Tensor | None = None) -> Tensor:
    """The (B, V) probabilities that `choose` draws from.

    Raises:
        ValueError: temperature 0, which has no distribution.
    """
    if sampling.temperature == 0:
        raise ValueError("temperature = 0 is greedy and draws from nothing: give a positive temperature")
    if seen is not None:
        logits = penalize_repetition(logits, seen, sampling.repetition_penalty)
    # Largest logit first taken to 0: a tiny T would overflow to +∞ otherwise, and the softmax is blind to the shift.
    logits = (logits - logits.amax(-1, keepdim=True)) / sampling.temperature
    if sampling.top_k is not None:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p is not None:
        logits = keep_top_p(logits, sampling.top_p)
    return logits.softmax(-1)


def draw(probabilities: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One index of (V,) probabilities: argmax_i p_i / E_i with E_i ~ Exp(1) has index i with probability p_i.

    Of independent exponential clocks with rates p_i, the i-th rings first with probability p_i / Σ p. The noise is
    drawn on the generator's device, so a CPU generator gives the same choices on every device.
    """
    device = probabilities.device if generator is None else generator.device
    noise = torch.empty(probabilities.shape, device=device).exponential_(generator=generator)
    return (probabilities / noise.to(probabilities.device)).argmax(-1)


def choose(
    logits: Tensor, sampling: Sampling, generators: Sequence[torch.Generator | None], seen: Tensor | None = None
) -> Tensor:
    """The next token id of each row, (B,) int64.

    Args:
        logits: (B, V) float32.
        generators: one per row, so that a row's draws do not depend on its neighbours.
        seen: (B, V) bool, tokens that the repetition penalty applies to.
    """
    if sampling.temperature == 0:
        if seen is not None:
            logits = penalize_repetition(logits, seen, sampling.repetition_penalty)
        return logits.argmax(-1)
    probabilities = distribution(logits, sampling, seen)
    return torch.stack([draw(row, generator) for row, generator in zip(probabilities, generators, strict=True)])
