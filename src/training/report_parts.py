"""What a run's page is put together from: figures at a glance, curves, memory, data, answers."""

import math
import statistics
from collections.abc import Iterator, Sequence

from pages import Bar, Bars, Example, Facts, Lines, Series, Table, Tile, bytes_text, number, percent, running_mean
from recipe import RunConfig
from training.facts import Answer, RunFacts

MEAN_OVER = 50
"""A curve of more than this many points gets a running mean, over a twentieth of them."""
WIDE = 50.0
"""Where the largest value is so many times the smallest, a linear axis would hide the smaller ones."""
QUESTIONS, ANSWERS = 4, 6
"""How many answers aloud are shown: of so many questions, each at so many steps."""

Log = Sequence[dict[str, float]]


def tiles(log: Log, facts: RunFacts | None) -> Iterator[Tile]:
    """The figures that are read first."""
    done = int(max((line["step"] for line in log if "loss" in line), default=0))
    if facts:
        hint = "all steps done" if done >= facts.steps else "go on with --resume auto"
        yield Tile(number(done), f"of {facts.steps:,} steps", hint)
    else:
        yield Tile(number(done), "steps")
    if validations := _points(log, "validation_loss"):
        last, first = validations[-1][1], validations[0][1]
        was = f"{number(first)} at first; " if len(validations) > 1 else ""
        yield Tile(number(last), "validation loss", f"{was}perplexity {_perplexity(last)}")
    if losses := _points(log, "loss"):
        last_few = [loss for _, loss in losses[-max(1, len(losses) // 20) :]]
        yield Tile(
            number(sum(last_few) / len(last_few)),
            "training loss",
            f"mean of the last {len(last_few):,}" if len(last_few) > 1 else "at the last step",
        )
    if speeds := [value for _, value in _points(log, "tokens_per_second")]:
        seen = max((line.get("tokens", 0) for line in log), default=0)
        yield Tile(
            number(statistics.median(speeds), 3),
            "tokens a second",
            f"{number(seen)} tokens, {_duration(seconds_of(log))}",
        )
    if facts and (total := sum(sum(count.values()) for count in facts.parameters.values())):
        trainable = sum(count.get("trainable", 0) for count in facts.parameters.values())
        yield Tile(number(trainable), "trained parameters", f"{percent(trainable / total)} of {number(total)}")
    if peak := peak_bytes(log):
        beside = "" if facts and facts.device.startswith("cuda") else ", PyTorch beside it"
        predicted = f"{bytes_text(sum(facts.memory.values()))} predicted{beside}" if facts else ""
        yield Tile(bytes_text(peak), "memory at the peak", predicted)


def charts(config: RunConfig, log: Log) -> Iterator[Lines]:
    """Loss, learning rate, gradient norm, speed: those that the log knows."""
    losses, validations = _points(log, "loss"), _points(log, "validation_loss")
    if losses or validations:
        curves = smoothed("training", losses)
        if validations:
            curves.append(Series("validation", validations, "dots", 1))
        yield Lines("Loss", curves, "nats per supervised token", log=_wide(losses + validations))
    if rates := _points(log, "lr"):
        yield Lines("Learning rate", [Series("learning rate", rates)])
    if norms := _points(log, "gradient_norm"):
        clip, most = config.optim.clip, max((y for _, y in norms if math.isfinite(y)), default=0.0)
        level = (clip, f"clipped above {clip:g}") if 0 < clip < 3 * most else None
        yield Lines("Gradient norm", smoothed("gradient norm", norms), "before clipping", log=_wide(norms), level=level)
    if speeds := _points(log, "tokens_per_second"):
        yield Lines("Speed", smoothed("speed", speeds), "tokens a second")


def smoothed(name: str, points: Sequence[tuple[float, float]]) -> list[Series]:
    """A curve; of many points a faint one, with its running mean."""
    if len(points) <= MEAN_OVER:
        return [Series(name, points)] if points else []
    window = max(2, len(points) // 20)
    return [Series(name, points, "faint"), Series(f"mean of {window}", running_mean(points, window))]


def memory_bars(facts: RunFacts, log: Log) -> Bars:
    """What was predicted, by purpose, and what was measured."""
    predicted = sum(facts.memory.values())
    rows = [Bar(purpose.replace("_", " "), n / 1e9, (bytes_text(n),)) for purpose, n in facts.memory.items() if n > 0]
    rows.append(Bar("predicted", predicted / 1e9, (bytes_text(predicted),), strong=True))
    if peak := peak_bytes(log):
        rows.append(Bar("measured", peak / 1e9, (bytes_text(peak),), kind="faint", strong=True))
    on_gpu = facts.device.startswith("cuda")
    process = "all that the process held, Python and PyTorch themselves among it, which the prediction leaves out"
    whole = "what PyTorch allocated on the device" if on_gpu else process
    each = " On each device." if facts.processes > 1 else ""
    return Bars("Memory", rows, ("at the peak", ""), "GB", caption=f"measured: {whole}.{each}")


def parameter_table(facts: RunFacts) -> Table:
    """Weights by package and fate."""
    fates = ("trainable", "frozen", "int8")
    rows = [(name, *(f"{count.get(fate, 0):,}" for fate in fates)) for name, count in facts.parameters.items()]
    return Table("Parameters", ("package", *fates), rows)


def data_parts(facts: RunFacts, config: RunConfig) -> Iterator[Facts | Bars]:
    """What was learned from, and how long its rows are."""
    counted = [(name, f"{n:,}") for name, n in facts.data.items() if n or not name.startswith("rows ")]
    yield Facts("Rows and tokens", [("files", "\n".join(config.data.files)), *counted])
    total = sum(n for _, n in facts.lengths)
    if total:
        rows = [
            Bar(label, n / total, (f"{n:,}",), kind="bad" if label.startswith("more") else "")
            for label, n in facts.lengths
        ]
        caption = f"Before cutting; the window holds {config.data.max_length:,} tokens."
        yield Bars("Lengths", rows, ("tokens", "rows"), "%", caption=caption)


def answers_aloud(answers: Sequence[Answer]) -> Iterator[Example]:
    """What was said to the same question in the course of the run."""
    asked: dict[tuple[str, str], dict[int, str]] = {}
    for answer in answers:
        asked.setdefault((answer.asked, answer.reference), {})[answer.step] = answer.answers
    for (question, reference), said in list(asked.items())[:QUESTIONS]:
        steps = sorted(said)
        few = min(ANSWERS, len(steps))
        shown = sorted({steps[i * (len(steps) - 1) // max(1, few - 1)] for i in range(few)} | {steps[-1]})
        spoken = [(f"step {step:,}", said[step]) for step in shown]
        yield Example(question, "", said=[*spoken, ("reference", reference)])


# --- Parts ---


def peak_bytes(log: Log) -> float:
    """The largest memory that a step reported; 0 where none did."""
    return max((line["memory_gb"] * 1e9 for line in log if math.isfinite(line.get("memory_gb", math.nan))), default=0.0)


def seconds_of(log: Log) -> float:
    """What the steps took, validations and saves not counted: the tokens since the line before, at this line's speed.

    >>> seconds_of([{"tokens": 10, "tokens_per_second": 5.0}, {"tokens": 30, "tokens_per_second": 10.0}])
    4.0
    """
    seconds, before = 0.0, 0.0
    for line in log:
        if line.get("tokens_per_second", 0) > 0 and "tokens" in line:
            seconds += max(0.0, line["tokens"] - before) / line["tokens_per_second"]
            before = line["tokens"]
    return seconds


def _points(log: Log, key: str) -> list[tuple[float, float]]:
    return [(line["step"], line[key]) for line in log if key in line]


def _wide(points: Sequence[tuple[float, float]]) -> bool:
    finite = [y for _, y in points if math.isfinite(y)]
    return bool(finite) and 0 < min(finite) < max(finite) / WIDE


def _perplexity(loss: float) -> str:
    return number(math.exp(min(loss, 50)))


def _duration(seconds: float) -> str:
    """
    >>> _duration(42), _duration(600), _duration(2e4)
    ('42 s', '10 min', '5.6 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
