"""One LoRA training step at TinyLlama's shape: int8 against 16 bits, and against transformers + peft + bitsandbytes.

    python benchmarks/lora_step.py

A step is forward, loss, backward, clipping, AdamW, on two batches: two rows of 256 tokens, and a row of 2,048 packed
with documents as long as Medical Meadow's. The model is random, with six outlier channels, written to a scratch folder;
everyone loads that, in a process of its own. Losses and gradients, without dropout, are compared first. The peers read
the packed row as such: training_peers.py.

The limit counts the large matrix products alone, at the rates measured in the same run: step_limit.py.
"""

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import tyro
from harness import interleaved, medians, record
from processes import Remote
from step_limit import StepProducts, Width
from training_peers import ALPACA_ROWS, MEADOW_2048, OurTrainer, PeerTrainer, Rows, documents, write_base

from llama import LlamaConfig
from recipe import plain_errors

SHAPE = "TinyLlama-1.1B"
PEER_BF16 = "transformers + peft bf16"
PEER_INT8 = "transformers + peft + bitsandbytes int8"
CLAIM = f"LoRA training step, {SHAPE}'s shape: int8 2 × as fast as bitsandbytes, 1.25 × as fast as 16-bit peft"

# Largest relative differences of loss and of gradient norm from transformers in bfloat16 with which a timing still
# means something: bfloat16's rounding, or that of 8-bit codes, through 22 random layers and back.
PARITY_BOUNDS = {"bf16": (0.002, 0.02), "int8": (0.005, 0.05)}
PARITY_DOCUMENTS = ((20, 64), (25, 60), (10, 32))


@dataclass(frozen=True)
class Options:
    """Seconds, memory and tokens per second of a training step."""

    repeats: int = 3
    packed_repeats: int = 2
    """Of the packed batch, whose steps are four times as long."""
    layers: int = 0
    """Blocks of the model, for a quick try; 0: all."""
    outliers: int = 6
    """Outlier channels."""
    skip_peers: bool = False
    """Time ours alone; nothing is compared then."""
    scratch: Path | None = None
    """Directory with room for the model, 2.2 GB; the system's by default."""


@dataclass(frozen=True)
class Contender:
    """One row of the table.

    Attributes:
        kind, how: its class, and what that is told beside the folder.
        widths: of its products, forward and backward; what bounds its speed.
    """

    kind: type[OurTrainer] | type[PeerTrainer]
    how: str | bool | None
    widths: tuple[Width, Width]


CONTENDERS = {
    "ours bf16": Contender(OurTrainer, None, ("bf16", "bf16")),
    "ours int8 fast": Contender(OurTrainer, "fast", ("int8", "int8")),
    "ours int8 exact": Contender(OurTrainer, "exact", ("int8", "bf16")),
    PEER_BF16: Contender(PeerTrainer, False, ("bf16", "bf16")),
    PEER_INT8: Contender(PeerTrainer, True, ("int8", "bf16")),
}
PEERS = (PEER_BF16, PEER_INT8)


def main() -> None:
    """Write the model, start everyone, compare, time, record."""
    options = tyro.cli(Options, description=__doc__)
    with plain_errors(), tempfile.TemporaryDirectory(dir=options.scratch) as scratch, ExitStack() as stack:
        config = LlamaConfig.named(SHAPE)
        config = replace(config, n_layers=options.layers or config.n_layers)
        write_base(Path(scratch), config, options.outliers)
        remotes = {
            name: stack.enter_context(Remote(contender.kind, Path(scratch), contender.how))
            for name, contender in CONTENDERS.items()
            if not (options.skip_peers and name in PEERS)
        }
        run(options, config, remotes)


