"""Many short prompts: how much faster than one by one is a batch in which the next prompt takes a finished one's place?

    python benchmarks/batched.py                          the bundled miniature
    python benchmarks/batched.py --base DIR --prompts 16  a real checkpoint

Greedy. Prompts are 8 to 48 random ids; answers end after 1 to --max-new-tokens tokens, as if at EOS, which a model
would not choose after random ids. Before anything is timed, the answers of all batch sizes are compared with those of
one prompt at a time. Tokens per second count the answers' tokens; reading the prompts is part of the time.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import tyro
from harness import interleaved, medians, record

from llama import Llama, generate
from llama.decoding import generate_many, in_order
from recipe import ModelOptions

SHORTEST, LONGEST = 8, 48
"""Prompt lengths in tokens."""


@dataclass(frozen=True)
class Options:
    """Throughput of many prompts, in batches against one by one."""

    base: str = "miniature"
    """Checkpoint directory, or "miniature"."""
    int8: bool = False
    """Hold the base in 8 bits."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the weights."""
    device: str = "auto"
    """auto takes a CUDA GPU if there is one."""
    prompts: int = 32
    """How many."""
    max_new_tokens: int = 64
    """The longest answer; the mean is half of it."""
    batch_sizes: tuple[int, ...] = (4, 8, 16)
    """To compare with one by one."""
    repeats: int = 5
    """Of each, interleaved."""
    name: str = "batched"
    """Of the file in results/."""


def main(options: Options) -> None:
    """Check that all ways agree, time them in turns, record."""
    chosen = ModelOptions(base=options.base, int8=options.int8, dtype=options.dtype, device=options.device)
    loaded = chosen.load()
    model = loaded.model
    rng = torch.Generator().manual_seed(0)
    lengths = torch.randint(SHORTEST, LONGEST + 1, (options.prompts,), generator=rng).tolist()
    limits = torch.randint(1, options.max_new_tokens + 1, (options.prompts,), generator=rng).tolist()
    prompts = [torch.randint(model.config.vocab_size, (n,), generator=rng).tolist() for n in lengths]

    ways = {"one by one": partial(one_by_one, model, prompts, limits)}
    for size in options.batch_sizes:
        ways[f"batch {size}"] = partial(batched, model, prompts, limits, size)
    answers = {name: way() for name, way in ways.items()}
    alike = {name: sum(map(list.__eq__, answers["one by one"], found)) for name, found in answers.items()}

    seconds = medians(interleaved(ways, options.repeats))
    n_tokens = sum(limits)
    rows = [
        {
            "way": name,
            "tokens/s": n_tokens / seconds[name],
            "times one by one": seconds["one by one"] / seconds[name],
            "seconds": seconds[name],
            "same answers": f"{alike[name]} of {options.prompts}",
        }
        for name in ways
    ]
    record(
        options.name,
        rows,
        claim=f"{options.prompts} prompts, {sum(lengths)} tokens read and {n_tokens} written, by continuous batching",
        notes=[
            loaded.description,
            "answers may differ where rounding, which depends on the batch's shape, decides between two nearly equal "
            "logits; in float32 they should not",
        ],
    )


def one_by_one(model: Llama, prompts: list[list[int]], limits: list[int]) -> list[list[int]]:
    """Each prompt by itself."""
    return [list(generate(model, prompt, max_new_tokens=limit)) for prompt, limit in zip(prompts, limits, strict=True)]


def batched(model: Llama, prompts: list[list[int]], limits: list[int], batch_size: int) -> list[list[int]]:
    """`batch_size` prompts at a time."""
    return list(in_order(generate_many(model, prompts, batch_size=batch_size, max_new_tokens=limits)))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
