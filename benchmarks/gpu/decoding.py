"""One-token steps of a 7B model, batch 1: how near they come to reading every weight once.

    tokens/s ≤ bandwidth / bytes per token,    bytes per token = blocks, final norm, head + keys and values so far

with the bandwidth of a plain read. An answer is a short prompt and the tokens after it, greedily chosen, by `generate`
here and in transformers; ours again with its one-token steps through `compile_decoding`, transformers' again with its
static cache, for which it compiles its step itself. Before anything is timed, the logits after the prompt are compared
with our own in bfloat16.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from harness import relative_error
from models import config, our_model, raise_channels, transformers_model
from peers import OUTLIERS, module_bytes, random_ids
from timing import Row, Setting, busy_seconds, ratio, reason, seconds, times
from torch import Tensor, nn

from llama import Llama, generate
from llama.decoding import compile_decoding

PROMPT, ANSWER = 16, 128
PROFILED = 8  # tokens, the prompt's pass among them: every kernel is an event to be read, and they are many
PARITY = 0.15  # of the logits: 8-bit codes move them by 4 % after 22 random layers, and here there are 32

BASELINE = "transformers bf16"


@dataclass(frozen=True)
class Speaker:
    """A model that answers.

    Attributes:
        model: ours or transformers'.
        answer: n -> the prompt's continuation by n tokens, computed.
        logits: those after the prompt, float32 (V,).
        read: the modules whose weights every token reads: all but the embedding, where it looks up one row.
    """

    model: nn.Module
    answer: Callable[[int], object]
    logits: Callable[[], Tensor]
    read: list[nn.Module]


def measure(setting: Setting) -> Iterator[Row]:
    """Rows as they are, then compiled: compiling takes the longest and is the likeliest to be cut off."""
    speakers: dict[str, Speaker | str] = {}  # or why there is none
    for name, make in _makers(setting).items():
        try:
            speakers[name] = make()
        except Exception as error:  # whatever keeps one contender from running must not cost the others their row
            speakers[name] = reason(error)
    for outliers in OUTLIERS:
        for speaker in speakers.values():
            if isinstance(speaker, Speaker):
                raise_channels(speaker.model, outliers)
        yield from _rows({"outliers": outliers, "compiled": False}, speakers, setting)
    for speaker in speakers.values():
        if isinstance(speaker, Speaker) and isinstance(speaker.model, Llama):
            compile_decoding(speaker.model, **({"backend": "eager"} if setting.tiny else {}))
    ours = {name: speaker for name, speaker in speakers.items() if name.startswith("ours")}
    yield from _rows({"outliers": max(OUTLIERS), "compiled": True}, ours, setting)
    if isinstance(speakers.get(BASELINE), Speaker):
        static = _theirs(setting, speakers[BASELINE].model, cache_implementation="static")
        yield from _rows({"outliers": max(OUTLIERS), "compiled": True}, {BASELINE: static}, setting)


def _rows(case: Row, speakers: dict[str, Speaker | str], setting: Setting) -> Iterator[Row]:
    """Compare and time an answer of each."""
    n_tokens = 4 if setting.tiny else ANSWER
    working: dict[str, Speaker] = {}
    errors: dict[str, float] = {}
    failures = {name: speaker for name, speaker in speakers.items() if isinstance(speaker, str)}
    expected: Tensor | None = None
    for name, speaker in speakers.items():
        if isinstance(speaker, str):
            continue
        try:
            speaker.answer(n_tokens)
            logits = speaker.logits()
            expected = logits if expected is None else expected
            errors[name] = relative_error(logits, expected)
            if not errors[name] <= PARITY:
                raise ValueError("its logits are too far from the first model's for a timing to mean anything")
            working[name] = speaker
        except Exception as error:
            failures[name] = reason(error)

    taken = seconds({name: partial(speaker.answer, n_tokens) for name, speaker in working.items()}, setting)
    shape = config(setting)
    cache = 2 * shape.n_layers * shape.n_kv_heads * shape.head_dim * 2 * (PROMPT + n_tokens // 2)  # bfloat16
    for name in speakers:
        speed = ratio(n_tokens, taken.get(name))
        n_bytes = module_bytes(working[name].read) + cache if name in working else None
        limit = ratio(setting.rates.get("read"), n_bytes)
        busy = busy_seconds(partial(working[name].answer, PROFILED), setting.device) if name in working else None
        yield {
            **case,
            "what": name,
            "tokens/s": speed,
            "device ms per token": times(1e3, ratio(busy, PROFILED)),
            "GB per token": times(1e-9, n_bytes),
            "limit, tokens/s": limit,
            "of limit": ratio(speed, limit),
            "× transformers bf16": ratio(taken.get(BASELINE), taken.get(name)),
            "error of logits": errors.get(name),
            "note": failures.get(name, ""),
        }


def _makers(setting: Setting) -> dict[str, Callable[[], Speaker]]:
    makers = {
        "ours bf16": lambda: _ours(setting, our_model(setting, int8=False)),
        "ours int8": lambda: _ours(setting, our_model(setting, int8=True)),
    }
    if setting.peers:
        makers[BASELINE] = lambda: _theirs(setting, transformers_model(setting, int8=False))
        makers["bitsandbytes int8"] = lambda: _theirs(setting, transformers_model(setting, int8=True))
    return makers


def _ours(setting: Setting, model: Llama) -> Speaker:
    model.eval()
    ids = random_ids(PROMPT, model.config.vocab_size)

    @torch.no_grad()
    def logits() -> Tensor:
        return model(torch.tensor([ids], device=setting.device))[0, -1]

    def answer(n_tokens: int) -> object:
        return list(generate(model, ids, max_new_tokens=n_tokens))

    return Speaker(model, answer, logits, [model.layers, model.norm, model.output])


def _theirs(setting: Setting, model: nn.Module, **options: str) -> Speaker:
    """options: of transformers' `generate`."""
    prompt = torch.tensor([random_ids(PROMPT, config(setting).vocab_size)], device=setting.device)

    @torch.no_grad()
    def logits() -> Tensor:
        return model(prompt).logits[0, -1].float()

    def answer(n_tokens: int) -> object:
        lengths = {"max_new_tokens": n_tokens, "min_new_tokens": n_tokens}
        return model.generate(prompt, do_sample=False, pad_token_id=0, **lengths, **options)

    return Speaker(model, answer, logits, [model.model.layers, model.model.norm, model.lm_head])
