"""Reading a prompt: the time from 512 tokens to the first one of the answer, against transformers.

    python benchmarks/make_checkpoint.py TinyLlama-1.1B DIR
    python benchmarks/prefill.py --base DIR

Each contender reads the prompt into a fresh cache, computes the last token's logits only, and picks the largest. Before
anything is timed, those logits are compared with transformers' in bfloat16.
"""

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import tyro
from harness import interleaved, medians, record
from peers import BASELINE, check_parity, first_token, in_turn, line_up, random_ids, result_name, write_variants

from llama import read_config
from recipe import plain_errors

CLAIM = "time to the first token of a long prompt, in int8: at least 1.3 × as fast as transformers bf16"


@dataclass(frozen=True)
class Options:
    """Seconds to the first token, against transformers."""

    base: Path
    """Checkpoint directory; two variants of it are written beside it for the run's time."""
    prompt: int = 512
    """Tokens."""
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
    ids = random_ids(options.prompt, read_config(options.base).vocab_size)
    folders = write_variants(options.base, scratch)
    contenders = line_up(folders, device, skip_peers=options.skip_peers)
    errors, notes = ({}, []) if options.skip_peers else check_parity(folders, contenders, ids, n_steps=0)

    works = {name: partial(first_token, contender, ids) for name, contender in contenders.items()}
    seconds = medians(interleaved(in_turn(contenders, works, device), options.repeats))
    baseline = seconds.get(f"{BASELINE}, 0")
    rows = [
        {
            "what": contender.what,
            "outlier channels": contender.outliers,
            "seconds": seconds[name],
            "tokens/s": options.prompt / seconds[name],
            f"times {BASELINE}": baseline and baseline / seconds[name],
            "relative error of logits": errors.get(name),
        }
        for name, contender in contenders.items()
    ]
    notes = [f"{options.repeats} repeats, in turns, of a prompt of {options.prompt} tokens", *notes]
    record(result_name("prefill", device, options.skip_peers), rows, claim=CLAIM, notes=notes)


if __name__ == "__main__":
    main()
