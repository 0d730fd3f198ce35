"""Packing a real epoch: how many tokens of text per second, against padded rows and rows grouped by length.

    python benchmarks/packing.py --real-data DIR

The epoch is planned whole, and exactly. Time is measured on a few micro-batches of each way, those in the middle of
equal shares of its plan when sorted by size:

    tokens of text/s = share of the epoch's positions that is text · positions/s of those micro-batches

DIR holds `medical_meadow/medical_meadow_small.json` and `llama-tokenizer/`.

The model has TinyLlama's width and a few of its 22 blocks. Its vocabulary is cut in the same proportion, so that the
head takes the share of time that it has in the whole model; token ids are folded into it, which changes no shape.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import tyro
from harness import interleaved, medians, record
from peers import DTYPE, raise_outliers
from training_peers import CLIP, LEARNING_RATE, LORA

from data import Batch, Example, collate, fill_ratio
from data.plan import MicroBatch
from int8 import convert_to_int8
from llama import Llama, LlamaConfig
from lora import add_lora
from recipe import RunConfig, build_optimizer, load_run_data, load_tokenizer, plain_errors, plan_steps
from recipe.config import DataSection, ModelSection, OptimSection, TrainSection
from training import optimizer_step

SHAPE = "TinyLlama-1.1B"
CLAIM = "a real epoch of Medical Meadow: tokens of text per second, packed against padded and grouped by length"
OUTLIER_CHANNELS = 6
WAYS: dict[str, dict[str, bool]] = {  # settings of `[data]`
    "padded": {},
    "grouped by length": {"group_by_length": True},
    "packed": {"packing": True},
}

# Largest relative error of a document's hidden states in a packed row, against those it has alone, in 16 and in 8 bits:
# other summation orders round otherwise, and in 8 bits a column may be an outlier for one and not for the other.
PARITY_BOUNDS = {"bf16": 0.02, "int8": 0.05}


@dataclass(frozen=True)
class Options:
    """Tokens of text per second: padded, grouped by length, packed."""

    real_data: Path
    """Directory with the real data set and tokenizer."""
    layers: int = 2
    """Blocks of the model."""
    rows: int = 4
    """Per micro-batch."""
    max_length: int = 512
    sample: int = 4
    """Micro-batches timed of each way."""
    repeats: int = 3
    backward: Literal["exact", "fast"] = "fast"


def main() -> None:
    """Plan, compare, time, record."""
    options = tyro.cli(Options, description=__doc__)
    with plain_errors():
        run(options)


def run(options: Options) -> None:
    """The benchmark."""
    whole = LlamaConfig.named(SHAPE)
    vocab_size = whole.vocab_size * options.layers // whole.n_layers
    shape = replace(whole, n_layers=options.layers, vocab_size=vocab_size)
    examples, plans, notes = plan_epochs(options)
    lengths = list(map(len, examples))
    folded = [Example([i % vocab_size for i in e.token_ids], e.supervised) for e in examples]
    batches = {
        way: [collate([[folded[i] for i in row] for row in rows], pad_id=0) for rows in spread(plan, lengths, options)]
        for way, plan in plans.items()
    }

    works: dict[str, Callable[[], object]] = {}
    for name in PARITY_BOUNDS:
        model = build(shape, options.backward if name == "int8" else None)
        notes.append(check_parity(model, name, [folded[i] for i in plans["packed"][0][0]]))
        optimizer = build_optimizer(model, OptimSection(name="adamw8bit", lr=LEARNING_RATE))
        works |= {f"{name}, {way}": partial(take_steps, model, optimizer, batches[way]) for way in WAYS}
    seconds = medians(interleaved(works, options.repeats))

    rows = []
    for name in PARITY_BOUNDS:
        speeds = {}
        for way, plan in plans.items():
            filled = fill_ratio(plan, lengths)
            positions = sum(batch.token_ids.numel() for batch in batches[way])
            positions_per_second = positions / seconds[f"{name}, {way}"]
            speeds[way] = filled * positions_per_second
            whole_epoch = sum(lengths) / speeds[way] * whole.n_layers / options.layers
            rows.append(
                {
                    "model": name,
                    "rows": way,
                    "micro-batches": len(plan),
                    "filled": filled,
                    "positions/s": positions_per_second,
                    "tokens of text/s": speeds[way],
                    "times padded": speeds[way] / speeds["padded"],
                    f"hours per epoch, {whole.n_layers} blocks": whole_epoch / 3600,
                }
            )
    notes += [
        f"{options.layers} of {SHAPE}'s {whole.n_layers} blocks, {vocab_size} of its {whole.vocab_size} tokens; "
        f"tokens/s are this model's, the hours those of all blocks by proportion",
        f"{options.sample} micro-batches of each way, {options.repeats} times in turns; LoRA on q and v, r {LORA.r}, "
        f"dropout {LORA.dropout}; int8 with backward {options.backward!r} and {OUTLIER_CHANNELS} outlier channels",
    ]
    record("packing", rows, claim=CLAIM, notes=notes)


def plan_epochs(options: Options) -> tuple[list[Example], dict[str, list[MicroBatch]], list[str]]:
    """The examples, each way's micro-batches for an epoch of them, and what there is to say of their lengths."""
    config = RunConfig(
        model=ModelSection(tokenizer=str(options.real_data / "llama-tokenizer")),
        data=DataSection(
            folder=str(options.real_data / "medical_meadow"),
            files=("medical_meadow_small.json",),
            template="medalpaca",
            max_length=options.max_length,
        ),
        train=TrainSection(epochs=1, batch_size=options.rows, micro_batch_size=options.rows),
    )
    data = load_run_data(config, load_tokenizer(config.model.tokenizer, config.model.base))
    assert data.report is not None
    lengths = list(map(len, data.train))
    plans = {}
    for way, settings in WAYS.items():
        steps = plan_steps(replace(config, data=replace(config.data, **settings)), lengths).steps
        plans[way] = [micro_batch for step in steps for micro_batch in step]
    report = data.report
    full = report.full_lengths
    notes = [
        f"{report.kept:,} rows of {statistics.mean(full):.0f} tokens on average, {statistics.median(full):.0f} in the "
        f"median, {max(full):,} at most; {report.truncated / report.kept:.1%} are cut at {options.max_length}, and "
        f"{report.tokens:,} tokens stay, {report.supervised_tokens:,} of them supervised",
        f"a packed row holds {report.kept / sum(map(len, plans['packed'])):.1f} documents",
    ]
    return data.train, plans, notes


