"""A LoRA step on a 7B in int8, on a machine whose memory could not hold its 16-bit weights beside anything else.

    python benchmarks/large_step.py --real-data DIR

The codes are drawn at random as what they are, int8: 7 GB, and no 16-bit weight ever. One step reads a row of 512
tokens packed with documents as long as Medical Meadow's, with q and v adapted, backward "fast", with activations kept
and with checkpointing. The hours of an epoch are those that the real data set's tokens take at the step's tokens per
second: DIR holds `medical_meadow/medical_meadow_small.json` and `llama-tokenizer/`.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import tyro
from harness import interleaved, medians, record
from peers import DTYPE, raise_outliers
from processes import peak_gb, restart_peak
from step_limit import StepProducts
from torch import nn
from training_peers import CLIP, LEARNING_RATE, LORA, MEADOW_512, documents

from data import collate
from int8 import INT8_MAX, Int8Linear
from llama import Llama, LlamaConfig
from lora import add_lora
from native import advise_huge_pages
from recipe import RunConfig, build_optimizer, load_run_data, load_tokenizer, plain_errors, plan_steps
from recipe.config import DataSection, ModelSection, OptimSection, TrainSection
from training import optimizer_step

STD = 0.02
CHECKPOINTING = {"on": True, "off": False}
OUTLIER_CHANNELS = 6
MEMORY_BOUND_GB = 12
CLAIM = f"a LoRA step on a 7B in int8, 512 packed tokens: within {MEMORY_BOUND_GB} GB of resident memory"


@dataclass(frozen=True)
class Options:
    """Seconds, memory and hours per epoch of a large model's training step."""

    shape: str = "7B"
    layers: int = 0
    """Blocks of the model, for a quick try; 0: all."""
    repeats: int = 2
    backward: Literal["exact", "fast"] = "fast"
    real_data: Path | None = None
    """Directory with the real data set and tokenizer; without it no epoch is planned."""


def main() -> None:
    """Draw the model, time its steps, record."""
    options = tyro.cli(Options, description=__doc__)
    with plain_errors():
        run(options)


def run(options: Options) -> None:
    """The benchmark."""
    torch.manual_seed(0)
    config = LlamaConfig.named(options.shape)
    config = replace(config, n_layers=options.layers or config.n_layers)
    epoch = None if options.real_data is None else plan_epoch(options.real_data)
    model = add_lora(random_int8_model(config, options.backward), LORA).train()
    weights = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    batch = collate([documents(MEADOW_512, config.vocab_size)], pad_id=0)
    optimizer = build_optimizer(model, OptimSection(name="adamw8bit", lr=LEARNING_RATE))
    products = StepProducts(config, batch.n_tokens, batch.n_supervised)
    peaks, losses = dict.fromkeys(CHECKPOINTING, 0.0), {way: [] for way in CHECKPOINTING}

    def step(way: str) -> None:
        model.gradient_checkpointing = CHECKPOINTING[way]
        losses[way].append(optimizer_step(model, optimizer, [batch], clip=CLIP).loss)
        peaks[way] = max(peaks[way], peak_gb(os.getpid()) - products.operand_bytes / 1e9)  # those lie here beside it

    works: dict[str, Callable[[], None]] = {}
    for way in CHECKPOINTING:  # each right after its peak starts anew, which is timed under a name nobody looks up
        works |= {f"{way}, before": restart_peak, way: partial(step, way)}
    for width, work in products.works().items():  # twice, since operands that lay idle come slowly at first
        works |= {f"{width}, waking": work, width: work}
    measured = medians(interleaved(works, options.repeats))
    limit = products.least_seconds("int8", "int8" if options.backward == "fast" else "bf16", measured)
    rows = []
    for way in CHECKPOINTING:
        seconds = measured[way]
        rows.append(
            {
                "what": options.shape if not options.layers else f"{options.shape}, {options.layers} blocks",
                "backward": options.backward,
                "checkpointing": way,
                "seconds": seconds,
                "tokens/s": batch.n_tokens / seconds,
                "weights GB": weights / 1e9,
                "peak GB": peaks[way],
                "limit, seconds": limit,
                "of the limit": limit / seconds,
                "hours per epoch": None if epoch is None else epoch.tokens / (batch.n_tokens / seconds) / 3600,
                "losses": " ".join(f"{loss:.2f}" for loss in losses[way]),
            }
        )
    notes = [
        f"{batch.n_tokens} tokens in {len(MEADOW_512)} documents, {batch.n_supervised} supervised; {options.repeats} "
        f"repeats, in turns; {OUTLIER_CHANNELS} outlier channels",
        "peak GB: resident memory of a step, interpreter and libraries included",
        "limit: the products of a step without checkpointing, whose backward pass repeats the forward one",
        f"16-bit weights alone would take {2 * count_weights(model) / 1e9:.1f} GB",
    ]
    if epoch is not None:
        notes.append(
            f"an epoch of medical_meadow_small.json: {epoch.tokens:,} tokens in {epoch.rows:,} packed rows of 512, "
            "an update after each"
        )
    name = "large-step" if not options.layers else f"large-step-{options.layers}-layers"
    record(name, rows, claim=CLAIM, notes=notes)


