"""One new instruction against the whole pool, as Self-Instruct asks it of every one: here, and with rouge_score.

    python benchmarks/rouge.py --real-data DIR

DIR holds `alpaca/alpaca_data_1k.json`. The pool is synthetic: each instruction has the length of a real one, drawn at
random, and words drawn as often as they occur in the real ones; 52,000 is the size of Alpaca's data. At each size new
instructions are timed. rouge_score scores pair by pair, tokens made beforehand as in Stanford's program; a sample of
the pool is timed, and its time multiplied. F is compared on that sample before anything is timed.

All of it runs in one thread, and what is timed is that thread on a processor, so that a busy machine matters less.
"""

import json
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import tyro
from harness import medians, record
from rouge_score import rouge_scorer

from data.self_instruct import RougeIndex, most_similar, rouge_l_reference, rouge_tokens
from recipe import plain_errors

N_SIMILAR = 10
CLAIM = "ROUGE-L of a new instruction with every one of the pool, the mean and the ten most similar"


@dataclass(frozen=True)
class Options:
    """One new instruction against the whole pool."""

    real_data: Path
    """Directory with Alpaca's rows."""
    sizes: tuple[int, ...] = (1_000, 10_000, 52_000)
    """Instructions in the pool."""
    new: int = 50
    """New instructions timed at each size."""
    sample: int = 1_000
    """Instructions of the pool that rouge_score and the table are timed on."""
    peers: int = 5
    """New instructions that they are timed with."""
    repeats: int = 3


def main() -> None:
    """Grow the pool, compare, time, record."""
    options = tyro.cli(Options, description=__doc__)
    with plain_errors():
        run(options)


def run(options: Options) -> None:
    """The benchmark."""
    real = json.loads((options.real_data / "alpaca" / "alpaca_data_1k.json").read_text(encoding="utf-8"))
    tokens = [rouge_tokens(row["instruction"]) for row in real]
    new = synthetic(tokens, options.new, seed=1)
    pool = synthetic(tokens, max(options.sizes), seed=0)
    index = RougeIndex()
    rows = []
    for size in sorted(options.sizes):
        start = time.process_time()
        for text in pool[len(index) : size]:
            index.add(text)
        added = time.process_time() - start
        rows.append({"pool": size, "seconds to add": added} | measure(options, index, pool[:size], new))
    lengths = list(map(len, tokens))
    notes = [
        f"instructions of {statistics.mean(lengths):.1f} tokens on average, {max(lengths)} at most",
        f"rouge_score {version('rouge-score')} in one process (Stanford's program starts 16 for each new instruction); "
        f"timed on {options.sample:,} of the pool, multiplied by its size",
        f"F equal to the last bit on all {options.peers * options.sample:,} pairs of each sample",
        f"numpy {np.__version__}, one thread",
    ]
    record("rouge", rows, claim=CLAIM, notes=notes)


def synthetic(real: list[list[str]], count: int, *, seed: int) -> list[str]:
    """Random instructions: real lengths, and words as frequent as they are in the real ones."""
    chance = random.Random(seed)
    words = [word for tokens in real for word in tokens]
    return [" ".join(chance.choices(words, k=len(chance.choice(real)))) for _ in range(count)]


def look_up(index: RougeIndex, text: str) -> None:
    """What the pipeline asks of the pool."""
    scores = index.scores(text)
    most_similar(scores, N_SIMILAR)
    if len(scores):
        scores.mean()


def measure(options: Options, index: RougeIndex, pool: list[str], new: list[str]) -> dict[str, float | int]:
    """Milliseconds of one new instruction, three ways, at the pool's size."""
    places = random.Random(2).sample(range(len(pool)), options.sample)
    sample = [rouge_tokens(pool[i]) for i in places]
    for text in new[: options.peers]:
        ours = index.scores(text)[places].tolist()
        asked = rouge_tokens(text)
        if ours != [rouge_scorer._score_lcs(asked, other).fmeasure for other in sample]:
            raise ValueError(f"F differs from rouge_score's for {text!r}: nothing was timed")
    peers = [rouge_tokens(text) for text in new[: options.peers]]
    works = {
        "ours": lambda: [look_up(index, text) for text in new],
        "table": lambda: [rouge_l_reference(asked, other) for asked in peers for other in sample],
        "rouge_score": lambda: [rouge_scorer._score_lcs(asked, other).fmeasure for asked in peers for other in sample],
    }
    seconds = medians(processor_times(works, options.repeats))
    pairs_of_one = len(pool) / (len(peers) * len(sample))
    ours_ms = 1e3 * seconds["ours"] / len(new)
    table_ms, theirs_ms = (1e3 * seconds[name] * pairs_of_one for name in ("table", "rouge_score"))
    return {
        "ours, ms": ours_ms,
        "our table, ms": table_ms,
        "rouge_score, ms": theirs_ms,
        "times as fast": theirs_ms / ours_ms,
    }


def processor_times(works: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every repeat on a processor, taken in turns after one warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(1 + repeats):
        for name, work in works.items():
            start = time.process_time()
            work()
            if repeat:
                seconds[name].append(time.process_time() - start)
    return seconds


if __name__ == "__main__":
    main()
