"""Log-likelihood of answers: how probable a model finds each option as the continuation of its question.

    log p(o | prompt) = Σ_t log p(o_t | prompt, o_<t)

over the tokens o_t of an option: the inner sum of the language-model objective, read on the answer. Logits are widened
to float32 before the softmax, token log-probabilities to float64 before their sum.

An option is never encoded by itself: SentencePiece would begin it with a stray "▁". Prompt and option are encoded as
one string, and scoring begins where that encoding leaves the one of the prompt. All options of a question share one
such border, the earliest; otherwise an option that swallows the prompt's last space would pay for a token that its
rivals get for free.

`log_likelihoods` reads each prompt once, into a KV cache, and then lets one option after another follow it: for five
short options nearly five times less work than `log_likelihoods_reference`, which runs every option with its prompt, and
does so with any model.

Letters: B questions of a batch, R rows, T tokens of a row, L tokens of an option, C model width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data import TokenEncoder, common_prefix
from llama import Llama
from llama.decoding.generation import new_cache, pad_left

PAD = 0
"""On the right any valid id serves: causal attention never looks there."""


@dataclass(frozen=True)
class Choices:
    """A question as token ids.

    Attributes:
        prompt: what all options share, usually BOS first; never empty.
        options: what follows for each; none is empty.
        truncated: whether the prompt lost tokens on the left to fit the model's window.
    """

    prompt: list[int]
    options: list[list[int]]
    truncated: bool = False


def encode_choices(
    tokenizer: TokenEncoder,
    prompt: str,
    continuations: Sequence[str],
    max_length: int | None = None,
    name: str = "?",
    *,
    bos: bool = True,
) -> Choices:
    """Encode each option together with the prompt and split where all encodings still agree with the prompt's.

    Args:
        continuations: at least one text, none empty.
        max_length: longest prompt with option, in tokens; the prompt is cut on the left, after BOS.
        name: the question's, for messages.
        bos: whether the prompt begins with BOS.

    Raises:
        ValueError: an option alone exceeds max_length, or without BOS no token precedes the options.
    """
    alone = tokenizer.encode(prompt, bos=bos)
    together = [tokenizer.encode(prompt + text, bos=bos) for text in continuations]
    # At least one token is left to score, even where a tokenizer without bytes melts an unknown option into the prompt.
    border = min(min(common_prefix(alone, ids), len(ids) - 1) for ids in together)
    if border < 1:
        raise ValueError(f"question {name}: no token precedes the options; begin the prompt with BOS, or with a text")
    shared, options = alone[:border], [ids[border:] for ids in together]
    surplus = 0 if max_length is None else border + max(map(len, options)) - max_length
    if surplus <= 0:
        return Choices(shared, options)
    first = int(bos)
    if surplus >= border - 1:
        raise ValueError(
            f"question {name}: an option of {max(map(len, options))} tokens leaves no room for a prompt in a window of "
            f"{max_length}; remove the question, or use a model with a longer context"
        )
    return Choices(shared[:first] + shared[first + surplus :], options, truncated=True)


@torch.inference_mode()
def log_likelihoods(model: Llama, batch: Sequence[Choices]) -> list[list[float]]:
    """Σ_t log p(o_t | prompt, o_<t) for every option of every question, each prompt read once.

    Prompts are padded on the left, so that all end in the same column of the cache. The batch's first options follow;
    the cache forgets them; the second ones follow, and so on.
    """
    device = model.tok_embeddings.weight.device
    prompts, padding = pad_left([choices.prompt for choices in batch], device)  # (B, T)
    prompt_len = prompts.shape[1]
    option_len = max(len(option) for choices in batch for option in choices.options)
    cache = new_cache(model, len(batch), prompt_len + option_len - 1, padding)
    last = model.hidden_states(prompts, cache=cache)[:, -1:]  # (B, 1, C)

    sums: list[list[float]] = [[] for _ in batch]
    for column in range(max(len(choices.options) for choices in batch)):
        options = [choices.options[column] if column < len(choices.options) else [] for choices in batch]
        tokens, real = _pad_right(options, option_len, device)  # (B, L)
        states = last
        if option_len > 1:
            states = torch.cat((last, model.hidden_states(tokens[:, :-1], cache=cache)), dim=1)  # (B, L, C)
            cache.truncate(prompt_len)
        log_probs = model.logits(states[real]).log_softmax(-1)  # state i foretells token i; (real tokens, V)
        picked = log_probs.gather(1, tokens[real][:, None])[:, 0]
        per_token = torch.zeros(real.shape, dtype=torch.float64)
        per_token[real.cpu()] = picked.double().cpu()
        for row, option, total in zip(sums, options, per_token.sum(1).tolist(), strict=True):
            if option:
                row.append(total)
    return sums


@torch.inference_mode()
def log_likelihoods_reference(model: nn.Module, batch: Sequence[Choices]) -> list[list[float]]:
    """The same by the formula: each option behind its prompt in a row of its own, padded on the right, all logits."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    rows = [choices.prompt + option for choices in batch for option in choices.options]
    token_ids, _ = _pad_right(rows, max(map(len, rows)), device)  # (R, T), R = all options of the batch
    log_probs = model(token_ids).float().log_softmax(-1)  # (R, T, V)
    sums: list[list[float]] = []
    r = 0
    for choices in batch:
        sums.append([])
        for option in choices.options:
            terms = [log_probs[r, len(choices.prompt) - 1 + t, token].double() for t, token in enumerate(option)]
            sums[-1].append(float(sum(terms)))
            r += 1
    return sums


def _pad_right(rows: Sequence[Sequence[int]], width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(R, width) token ids, and bool: which are real."""
    token_ids = torch.tensor([[*row, *[PAD] * (width - len(row))] for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return token_ids, torch.arange(width, device=device) < lengths[:, None]