def run(options: Options, config: LlamaConfig, remotes: dict[str, Remote]) -> None:
    """The benchmark."""
    errors = {} if options.skip_peers else check_parity(config, remotes)
    alpaca = [[document] for document in documents(ALPACA_ROWS, config.vocab_size)]
    meadow = [documents(MEADOW_2048, config.vocab_size)]
    notes = [
        f"{options.outliers} outlier channels; {options.repeats} and {options.packed_repeats} repeats, in turns",
        "peak GB: resident memory during steps at its highest, interpreter and libraries included",
        "peers read the packed batch as one row with restarting position_ids; as a padded one, tried with two blocks, "
        "it took them 4.7 times as long",
    ]
    if errors:
        listed = "; ".join(f"{name} {loss:.1e}, {gradient:.1e}" for name, (loss, gradient) in errors.items())
        notes.append(f"relative differences of loss and gradient norm from {PEER_BF16}'s: {listed}")
    rows = measure("2 × 256", alpaca, options.repeats, config, remotes)
    rows += measure("packed 2048", meadow, options.packed_repeats, config, remotes, thrifty=True)
    suffixes = ["ours"] * options.skip_peers + [f"{options.layers}-layers"] * bool(options.layers)
    name = "-".join(["lora-step", *suffixes])
    record(name, rows, claim=CLAIM, notes=notes)


def measure(
    batch: str, rows: Rows, repeats: int, config: LlamaConfig, remotes: dict[str, Remote], *, thrifty: bool = False
) -> list[dict[str, object]]:
    """A table row for each contender on one batch.

    Args:
        thrifty: give back what a step has freed before the next contender's turn: the peers' steps on 2,048 tokens do
            not fit beside what the others would hold on to.
    """
    all_documents = [document for row in rows for document in row]
    tokens = sum(map(len, all_documents))
    products = StepProducts(config, tokens, supervised=sum(sum(document.supervised) for document in all_documents))
    works: dict[str, Callable[[], object]] = {}
    for name, remote in remotes.items():
        works[name] = partial(remote.call, "step", rows)
        if thrifty:  # in a turn of its own, which nobody looks up, so that it slows no one's step
            works[f"{name}, releasing"] = remote.release
        remote.restart_peak()
    for width, work in products.works().items():  # twice, since operands that lay idle come slowly at first
        works |= {f"{width}, waking": work, width: work}
    seconds = medians(interleaved(works, repeats))

    table = []
    for name, remote in remotes.items():
        limit = products.least_seconds(*CONTENDERS[name].widths, seconds)
        ratio = {peer: seconds[peer] / seconds[name] if peer in seconds else None for peer in PEERS}
        table.append(
            {
                "batch": batch,
                "what": name,
                "seconds": seconds[name],
                "tokens/s": tokens / seconds[name],
                "times peft bf16": ratio[PEER_BF16],
                "times bitsandbytes": ratio[PEER_INT8],
                "peak GB": remote.peak_gb(),
                "limit, seconds": limit,
                "of the limit": limit / seconds[name],
            }
        )
    return table


def check_parity(config: LlamaConfig, remotes: dict[str, Remote]) -> dict[str, tuple[float, float]]:
    """Compare losses and gradient norms on a few documents, packed, and for the peers padded too.

    Returns:
        Relative differences from transformers in bfloat16 on the padded batch.

    Raises:
        ValueError: one is too large for a timing to mean anything.
    """
    rows = [documents(PARITY_DOCUMENTS, config.vocab_size)]
    expected = remotes[PEER_BF16].call("loss_and_gradient", rows, "padded")
    found = {name: remote.call("loss_and_gradient", rows) for name, remote in remotes.items()}
    found[f"{PEER_INT8}, padded"] = remotes[PEER_INT8].call("loss_and_gradient", rows, "padded")
    errors = {}
    for name, figures in found.items():
        loss, gradient = (abs(a - b) / b for a, b in zip(figures, expected, strict=True))
        errors[name] = (loss, gradient)
        bounds = PARITY_BOUNDS["int8" if "int8" in name else "bf16"]
        if not (loss <= bounds[0] and gradient <= bounds[1]):
            raise ValueError(
                f"{name}: loss and gradient norm {figures} are too far from {expected} of {PEER_BF16} for a timing to "
                f"mean anything (bounds {bounds}); nothing was timed"
            )
    return errors


if __name__ == "__main__":
    main()