def random_int8_model(config: LlamaConfig, backward: Literal["exact", "fast"]) -> Llama:
    """A frozen LLaMA whose linear layers were never anything but int8; embedding, norms and head in bfloat16."""
    with torch.device("meta"):
        model = Llama(config).to(DTYPE)
    for block in model.layers:
        for name, linear in list(block.named_modules()):
            if isinstance(linear, nn.Linear):
                parent, _, attribute = name.rpartition(".")
                setattr(block.get_submodule(parent), attribute, random_int8_linear(linear, backward))
    for name, parameter in list(model.named_parameters()):
        weight = advise_huge_pages(torch.empty(parameter.shape, dtype=DTYPE))
        weight = weight.fill_(1) if weight.ndim == 1 else weight.normal_(std=STD)
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, nn.Parameter(weight, requires_grad=False))
    return raise_outliers(model, OUTLIER_CHANNELS)


def random_int8_linear(linear: nn.Linear, backward: Literal["exact", "fast"]) -> Int8Linear:
    """A layer of that shape, with uniform codes and scales that give its weight the usual spread."""
    layer = Int8Linear(linear.in_features, linear.out_features, backward=backward)
    layer.weight_codes.random_(-INT8_MAX, INT8_MAX + 1)
    layer.weight_absmax.fill_(3**0.5 * STD)  # of numbers uniform in ±a the standard deviation is a/√3
    return layer


@dataclass(frozen=True)
class Epoch:
    """What one pass over the real data set reads: its tokens, in so many rows of at most 512."""

    tokens: int
    rows: int


def plan_epoch(real_data: Path) -> Epoch:
    """As `recipe` plans it for training."""
    config = RunConfig(
        model=ModelSection(tokenizer=str(real_data / "llama-tokenizer")),
        data=DataSection(
            folder=str(real_data / "medical_meadow"),
            files=("medical_meadow_small.json",),
            template="medalpaca",
            max_length=512,
            packing=True,
        ),
        train=TrainSection(method="lora-8bit", epochs=1, batch_size=1, micro_batch_size=1),
    )
    data = load_run_data(config, load_tokenizer(config.model.tokenizer, config.model.base))
    lengths = list(map(len, data.train))
    return Epoch(sum(lengths), len(plan_steps(config, lengths).steps))


def count_weights(model: Llama) -> int:
    """Of the base, by the shapes of what holds them."""
    codes = sum(module.weight_codes.numel() for module in model.modules() if isinstance(module, Int8Linear))
    return codes + sum(p.numel() for p in model.parameters() if not p.requires_grad)


if __name__ == "__main__":
    main()
