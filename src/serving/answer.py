"""From a question to the events that the page shows: each token with the alternatives the model had in its place.

    p_i = exp(x_i) / Σ_j exp(x_j)

over the raw logits x: what the model believes, before temperature, cuts and penalty, which decide only what is drawn.

A token is shown when `stream_text` has let all of its text through, so that the page shows exactly what generate.py
prints. A token that holds only some bytes of a character has an empty text; the one that completes it has it whole.
"""

import codecs
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import nullcontext
from threading import Event as Flag
from typing import Any

import torch
from torch import Tensor

from llama import Tokenizer
from llama.decoding import generate, stream_text
from lora import adapters_disabled, lora_layers
from recipe import Inference, prompt_ids
from recipe.conversation import ends
from serving.question import Question

Event = dict[str, Any]

N_ALTERNATIVES = 5
"""Most probable tokens that come with each token."""


def answer_events(
    inference: Inference, question: Question, stop_strings: Sequence[str] = (), stopped: Flag | None = None
) -> Generator[Event, None, None]:
    """The answers of every side, as events in the order of `docs/serving.md`.

    While it runs, and until it is closed, the model's adapters may be off: nobody else may use the model.

    Args:
        stop_strings: texts that end an answer and are not shown; the template's `turn_marks` do as well.
        stopped: once it is set, no further token is computed.

    Raises:
        ValueError: at the call, if the question cannot be answered: it is too long, or there is no adapter to ask.
    """
    if "adapter" in question.sides and not has_adapter(inference):
        raise ValueError("no adapter is loaded: ask the base, or start the server with --adapter")
    stopped = stopped or Flag()
    prompt = prompt_ids(inference.template, inference.tokenizer, question.instruction, question.input)
    answers = [_Answer(inference, question, prompt, stopped) for _ in question.sides]
    return _side_by_side(
        inference, dict(zip(question.sides, answers, strict=True)), ends(inference.template, stop_strings), stopped
    )


def has_adapter(inference: Inference) -> bool:
    """Whether the model has an adapter to switch on and off."""
    return any(True for _ in lora_layers(inference.model))


def _side_by_side(
    inference: Inference, answers: dict[str, "_Answer"], stop_strings: Sequence[str], stopped: Flag
) -> Generator[Event, None, None]:
    for side, answer in answers.items():
        if stopped.is_set():
            return
        without = side == "base" and has_adapter(inference)
        with adapters_disabled(inference.model) if without else nullcontext():
            yield {"event": "begin", "side": side}
            yield from answer.events(stop_strings)


class _Answer:
    """One side's answer while it is generated."""

    def __init__(self, inference: Inference, question: Question, prompt: list[int], stopped: Flag) -> None:
        self.tokenizer, self.stopped = inference.tokenizer, stopped
        self.limit = inference.answer_limit(prompt, question.max_new_tokens)
        self.ids = generate(
            inference.model,
            prompt,
            max_new_tokens=self.limit,
            temperature=question.temperature,
            top_k=question.top_k,
            top_p=question.top_p,
            repetition_penalty=question.repetition_penalty,
            stop_ids={inference.tokenizer.eos_id},
            generator=torch.Generator().manual_seed(question.seed),
            observe=self._observe,
        )
        self.probabilities = torch.empty(0)  # (V,) of the step just taken
        self.count = 0
        self.reason = "stop"  # a stop string, until the ids are found to have ended
        self.waiting: deque[Event] = deque()
        self.unfinished = False  # whether the newest token ends within a character, which may yet add to its text

    def events(self, stop_strings: Sequence[str]) -> Iterator[Event]:
        """A token event each, then the end."""
        start, passed = time.perf_counter(), 0  # passed: characters let through that no event has shown yet
        for text in stream_text(self.tokenizer, self._taken(), stop_strings, continues=True):
            passed += len(text)
            while len(self.waiting) > self.unfinished and len(self.waiting[0]["text"]) <= passed:
                passed -= len(self.waiting[0]["text"])
                yield self.waiting.popleft()
        if self.reason != "stop":
            yield from self.waiting  # without text: parts of a character, control tokens, the end
        elif passed:  # the stop string begins within a token
            yield self.waiting[0] | {"text": self.waiting[0]["text"][:passed]}
        seconds = time.perf_counter() - start
        yield {"event": "end", "reason": self.reason, "tokens": self.count, "seconds": round(seconds, 6)}

    def _taken(self) -> Iterator[int]:
        """The ids for `stream_text`; each leaves its event in the queue as it passes."""
        utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for token_id in self.ids:
            self.count += 1
            (part,) = self.tokenizer.decode_bytes([token_id], continues=True)
            self.waiting.append(self._token_event(token_id, utf8.decode(part)))
            self.unfinished = utf8.getstate()[0] != b""
            yield token_id
            if self.stopped.is_set():
                break
        self.reason = "length" if self.count == self.limit else "stopped" if self.stopped.is_set() else "end"
        if self.unfinished:  # a character that was never completed
            self.waiting[-1]["text"] += utf8.decode(b"", final=True)
            self.unfinished = False
        if self.reason == "end":
            self.waiting.append(self._token_event(self.tokenizer.eos_id, ""))

    def _observe(self, logits: Tensor) -> None:
        self.probabilities = logits.softmax(-1)

    def _token_event(self, token_id: int, text: str) -> Event:
        values, indices = self.probabilities.topk(min(N_ALTERNATIVES, len(self.probabilities)))
        top = [
            {"id": other, "piece": piece_text(self.tokenizer, other), "p": round(p, 6)}
            for other, p in zip(indices.tolist(), values.tolist(), strict=True)
        ]
        p = round(self.probabilities[token_id].item(), 6)
        piece = piece_text(self.tokenizer, token_id)
        return {"event": "token", "id": token_id, "text": text, "piece": piece, "p": p, "top": top}


def piece_text(tokenizer: Tokenizer, token_id: int) -> str:
    """A token by itself, in a form one can read: its text, its bytes if they are part of a character, or its name."""
    names = {tokenizer.pad_id: "<pad>", tokenizer.unk_id: "<unk>", tokenizer.bos_id: "<s>", tokenizer.eos_id: "</s>"}
    (part,) = tokenizer.decode_bytes([token_id], continues=True)
    if not part:
        return names.get(token_id, f"<{token_id}>")
    try:
        return part.decode("utf-8")
    except UnicodeDecodeError:
        return "".join(f"<0x{byte:02X}>" for byte in part)
