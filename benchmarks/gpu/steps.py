"""A LoRA step of a 7B model: forward, loss, backward, clipping and AdamW; ours and transformers with peft.

    2 × 256        MedAlpaca's own: two rows of 256 tokens, every token supervised, r = 8 on q and v, dropout 0.1
    packed 4096    one row of 4,096 tokens made of documents, which do not see each other; their prompts are masked

The limit is that of `step_limit`: 2 operations per weight of the blocks and token for the forward pass and 2 for the
gradient with respect to the input, which the first q, k and v need not have; a frozen weight has none. Only supervised
tokens go through the head, which is in 16 bits.

Documents reach transformers as one row with restarting `position_ids` or as a padded batch; both are tried, and the
faster is timed. All models hold the same weights; the loss and the gradient's norm of a step without dropout are
compared before anything is timed.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

import torch
from models import config, our_model_with_adapters, raise_channels, transformers_model_with_adapters
from optimizer_state import state_bytes
from peers import DTYPE, OUTLIERS, module_bytes
from step_limit import least_seconds
from timing import (
    Row,
    Setting,
    allocated,
    busy_seconds,
    only_working,
    peak_memory,
    ratio,
    reason,
    seconds,
    synchronize,
    times,
)
from torch import Tensor, nn
from training_peers import CLIP, MEADOW_2048, MEDALPACA_ROWS, Layout, documents, peer_batch

from data import Example, collate
from int8 import set_backward
from llama import Llama
from optim8bit import AdamW8bit
from training import optimizer_step

PACKED_4096 = (*MEADOW_2048, *MEADOW_2048, (54, 108))
LEARNING_RATE = 0.0  # a step takes as long at any rate, and at this one all keep the weights that they share

# Largest relative differences from our own bfloat16 with which a timing still means something. Wrong targets show in
# the loss; a lost factor or product in the gradient's norm, which 8-bit codes move by some per cent.
LOSS_PARITY, NORM_PARITY = 0.02, 0.1

BASELINE, PEER = "ours bf16", "transformers + peft + bitsandbytes int8"

Rows = list[list[Example]]
Step = Callable[[], tuple[float, float]]
"""One optimizer step; its loss and its gradient's norm."""


@dataclass(frozen=True)
class Trainee:
    """A model with its optimizer.

    Attributes:
        ways: the ways it has of taking a step on some rows.
        passes: keys of the ceilings that bound its forward and its backward pass.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ways: Callable[[Rows], list[Step]]
    passes: tuple[str, str]

    def resident(self) -> int:
        """Bytes of weights, adapters and the optimizer's state."""
        return module_bytes([self.model]) + state_bytes(self.optimizer)


def measure(setting: Setting) -> Iterator[Row]:
    """Rows of both settings, with and without outliers; all models stay on the device, 41 GB with the peers."""
    trainees: dict[str, Trainee | str] = {}  # or why there is none
    for name, make in _makers(setting).items():
        try:
            trainees[name] = make()
        except Exception as error:  # whatever keeps one contender from running must not cost the others their row
            trainees[name] = reason(error)
    vocabulary = config(setting).vocab_size
    for title, lengths, packed in (("2 × 256", MEDALPACA_ROWS, False), ("packed 4096", PACKED_4096, True)):
        parts = documents([(2, 12), (4, 20)] if setting.tiny else lengths, vocabulary)
        rows = [parts] if packed else [[part] for part in parts]
        for outliers in OUTLIERS:
            for trainee in trainees.values():
                if isinstance(trainee, Trainee):
                    raise_channels(trainee.model, outliers)
            yield from _rows({"setting": title, "outliers": outliers}, trainees, rows, setting)


def _rows(case: Row, trainees: Mapping[str, Trainee | str], rows: Rows, setting: Setting) -> Iterator[Row]:
    """Compare and time one step on these rows."""
    works: dict[str, Step] = {}
    found: dict[str, tuple[float, float]] = {}
    peaks: dict[str, int] = {}
    failures = {name: trainee for name, trainee in trainees.items() if isinstance(trainee, str)}
    for name, trainee in trainees.items():
        if isinstance(trainee, str):
            continue
        try:
            step = _fastest(trainee.ways(rows), setting)
            with _no_dropout(trainee.model):
                found[name] = step()
            _check_parity(found[name], found.get(BASELINE, found[name]))
            peaks[name] = _peak(trainee, step, setting)
            works[name] = step
        except Exception as error:
            failures[name] = reason(error)

    n_tokens = sum(len(document) for row in rows for document in row)
    taken = seconds(works, setting)
    for name in trainees:
        loss, norm = found.get(name, (None, None))
        speed = ratio(n_tokens, taken.get(name))
        limit = _limit(trainees[name], rows, setting)
        yield {
            **case,
            "what": name,
            "seconds": taken.get(name),
            "device seconds": busy_seconds(works[name], setting.device) if name in taken else None,
            "tokens/s": speed,
            "limit, tokens/s": limit,
            "of limit": ratio(speed, limit),
            "÷ ours bf16": ratio(taken.get(name), taken.get(BASELINE)),
            "÷ bitsandbytes": ratio(taken.get(name), taken.get(PEER)),
            "peak GB": times(1e-9, peaks.get(name) or None),
            "loss": loss,
            "gradient norm": norm,
            "note": failures.get(name, ""),
        }


