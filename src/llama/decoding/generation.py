"""Autoregressive generation, x_{t+1} ~ P(· | x_1 … x_t), for one prompt or a batch of prompts of different lengths.

The first forward pass reads the prompts and fills a KV cache, each later one reads a single token. Prompts of a batch
are padded on the left, so that all rows write their next token in the same column; the cache masks the padding and each
row counts its positions from its own first token. A row therefore gets the answer it would get alone.

Letters: B batch, T tokens, V vocabulary.
"""

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from llama.cache import KVCache
from llama.decoding.sampling import Sampling, choose
from llama.model import Llama


def generate(
    model: Llama,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop_ids: Collection[int] = (),
    generator: torch.Generator | None = None,
    use_cache: bool = True,
) -> Iterator[int]:
    """Yield the continuation of `prompt_ids` token by token.

    Args:
        max_new_tokens: the most tokens to yield; prompt and new tokens together must fit the model's window.
        temperature, top_k, top_p, repetition_penalty: see `Sampling`; temperature 0 is greedy.
        stop_ids: ids that end the answer; they are not yielded.
        generator: randomness of the draws; None is torch's global one.
        use_cache: False recomputes the whole sequence for every token, the reference for the cache.

    Raises:
        ValueError: at the call, if the request cannot be served: an empty prompt, an id the model lacks, a window that
            is too small, a model in training mode. While running, if the logits are not finite.
    """
    sampling = Sampling(temperature, top_k, top_p, repetition_penalty)
    check_request(model, [prompt_ids], [max_new_tokens])
    steps = _steps(model, [prompt_ids], [max_new_tokens], sampling, frozenset(stop_ids), [generator], use_cache)
    return (token_id for (token_id,) in steps if token_id is not None)


def generate_batch(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int],
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop_ids: Collection[int] = (),
    generators: Sequence[torch.Generator | None] | None = None,
    use_cache: bool = True,
) -> list[list[int]]:
    """The continuation of every prompt, each as long as it would be alone. Arguments as for `generate`, except:

    Args:
        prompts: token ids, of any lengths.
        max_new_tokens: for all prompts, or one number for each.
        generators: one per prompt: with the same one a prompt gets the same answer alone and in any batch.
    """
    sampling = Sampling(temperature, top_k, top_p, repetition_penalty)
    generators = [None] * len(prompts) if generators is None else generators
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
    for name, values in (("generators", generators), ("max_new_tokens", limits)):
        if len(values) != len(prompts):
            raise ValueError(f"{len(values)} {name} for {len(prompts)} prompts: give one per prompt")
    if not prompts:
        return []
    check_request(model, prompts, limits)
    answers: list[list[int]] = [[] for _ in prompts]
    for column in _steps(model, prompts, limits, sampling, frozenset(stop_ids), generators, use_cache):
        for answer, token_id in zip(answers, column, strict=True):
            if token_id is not None:
                answer.append(token_id)
    return answers


@torch.no_grad()
def _steps(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    sampling: Sampling,
    stop_ids: frozenset[int],
    generators: Sequence[torch.Generator | None],
    use_cache: bool,
) -> Iterator[list[int | None]]:
    """Yield one new token per row and step, None from a row that has ended; end when all have.

    limits: each row's most tokens.
    """
    tokens, padding = pad_left(prompts, model.tok_embeddings.weight.device)
    cache = new_cache(model, len(prompts), tokens.shape[1] + max(limits), padding) if use_cache else None
    seen = seen_tokens(prompts, model) if sampling.repetition_penalty != 1 else None
    running = [True] * len(prompts)
    for step in range(max(limits)):
        chosen = choose(next_logits(model, tokens, padding, cache), sampling, generators, seen)  # (B,)
        column = chosen.tolist()
        running = [
            alive and step < limit and token_id not in stop_ids
            for alive, limit, token_id in zip(running, limits, column, strict=True)
        ]
        if not any(running):
            return
        yield [token_id if alive else None for token_id, alive in zip(column, running, strict=True)]
        tokens = torch.cat((tokens, chosen[:, None]), dim=1)
        if seen is not None:
            seen.scatter_(1, chosen[:, None], True)


