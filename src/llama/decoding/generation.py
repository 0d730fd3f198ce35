"""Autoregressive generation, x_{t+1} ~ P(· | x_1 … x_t), for one prompt; batched.py does many at once.

The first forward pass reads the prompt and fills a KV cache, each later one reads the token chosen last.

Letters: B batch, T tokens, V vocabulary.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence

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
    observe: Callable[[Tensor], None] | None = None,
) -> Iterator[int]:
    """Yield the continuation of `prompt_ids` token by token.

    Args:
        max_new_tokens: the most tokens to yield; prompt and new tokens together must fit the model's window.
        temperature, top_k, top_p, repetition_penalty: see `Sampling`; temperature 0 is greedy.
        stop_ids: ids that end the answer; they are not yielded.
        generator: randomness of the draws; None is torch's global one.
        use_cache: False recomputes the whole sequence for every token, the reference for the cache.
        observe: called with the (V,) float32 logits of every step, the stop id's included, before penalty, temperature
            and choice: for whoever wants to see the alternatives. Not to be changed in place.

    Raises:
        ValueError: at the call, if the request cannot be served: an empty prompt, an id the model lacks, a window that
            is too small, a model in training mode. While running, if the logits are not finite.
    """
    sampling = Sampling(temperature, top_k, top_p, repetition_penalty)
    check_request(model, [prompt_ids], [max_new_tokens])
    return _steps(model, prompt_ids, max_new_tokens, sampling, frozenset(stop_ids), generator, use_cache, observe)


@torch.no_grad()
def _steps(
    model: Llama,
    prompt: Sequence[int],
    limit: int,
    sampling: Sampling,
    stop_ids: frozenset[int],
    generator: torch.Generator | None,
    use_cache: bool,
    observe: Callable[[Tensor], None] | None,
) -> Iterator[int]:
    tokens = torch.tensor([list(prompt)], device=model.tok_embeddings.weight.device)  # (1, T), those still to be read
    cache = new_cache(model, 1, len(prompt) + limit - 1) if use_cache else None  # nobody reads the last token
    seen = seen_tokens([prompt], model) if sampling.repetition_penalty != 1 else None
    for _ in range(limit):
        logits = next_logits(model, tokens, cache)  # (1, V)
        if observe is not None:
            observe(logits[0])
        chosen = choose(logits, sampling, [generator], seen)[:, None]  # (1, 1)
        if (token_id := int(chosen)) in stop_ids:
            return
        yield token_id
        tokens = torch.cat((tokens, chosen), dim=1) if cache is None else chosen
        if seen is not None:
            seen.scatter_(1, chosen, True)


def next_logits(model: Llama, tokens: Tensor, cache: KVCache | None) -> Tensor:
    """(B, V) float32 logits of the token after the last column.

    Args:
        tokens: (B, T) int64, those that follow what the cache holds; without a cache, all tokens.

    Raises:
        ValueError: logits that are not finite.
    """
    logits = model.logits(model.hidden_states(tokens, cache=cache)[:, -1])
    low, high = logits.aminmax()  # NaN comes through both; a tenth of the time of isfinite().all()
    if not (math.isfinite(low) and math.isfinite(high)):
        length = tokens.shape[1] if cache is None else cache.length
        raise ValueError(
            f"the logits after {length} tokens are not finite: the weights are damaged, or their dtype "
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
