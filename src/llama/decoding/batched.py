"""Many prompts at once: a step of B rows reads the weights once, where B prompts one by one read them B times.

Continuous batching (Orca, OSDI 2022, section 3.2): a row leaves the batch when its answer is complete, and at once the
next waiting prompt takes its place, so that the batch is full until nobody waits. The alternative, batches of similar
length that are decoded to their end, runs ever emptier as rows end and must hold back early answers of late prompts;
docs/decisions.md has the comparison.

All rows write their next token in the same column of the cache: a newcomer is stored so that its prompt ends where the
others are, and what lies to the left of it is padding, which attention skips. Each row counts its positions from its
own first token. A row therefore gets the answer it would get alone, up to the rounding of sums whose order depends on
the shape; under an int8 base a little more, since outlier features are decided over the whole batch.

Letters: B batch, T tokens, V vocabulary.
"""

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llama.cache import KVCache
from llama.decoding.generation import check_request, new_cache, next_logits, pad_left, seen_tokens
from llama.decoding.sampling import Sampling, choose
from llama.model import Llama


@dataclass(eq=False)
class _Row:
    """A prompt with its place in the caller's list, the most tokens of its answer, and the answer so far."""

    index: int
    prompt: Sequence[int]
    limit: int
    generator: torch.Generator | None
    answer: list[int] = field(default_factory=list)
    seen: Tensor | None = None  # (V,) bool: tokens of prompt and answer, where a repetition penalty asks for them
    ended: bool = False

    @property
    def length(self) -> int:
        """Tokens so far."""
        return len(self.prompt) + len(self.answer)


def generate_many(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    *,
    batch_size: int,
    max_new_tokens: int | Sequence[int],
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop_ids: Collection[int] = (),
    generators: Sequence[torch.Generator | None] | None = None,
) -> Iterator[tuple[int, list[int]]]:
    """Yield (index of the prompt, its continuation) as each continuation is complete; `in_order` sorts them.

    Prompts are begun in the order given. Arguments as for `generate`, except:

    Args:
        prompts: token ids, of any lengths.
        batch_size: prompts decoded at once. The cache has so many rows, each as long as the longest prompt with its
            max_new_tokens.
        max_new_tokens: for all prompts, or one number for each.
        generators: one per prompt: with the same one a prompt gets the same answer alone and in any batch.

    Raises:
        ValueError: at the call, as for `generate`; a batch_size below 1; a list that does not match the prompts.
    """
    sampling = Sampling(temperature, top_k, top_p, repetition_penalty)
    generators = [None] * len(prompts) if generators is None else generators
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
    for name, values in (("generators", generators), ("max_new_tokens", limits)):
        if len(values) != len(prompts):
            raise ValueError(f"{len(values)} {name} for {len(prompts)} prompts: give one per prompt")
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size} must be at least 1")
    check_request(model, prompts, limits)
    rows = [_Row(*row) for row in zip(range(len(prompts)), prompts, limits, generators, strict=True)]
    return _decode(model, rows, batch_size, sampling, frozenset(stop_ids))


def generate_batch(model: Llama, prompts: Sequence[Sequence[int]], **options: Any) -> list[list[int]]:
    """The continuations of all prompts, in their order, all decoded at once. Options as for `generate_many`."""
    return list(in_order(generate_many(model, prompts, batch_size=max(1, len(prompts)), **options)))


def in_order(answers: Iterable[tuple[int, list[int]]]) -> Iterator[list[int]]:
    """The answers without their indices, in the order of these, each as soon as it and all before it are there.

    >>> list(in_order([(1, [7, 8]), (0, [5]), (2, [])]))
    [[5], [7, 8], []]
    """
    early: dict[int, list[int]] = {}
    following = 0
    for index, answer in answers:
        early[index] = answer
        while following in early:
            yield early.pop(following)
            following += 1


@torch.no_grad()
def _decode(
    model: Llama, rows: Sequence[_Row], batch_size: int, sampling: Sampling, stop_ids: frozenset[int]
) -> Iterator[tuple[int, list[int]]]:
    waiting, running = deque(rows), list[_Row]()  # `running` are the rows of the cache, in its order
    cache = _empty_cache(model, rows, batch_size)
    while waiting or running:
        arrivals = [waiting.popleft() for _ in range(min(batch_size - len(running), len(waiting)))]
        running += arrivals
        step = arrivals or running
        logits = _read_prompts(model, arrivals, cache) if arrivals else _read_last(model, running, cache)  # (B, V)
        seen = _seen(step, model) if sampling.repetition_penalty != 1 else None  # (B, V)
        chosen = choose(logits, sampling, [row.generator for row in step], seen)  # (B,)
        for row, token_id in zip(step, chosen.tolist(), strict=True):
            if token_id not in stop_ids:
                row.answer.append(token_id)
            row.ended = token_id in stop_ids or len(row.answer) == row.limit
        for i in reversed(range(len(running))):  # from the end, as the last row takes the place of one that leaves
            if (row := running[i]).ended:
                cache.drop(i)
                running[i] = running[-1]
                running.pop()
                yield row.index, row.answer


def _empty_cache(model: Llama, rows: Sequence[_Row], batch_size: int) -> KVCache:
    """Room for batch_size rows of the longest possible length; nobody reads an answer's last token."""
    cache = new_cache(model, min(batch_size, len(rows)), max((row.length + row.limit for row in rows), default=1) - 1)
    cache.rows = 0
    return cache


def _read_prompts(model: Llama, arrivals: Sequence[_Row], cache: KVCache) -> Tensor:
    """Let the rows join the cache; (B, V) logits of their first tokens."""
    tokens, padding = pad_left([row.prompt for row in arrivals], model.tok_embeddings.weight.device)
    return next_logits(model, tokens, cache.join(len(arrivals), tokens.shape[1], padding))


def _read_last(model: Llama, running: Sequence[_Row], cache: KVCache) -> Tensor:
    """Read the token that each row has chosen last; (B, V) logits of the next ones."""
    stored = max(row.length for row in running) - 1
    # Columns that are padding in every row: attention reads them in vain, so they go when they are half of all. When
    # the cache is full there is at least one, since its capacity exceeds what any row that still runs has stored.
    if cache.length == cache.max_len or cache.length >= 2 * stored:
        cache.realign(stored)
    tokens = torch.tensor([row.answer[-1:] for row in running], device=model.tok_embeddings.weight.device)  # (B, 1)
    return next_logits(model, tokens, cache)


def _seen(rows: Sequence[_Row], model: Llama) -> Tensor:
    """(B, V) bool: the tokens of each row's prompt and answer."""
    for row in rows:
        if row.seen is None:
            row.seen = seen_tokens([row.prompt], model)[0]
        else:
            row.seen[row.answer[-1]] = True
    return torch.stack([row.seen for row in rows if row.seen is not None])
