#!/usr/bin/env python3
"""Fine-tune a LLaMA: every weight, LoRA adapters, or LoRA adapters on an 8-bit base with an 8-bit optimizer.

    python train.py --config configs/miniature-lora-8bit.toml                  the bundled miniature, in minutes
    python train.py --config configs/medalpaca-7b-lora-8bit.toml --base DIR    real weights
    python train.py --config configs/medalpaca-7b.toml --dry-run               parameters, memory, steps; no weights
    python train.py --config ... --preview                                     what the model will really see

A config file overrides the defaults, a flag overrides the file. The run's directory (--output) receives the adapter or
checkpoint, metrics.jsonl, the resolved config.toml and loss.png.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Annotated

import torch
import tyro

from data import Batch, Example, collate
from llama import Llama, Tokenizer, generate
from recipe import (
    RunConfig,
    RunData,
    build_model,
    build_optimizer,
    dry_run,
    load_run_data,
    load_tokenizer,
    pick_device,
    plan_steps,
    preview,
    read_config,
    save_result,
    steps_per_epoch,
    write_config,
)
from training import (
    MetricsLog,
    Progress,
    checkpoints,
    learning_rate_factor,
    load_state,
    memory_gb,
    optimizer_step,
    plot_losses,
    save_state,
    training_progress,
    validation_loss,
    warmup_steps,
)

# Settings that may differ between a run and its continuation: they shape no weight.
FREE_TO_CHANGE = {
    "train.output", "train.device", "train.log_every", "train.eval_every", "train.save_every", "train.keep_checkpoints",
    "train.sample_answers", "train.tensorboard", "train.gradient_checkpointing", "model.base", "model.tokenizer",
    "data.folder",
}  # fmt: skip


@dataclass(frozen=True)
class Arguments:
    """Fine-tune a LLaMA: full, with LoRA, or with LoRA on an 8-bit base."""

    config: Path | None = None
    """TOML file of settings; the published recipes are in configs/."""
    dry_run: bool = False
    """Print parameters, predicted memory, steps and one example, then stop."""
    preview: bool = False
    """Print what the model will see (prompts with the supervised tokens coloured, lengths, cuts), then stop."""
    resume: bool = False
    """Go on from the newest checkpoint in the run's directory."""
    run: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)


def main() -> None:
    arguments = parse_arguments()
    try:
        if arguments.dry_run:
            dry_run(arguments.run)
        elif arguments.preview:
            preview(arguments.run)
        else:
            train(arguments.run, resume=arguments.resume)
    except (ValueError, OSError) as error:  # OSError names its file: a full disk, a folder without permission
        sys.exit(f"error: {error}")
    except torch.OutOfMemoryError as error:
        remedies = "lower --train.micro-batch-size or --data.max-length, add --train.gradient-checkpointing"
        sys.exit(f"error: out of memory; {remedies}, or take --train.method lora-8bit ({error})")
    except KeyboardInterrupt:
        sys.exit(130)


def train(config: RunConfig, *, resume: bool = False) -> None:
    """Config → assemble → loop → adapter or checkpoint."""
    device = pick_device(config.train.device)
    torch.manual_seed(config.train.seed)
    tokenizer = load_tokenizer(config.model.tokenizer, config.model.base)
    data = load_run_data(config, tokenizer)
    model = build_model(config, tokenizer, device)
    optimizer = build_optimizer(model, config.optim)
    steps = plan_steps(config, list(map(len, data.train)))
    to_batch = batch_maker(config, tokenizer)
    validation = [to_batch([[example] for example in rows]) for rows in chunks(data.validation, config)]
    autocast = partial(autocast_context, config, device)

    done = resume_state(config, model, optimizer) if resume else Progress(0, 0, fingerprint(config))
    metrics = MetricsLog(config.output, after_step=done.step, tensorboard=config.train.tensorboard)
    write_config(config, config.output / "config.toml")
    print_start(config, data, model, len(steps), device)

    warmup = warmup_steps(len(steps), steps=config.optim.warmup_steps, ratio=config.optim.warmup_ratio)
    eval_every = config.train.eval_every or steps_per_epoch(config, steps)
    tokens = done.tokens
    with training_progress(len(steps), done=done.step) as progress:

        def validate(step: int) -> None:
            if validation:
                loss = validation_loss(model, validation, autocast=autocast)
                metrics.write(step, validation_loss=loss)
                progress.say(f"step {step}: validation loss {loss:.4f}, perplexity {math.exp(min(loss, 50)):.2f}")
            answer_aloud(config, data, model, tokenizer, progress.say)

        if done.step == 0:
            validate(0)
        for step, micro_batches in enumerate(steps[done.step :], start=done.step + 1):
            started = time.perf_counter()
            lr = config.optim.lr * learning_rate_factor(
                step - 1, total_steps=len(steps), warmup_steps=warmup, schedule=config.optim.schedule
            )
            for group in optimizer.param_groups:
                group["lr"] = lr
            batches = [to_batch([[data.train[i] for i in row] for row in rows]).to(device) for rows in micro_batches]
            result = optimizer_step(model, optimizer, batches, clip=config.optim.clip, autocast=autocast)
            tokens += result.n_tokens
            speed = result.n_tokens / (time.perf_counter() - started)
            memory = memory_gb(device)
            progress.update(step, loss=result.loss, lr=lr, tokens_per_second=speed, memory=memory)
            if step % config.train.log_every == 0 or step == len(steps):
                metrics.write(
                    step, loss=result.loss, lr=lr, gradient_norm=result.gradient_norm, tokens=tokens,
                    tokens_per_second=round(speed, 1), memory_gb=round(memory, 3),
                )  # fmt: skip
            if step % eval_every == 0 or step == len(steps):
                validate(step)
            if config.train.save_every and step % config.train.save_every == 0:
                state = Progress(step, tokens, fingerprint(config))
                folder = config.output / "checkpoints"
                save_state(folder, model, optimizer, state, keep=config.train.keep_checkpoints)

    result_folder = save_result(model, config, data.template)
    print_end(config, result_folder)