def _makers(setting: Setting) -> dict[str, Callable[[], Trainee]]:
    our_int8 = cache(lambda: our_model_with_adapters(setting, int8=True))  # one model for both of its backward passes
    makers: dict[str, Callable[[], Trainee]] = {
        BASELINE: lambda: _ours(our_model_with_adapters(setting, int8=False), "exact", ("bf16", "bf16")),
        "ours int8, exact": lambda: _ours(our_int8(), "exact", ("int8", "bf16")),
        "ours int8, fast": lambda: _ours(our_int8(), "fast", ("int8", "int8")),
    }
    if setting.peers:
        makers["transformers + peft bf16"] = lambda: _theirs(setting, int8=False)
        makers[PEER] = lambda: _theirs(setting, int8=True)
    return makers


def _ours(model: Llama, backward: Literal["exact", "fast"], passes: tuple[str, str]) -> Trainee:
    optimizer = AdamW8bit([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)

    def ways(rows: Rows) -> list[Step]:
        batch = collate(rows, pad_id=0).to(next(model.parameters()).device)

        def step() -> tuple[float, float]:
            set_backward(model, backward)
            result = optimizer_step(model, optimizer, [batch], clip=CLIP)
            return result.loss, result.gradient_norm

        return [step]

    return Trainee(model, optimizer, ways, passes)


def _theirs(setting: Setting, *, int8: bool) -> Trainee:
    model = transformers_model_with_adapters(setting, int8=int8)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=LEARNING_RATE, fused=True)

    def ways(rows: Rows) -> list[Step]:
        layouts: list[Layout] = ["packed", "padded"] if len(rows[0]) > 1 else ["packed"]
        batches = [peer_batch(rows, layout) for layout in layouts]
        return [partial(step, {name: tensor.to(setting.device) for name, tensor in batch.items()}) for batch in batches]

    def step(inputs: dict[str, Tensor]) -> tuple[float, float]:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(setting.device.type, DTYPE):
            loss = model(**inputs, use_cache=False).loss
        loss.backward()
        norm = nn.utils.clip_grad_norm_(trainable, CLIP)
        optimizer.step()
        return loss.item(), norm.item()

    return Trainee(model, optimizer, ways, ("int8" if int8 else "bf16", "bf16"))


def _fastest(ways: list[Step], setting: Setting) -> Step:
    """The one that takes least; all are warm then, and what was compiled or tuned at the first call is there."""
    working, failures = only_working({str(i): way for i, way in enumerate(ways)}, setting.device)
    if not working:
        raise RuntimeError("; ".join(failures.values()))
    taken: dict[str, float] = {}
    for name, way in working.items():
        start = time.perf_counter()
        way()
        synchronize(setting.device)
        taken[name] = time.perf_counter() - start
    return ways[int(min(taken, key=taken.__getitem__))]


def _check_parity(found: tuple[float, float], expected: tuple[float, float]) -> None:
    for what, value, reference, bound in zip(
        ("loss", "norm"), found, expected, (LOSS_PARITY, NORM_PARITY), strict=True
    ):
        if not abs(value - reference) <= bound * abs(reference):
            raise ValueError(f"its {what} is {value:.4g} where ours in bfloat16 is {reference:.4g}; it was not timed")


@contextmanager
def _no_dropout(model: nn.Module) -> Iterator[None]:
    """All then compute the same function, and have the same gradient."""
    model.eval()
    try:
        yield
    finally:
        model.train()


def _peak(trainee: Trainee, step: Step, setting: Setting) -> int:
    """Bytes that a step takes at its peak, without the other trainees'; 0 where nobody counts them."""
    trainee.optimizer.zero_grad(set_to_none=True)
    others = allocated(setting.device) - trainee.resident()
    with peak_memory(setting.device) as peak:
        step()
        return max(peak()[0] - others, 0) if peak()[0] else 0


def _limit(trainee: Trainee | str, rows: Rows, setting: Setting) -> float | None:
    """Tokens per second at the ceilings' rates."""
    if isinstance(trainee, str) or not setting.rates.keys() >= {*trainee.passes, "bf16"}:
        return None
    parts = [document for row in rows for document in row]
    tokens, supervised = sum(map(len, parts)), sum(sum(document.supervised) for document in parts)
    rates = [setting.rates[key] for key in (*trainee.passes, "bf16")]
    return tokens / least_seconds(config(setting), tokens, supervised, *rates)
