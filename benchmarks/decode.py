"""One-token steps: how near they come to reading every weight once, and how they compare with transformers.

    python benchmarks/make_checkpoint.py TinyLlama-1.1B DIR
    python benchmarks/decode.py --base DIR

A one-token step does two operations per weight, so it can be no faster than the weights come from memory:

    tokens/s ≤ bandwidth / bytes per token,    bytes per token = blocks, final norm, head + keys and values so far

The bandwidth is measured in the same run, in turns with the rest. Before anything is timed, the logits of eight
one-token steps are compared with those of transformers in bfloat16.
"""

import tempfile
from collections import deque
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
import tyro
from harness import bandwidth_probe, interleaved, medians, record
from peers import (
    BASELINE,
    DTYPE,
    Contender,
    Work,
    check_parity,
    in_turn,
    line_up,
    module_bytes,
    random_ids,
    result_name,
    write_variants,
)

from llama import LlamaConfig, read_config
from recipe import plain_errors

CLAIM = "one-token steps, greedy, batch 1: at least 0.7 of the memory's limit; int8 at least 2.5 × transformers bf16"
PROBE_BYTES = 2 * 10**9
PARITY_STEPS = 8


@dataclass(frozen=True)
class Options:
    """Tokens per second at batch 1, against the memory's bandwidth and against transformers."""

    base: Path
    """Checkpoint directory; two variants of it are written beside it for the run's time."""
    tokens: int = 32
    """One-token steps per repeat."""
    prompt: int = 64
    """Tokens read before the first step."""
    repeats: int = 7
    skip_peers: bool = False
    """Time ours alone; nothing is compared then."""
    device: str = "cpu"


def main() -> None:
    """Load, compare, time, record."""
    options = tyro.cli(Options, description=__doc__)
    with plain_errors(), tempfile.TemporaryDirectory(dir=options.base.parent) as scratch:
        run(options, Path(scratch))


def run(options: Options, scratch: Path) -> None:
    """The benchmark. scratch: room for two copies of the checkpoint."""
    device = torch.device(options.device)
    config = read_config(options.base)
    ids = random_ids(options.prompt, config.vocab_size)
    folders = write_variants(options.base, scratch)
    contenders = line_up(folders, device, skip_peers=options.skip_peers)
    errors, notes = ({}, []) if options.skip_peers else check_parity(folders, contenders, ids, PARITY_STEPS)

    works = {name: steps(contender, ids, options) for name, contender in contenders.items()}
    with torch.device(device):
        works["memory"] = bandwidth_probe(PROBE_BYTES)
    seconds = medians(interleaved(in_turn(contenders, works, device), options.repeats))
    bandwidth = PROBE_BYTES / seconds["memory"]
    rates = {name: options.tokens / seconds[name] for name in contenders}
    baseline = rates.get(f"{BASELINE}, 0")

    # The warm-up and the repeats before the middle one have made the sequence this long.
    cache = cache_bytes(config, options.prompt + (1 + options.repeats / 2) * options.tokens)
    rows = []
    for name, contender in contenders.items():
        needed = module_bytes(contender.read) + cache
        rows.append(
            {
                "what": contender.what,
                "outlier channels": contender.outliers,
                "tokens/s": rates[name],
                "GB per token": needed / 1e9,
                "limit, tokens/s": bandwidth / needed,
                "of the limit": rates[name] * needed / bandwidth,
                f"times {BASELINE}": baseline and rates[name] / baseline,
                "relative error of logits": errors.get(name),
            }
        )
    notes = [
        f"{options.repeats} repeats of {options.tokens} steps, in turns, after a prompt of {options.prompt} tokens",
        f"memory read at {bandwidth / 1e9:.1f} GB/s in the same run",
        *notes,
    ]
    record(result_name("decode", device, options.skip_peers), rows, claim=CLAIM, notes=notes)


def steps(contender: Contender, ids: list[int], options: Options) -> Work:
    """A work of so many one-token steps: the first call reads the prompt too, each later one goes on from the last."""
    answer = contender.answer(ids, (1 + options.repeats) * options.tokens)
    return lambda: deque(islice(answer, options.tokens), maxlen=0)


def cache_bytes(config: LlamaConfig, length: float) -> float:
    """Of the keys and values of so many tokens."""
    return 2 * config.n_layers * config.n_kv_heads * config.head_dim * length * DTYPE.itemsize


if __name__ == "__main__":
    main()