def batch_maker(config: RunConfig, tokenizer: Tokenizer) -> Callable[[Sequence[Sequence[Example]]], Batch]:
    """Rows of examples → batch, as `[data]` says."""
    return partial(collate, pad_id=tokenizer.pad_id, padding_side=config.data.padding)


def chunks(examples: Sequence[Example], config: RunConfig) -> list[Sequence[Example]]:
    """Validation examples by length, so that little is padded, in micro-batches."""
    size = config.train.micro_batch_size
    by_length = sorted(examples, key=len)
    return [by_length[start : start + size] for start in range(0, len(by_length), size)]


def autocast_context(config: RunConfig, device: torch.device) -> AbstractContextManager:
    """bf16 products over float32 weights under bf16-mixed; nothing otherwise."""
    if config.train.precision != "bf16-mixed":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def answer_aloud(
    config: RunConfig, data: RunData, model: Llama, tokenizer: Tokenizer, say: Callable[[str], None]
) -> None:
    """Let the model answer the first validation questions greedily, beside the reference."""
    was_training = model.training
    model.eval()
    for record in data.questions[: config.train.sample_answers]:
        prompt = tokenizer.encode(data.template.render(record.instruction, record.input).rstrip(" "), bos=True)
        room = model.config.max_seq_len - len(prompt)
        if room > 0:
            ids = generate(model, prompt, max_new_tokens=min(48, room), stop_ids=(tokenizer.eos_id,))
            answer = tokenizer.decode(list(ids))
            asked = record.input or record.instruction
            for label, text in (("asked", asked), ("answers", answer), ("reference", record.output)):
                say(f"  {label:<10} {shorten(text, 200, placeholder=' ...')}")
    model.train(was_training)


def resume_state(config: RunConfig, model: Llama, optimizer: torch.optim.Optimizer) -> Progress:
    """Go back to the newest checkpoint of the run's directory."""
    found = checkpoints(config.output / "checkpoints")
    if not found:
        raise ValueError(f"{config.output}/checkpoints holds nothing to resume; was train.save_every set?")
    print(f"resuming from {found[-1]}")
    return load_state(found[-1], model, optimizer, fingerprint(config))


def fingerprint(config: RunConfig) -> dict[str, str]:
    """Every setting that shapes the weights, by its full name."""
    return {
        f"{section}.{name}": repr(value)
        for section, values in asdict(config).items()
        for name, value in values.items()
        if f"{section}.{name}" not in FREE_TO_CHANGE
    }


def print_start(config: RunConfig, data: RunData, model: Llama, n_steps: int, device: torch.device) -> None:
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(f"{config.train.method} on {config.model.base or 'random weights'}, {config.train.precision}, {device}")
    print(f"{trainable:,} trainable parameters, {n_steps:,} steps of {config.train.batch_size} rows")
    for line in data.report.lines() if data.report else [f"{len(data.train):,} windows of text"]:
        print(line)


def print_end(config: RunConfig, result: Path) -> None:
    plot = config.output / "loss.png"
    drawn = plot_losses(config.output / "metrics.jsonl", plot)
    print(f"{'adapter' if config.train.method != 'full' else 'model':<9}{result}")
    print(f"metrics  {config.output / 'metrics.jsonl'}")
    print(f"config   {config.output / 'config.toml'}")
    print(f"loss     {plot if drawn else 'not drawn: matplotlib is in the extra viz'}")


def parse_arguments(argv: Sequence[str] | None = None) -> Arguments:
    """Flags over the config file over the defaults."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--config", type=Path)
    path = peek.parse_known_args(argv)[0].config
    try:
        default = Arguments(path, run=read_config(path) if path else RunConfig())
    except ValueError as error:
        sys.exit(f"error: {error}")
    return tyro.cli(Arguments, args=argv, default=default, description=__doc__)


if __name__ == "__main__":
    main()
