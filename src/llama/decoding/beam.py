"""Beam search: the most probable whole answer, rather than the most probable next token.

    score(y) = log P(y | x) / |y|^α,    log P(y | x) = Σ_t log P(y_t | x, y_<t)

Of all continuations of the k best unfinished answers, the k best survive each step (k = 1 is greedy). Dividing by
|y|^α keeps short answers, whose sums have fewer negative terms, from winning: GNMT's length normalisation (arXiv
1609.08144, eq. 14) with the simpler |y| in place of (5 + |y|) / 6, as `transformers` has it. |y| counts the stop token,
which is not returned but was predicted.

Letters: k beams, T tokens, V vocabulary.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from llama.decoding.generation import check_request, new_cache, next_logits
from llama.model import Llama


@dataclass(frozen=True)
class Hypothesis:
    """A finished answer.

    Attributes:
        ids: its tokens, without prompt and stop token.
        log_probability: log P(y | x) in nats, the stop token's included.
        score: the length-normalised log-probability it is ranked by.
    """

    ids: list[int]
    log_probability: float
    score: float


@torch.no_grad()
def beam_search(
    model: Llama,
    prompt_ids: Sequence[int],
    *,
    beams: int,
    max_new_tokens: int,
    length_penalty: float = 1.0,
    stop_ids: Collection[int] = (),
    use_cache: bool = True,
) -> list[Hypothesis]:
    """The best answers found, best first, at most `beams` of them.

    An answer is finished by a stop id or by its max_new_tokens-th token. The search ends early only when no unfinished
    answer can overtake a finished one any more.

    Args:
        beams: k ≥ 1, answers kept at each step.
        length_penalty: α; 0 ranks by plain log-probability, larger values favour longer answers.

    Raises:
        ValueError: beams < 1 or length_penalty not finite, or as for `generate`.
    """
    if beams < 1:
        raise ValueError(f"beams = {beams} must be at least 1 (1 is greedy)")
    if not math.isfinite(length_penalty):
        raise ValueError(f"length_penalty = {length_penalty} must be finite; 0 switches it off")
    check_request(model, [prompt_ids], [max_new_tokens])

    n_prompt = len(prompt_ids)
    device = model.tok_embeddings.weight.device
    tokens = torch.tensor([list(prompt_ids)], device=device)  # (k, T); at first a single row
    scores = torch.zeros(1, device=device)  # (k,) log P of each row
    cache = new_cache(model, beams, n_prompt + max_new_tokens - 1) if use_cache else None
    if cache is not None:
        cache.rows = 1
    finished: list[Hypothesis] = []
    for length in range(1, max_new_tokens + 1):
        unread = tokens if cache is None else tokens[:, cache.length :]
        log_probabilities = next_logits(model, unread, cache).log_softmax(-1)  # (k, V)
        total = scores[:, None] + log_probabilities
        # Each of the k rows may bring up to |stop_ids| continuations that end: look at enough to have k that go on.
        best, flat = total.flatten().topk(min(beams * (1 + len(set(stop_ids))), total.numel()))
        rows, next_ids = flat // total.shape[1], flat % total.shape[1]
        ends = [token_id in stop_ids for token_id in next_ids.tolist()]
        for rank in range(min(beams, len(ends))):
            if ends[rank] or length == max_new_tokens:
                answer = tokens[rows[rank], n_prompt:].tolist() + ([] if ends[rank] else [next_ids[rank].item()])
                value = best[rank].item()
                finished.append(Hypothesis(answer, value, value / length**length_penalty))
        finished = sorted(finished, key=lambda hypothesis: hypothesis.score, reverse=True)[:beams]

        going_on = [i for i, end in enumerate(ends) if not end][:beams]
        survivors = torch.tensor(going_on, dtype=torch.int64, device=device)
        if len(survivors) == 0:
            break
        rows, scores = rows[survivors], best[survivors]
        tokens = torch.cat((tokens[rows], next_ids[survivors, None]), dim=1)
        if cache is not None:
            cache.reorder(rows)
        # A sum of log-probabilities only falls; its normalised value is largest at the length that divides it most.
        longest = max_new_tokens if length_penalty > 0 else length
        overtakes = scores[0].item() / longest**length_penalty > finished[-1].score if finished else True
        if len(finished) == beams and (beams == 1 or not overtakes):  # one beam is greedy, and greedy ends when it ends
            break
    return finished
