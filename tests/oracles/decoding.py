"""Decoding in NumPy float64 and by enumeration, written from the papers' definitions."""

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def softmax(logits: Array) -> Array:
    """p_i = exp(x_i) / Σ_j exp(x_j), for one row."""
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def tempered(logits: Array, temperature: float) -> Array:
    """p_i = exp(x_i / T) / Σ_j exp(x_j / T)."""
    return softmax(logits / temperature)


def ctrl_penalty(logits: Array, seen: set[int], penalty: float) -> Array:
    """CTRL, arXiv 1909.05858, section 4.1, on positive logits; multiplied by θ on the others."""
    out = logits.copy()
    for token in seen:
        out[token] = out[token] / penalty if out[token] > 0 else out[token] * penalty
    return out


def nucleus(probabilities: Array, p: float) -> set[int]:
    """arXiv 1904.09751, section 3.1: the smallest set whose mass is at least p, most probable tokens first."""
    kept: set[int] = set()
    mass = 0.0
    for token in np.argsort(-probabilities, kind="stable"):
        kept.add(int(token))
        mass += probabilities[token]
        if mass >= p:
            break
    return kept


def best_answers(
    log_probability: Callable[[Sequence[int]], Array],
    vocab_size: int,
    max_new_tokens: int,
    stop_ids: set[int],
    length_penalty: float,
) -> list[tuple[list[int], float]]:
    """Every possible answer with its score log P / |y|^α, best first, found by trying them all.

    Args:
        log_probability: answer so far -> (V,) log-probabilities of its next token.

    Returns:
        (tokens without the stop token, score). An answer ends with its first stop token, or is max_new_tokens long.
    """
    answers = []
    for length in range(1, max_new_tokens + 1):
        for tokens in product(range(vocab_size), repeat=length):
            stops = [token in stop_ids for token in tokens]
            if any(stops[:-1]) or (length < max_new_tokens and not stops[-1]):
                continue
            total = sum(float(log_probability(tokens[:i])[tokens[i]]) for i in range(length))
            answers.append((list(tokens[:-1] if stops[-1] else tokens), total / length**length_penalty))
    return sorted(answers, key=lambda answer: answer[1], reverse=True)