def spread(plan: list[MicroBatch], lengths: list[int], options: Options) -> list[MicroBatch]:
    """The micro-batches in the middle of equal shares of a plan that is sorted by their size."""

    def positions(rows: MicroBatch) -> int:
        return len(rows) * max(sum(lengths[i] for i in row) for row in rows)

    ordered = sorted(plan, key=positions)
    return [ordered[(2 * k + 1) * len(ordered) // (2 * options.sample)] for k in range(options.sample)]


def build(shape: LlamaConfig, backward: Literal["exact", "fast"] | None) -> Llama:
    """A random model with adapters, in bfloat16; its blocks in int8 unless backward is None."""
    model = Llama(shape).init_weights(torch.Generator().manual_seed(0)).to(DTYPE)
    raise_outliers(model, OUTLIER_CHANNELS)
    if backward is not None:
        convert_to_int8(model, backward=backward)
    return add_lora(model, LORA).train()


@torch.no_grad()
def check_parity(model: Llama, name: str, documents: list[Example]) -> str:
    """Compare the hidden states of documents in one packed row with those of each alone."""
    model.eval()
    packed = hidden_states(model, collate([documents], pad_id=0))[: sum(map(len, documents))]
    alone = torch.cat([hidden_states(model, collate([[d]], pad_id=0))[: len(d)] for d in documents])
    model.train()
    error = ((packed - alone).norm() / alone.norm()).item()
    if not error <= PARITY_BOUNDS[name]:
        raise ValueError(f"packed documents differ by {error} from single ones in {name}: nothing was timed")
    return f"{name}: {len(documents)} documents in a packed row differ by {error:.1e} from each alone"


def hidden_states(model: Llama, batch: Batch) -> torch.Tensor:
    """Of a batch of one row, (T, C) float32."""
    return model.hidden_states(batch.token_ids, positions=batch.positions, documents=batch.documents)[0].float()


def take_steps(model: Llama, optimizer: torch.optim.Optimizer, batches: list[Batch]) -> None:
    """An optimizer step on each micro-batch."""
    for batch in batches:
        optimizer_step(model, optimizer, [batch], clip=CLIP)


if __name__ == "__main__":
    main()
