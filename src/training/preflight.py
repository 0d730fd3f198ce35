"""A run tried before it costs anything: eleven checks (eight for plain text) of what would else show after hours.

    rows     tokenizer, ids, template and mask, ends, cuts, targets                                  (preflight_rows.py)
    step     the longest micro-batch, forward and backward: loss, gradients, memory; then no trace   (preflight_step.py)
    room     on the disk, for all that the run will write
    result   adapter or model saved as at the end, read back, and removed                                   (result.py)

In a team all ranks call it, for the step's sums need all of them; what one rank alone may fail at (its disk) ends the
others, too.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial

from llama import Llama, Tokenizer
from recipe import RunConfig, RunData, RunPlan, predict_memory
from training.parallel import Engine
from training.preflight_rows import (
    Finding,
    check_cuts,
    check_ends,
    check_ids,
    check_targets,
    check_template,
    check_tokenizer,
)
from training.preflight_step import ToBatch, check_memory, check_step, check_trace, left_as_found, micro_step
from training.result import try_save
from training.step import Autocast

Check = tuple[str, Callable[[], Finding]]


def preflight(
    config: RunConfig,
    data: RunData,
    plan: RunPlan,
    tokenizer: Tokenizer,
    engine: Engine,
    to_batch: ToBatch,
    autocast: Autocast,
    *,
    say: Callable[[str], None],
    verbose: bool = False,
) -> None:
    """Run all checks; warnings and one line of summary go to `say`. Nothing of model, generators or disk is changed.

    Args:
        engine: with the base as loaded, before an optimizer is made or a checkpoint resumed.
        verbose: also say what each check found.

    Raises:
        ValueError: a check failed; the message begins with its name.
        OutOfMemoryError: the longest micro-batch does not fit.
    """
    started = time.perf_counter()
    vocab_rows, window = engine.model.config.vocab_size, engine.model.config.max_seq_len
    rows: list[Check] = [
        ("tokenizer", partial(check_tokenizer, config, data, tokenizer, vocab_rows)),
        ("ids", partial(check_ids, data, vocab_rows)),
        ("targets", partial(check_targets, data, plan)),
    ]
    if config.data.objective == "instruct":
        rows += [
            ("template", partial(check_template, config, data, tokenizer)),
            ("ends", partial(check_ends, config, data, tokenizer, window)),
            ("cuts", partial(check_cuts, config, data, window)),
        ]
    with engine.team.together():
        _run(rows, say, verbose)
    with left_as_found(engine.model) as changed:
        step = micro_step(config, data, plan, engine, to_batch, autocast)
    rest: list[Check] = [
        ("step", partial(check_step, step, engine.model)),
        ("trace", partial(check_trace, changed)),
        ("memory", partial(check_memory, step)),
        ("room", partial(check_room, config, engine)),
    ]
    with engine.team.together():
        _run(rest, say, verbose)
    try_save(engine, config, data.template)
    if verbose:
        say(f"{'result':<10}saved as at the end, read back the same, removed")
    checks = len(rows) + len(rest) + 1
    say(f"preflight: {checks} checks passed in {time.perf_counter() - started:.1f} s; {step.memory}")


def _run(checks: Sequence[Check], say: Callable[[str], None], verbose: bool) -> None:
    for name, check in checks:
        try:
            finding = check()
        except ValueError as error:
            raise ValueError(f"preflight, {name}: {error}") from error
        if verbose:
            say(f"{name:<10}{finding.found}")
        if finding.warning:
            say(f"warning, {name}: {finding.warning}")


def check_room(config: RunConfig, engine: Engine) -> Finding:
    """The disk has room for all that the run will write; rank 0 writes it."""
    return Finding(room(config, engine.model) if engine.team.leads else "left to rank 0")


def room(config: RunConfig, model: Llama) -> str:
    """Compare what the run will write with what is free. A new checkpoint is whole before the oldest is dropped.

    Without `train.save_every` one checkpoint is counted, which a stopped run writes.
    """
    memory = predict_memory(model, config)
    state = memory.trainable_weights + memory.optimizer
    result = memory.trainable_weights + (memory.frozen_weights if config.train.method == "full" else 0)
    count = config.train.keep_checkpoints + 1 if config.train.save_every else 1
    there = sum(file.stat().st_size for file in (config.output / "checkpoints").glob("*/*") if file.is_file())
    needed = result + max(state, count * state - there)
    folder = next(path for path in (config.output, *config.output.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"{folder} has {free / 1e9:.3f} GB free, but the run will write {needed / 1e9:.3f} GB (the result of "
            f"{result / 1e9:.3f}, up to {count} checkpoints of {state / 1e9:.3f}): make room, give another --output, "
            f"or lower train.keep_checkpoints = {config.train.keep_checkpoints}"
        )
    return f"{needed / 1e9:.3f} GB to write, {free / 1e9:.1f} GB free"