def next_logits(model: Llama, tokens: Tensor, padding: Tensor | None, cache: KVCache | None) -> Tensor:
    """(B, V) float32 logits of the token after the last column.

    Args:
        tokens: (B, T) int64, all tokens so far; with a cache, the model reads only those that are not in it.
        padding: (B,) int64, left-pad positions of each row, or None.

    Raises:
        ValueError: logits that are not finite.
    """
    if cache is not None:
        hidden = model.hidden_states(tokens[:, cache.length :], cache=cache)
    elif padding is None:
        hidden = model.hidden_states(tokens)
    else:  # the padding is a document of its own, which no token of the prompt sees
        from_start = torch.arange(tokens.shape[1], device=tokens.device) - padding[:, None]  # (B, T)
        hidden = model.hidden_states(tokens, positions=from_start.clamp(min=0), documents=(from_start >= 0).long())
    logits = model.logits(hidden[:, -1])
    if not logits.isfinite().all():
        raise ValueError(
            f"the logits after {tokens.shape[1]} tokens are not finite: the weights are damaged, or their dtype "
            f"({model.tok_embeddings.weight.dtype}) overflows; load the model in bfloat16 or float32"
        )
    return logits


def pad_left(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Prompts as one (B, T) tensor that ends flush, and the (B,) pad positions of each row; None if nothing is padded.

    The pad positions repeat the row's first token: they are masked, so any id the embedding has will do.

    >>> tokens, padding = pad_left([[7, 8, 9], [5]], torch.device("cpu"))
    >>> tokens.tolist(), padding.tolist()
    ([[7, 8, 9], [5, 5, 5]], [0, 2])
    """
    longest = max(map(len, prompts))
    padding = [longest - len(prompt) for prompt in prompts]
    rows = [[prompt[0]] * pad + list(prompt) for prompt, pad in zip(prompts, padding, strict=True)]
    tokens = torch.tensor(rows, dtype=torch.int64, device=device)
    return tokens, torch.tensor(padding, dtype=torch.int64, device=device) if any(padding) else None


def new_cache(model: Llama, batch_size: int, max_len: int, padding: Tensor | None = None) -> KVCache:
    """An empty cache in the model's dtype, on its device."""
    weight = model.tok_embeddings.weight
    return KVCache(model.config, batch_size, max_len, dtype=weight.dtype, device=weight.device, padding=padding)


def seen_tokens(prompts: Sequence[Sequence[int]], model: Llama) -> Tensor:
    """(B, V) bool: the tokens that occur in each prompt."""
    seen = torch.zeros(
        len(prompts), model.config.vocab_size, dtype=torch.bool, device=model.tok_embeddings.weight.device
    )
    for row, prompt in zip(seen, prompts, strict=True):
        row[list(prompt)] = True
    return seen


def check_request(model: Llama, prompts: Sequence[Sequence[int]], limits: Sequence[int]) -> None:
    """Refuse what cannot be decoded before anything is computed. limits: each prompt's most new tokens.

    Raises:
        ValueError: see `generate`.
    """
    if model.training:
        raise ValueError(
            "the model is in training mode, where dropout would disturb its answers: call model.eval() first"
        )
    vocab_size, window = model.config.vocab_size, model.config.max_seq_len
    for row, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
        which = f"prompt {row}" if len(prompts) > 1 else "the prompt"
        if len(prompt) == 0:
            raise ValueError(f"{which} has no tokens: begin it with the BOS id, tokenizer.encode(text, bos=True)")
        if limit < 1:
            raise ValueError(f"max_new_tokens = {limit} must be at least 1")
        if len(prompt) + limit > window:
            raise ValueError(
                f"{which} has {len(prompt)} tokens; with {limit} new ones that makes {len(prompt) + limit}, but the "
                f"model's window is {window}: shorten the prompt, or lower max_new_tokens to {window - len(prompt)}"
                if len(prompt) < window
                else f"{which} has {len(prompt)} tokens and fills the model's window of {window}: shorten it"
            )
        if not 0 <= min(prompt) <= max(prompt) < vocab_size:
            raise ValueError(
                f"{which} holds token ids {min(prompt)} to {max(prompt)}, the model has 0 to {vocab_size - 1}: "
                "does the tokenizer belong to it?"
            )
