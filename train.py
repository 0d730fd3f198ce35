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
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Annotated

import torch
import tyro

from data import Batch, Example, collate
from int8 import product_backend
from llama import Llama, Tokenizer, generate
from lora import trainable_summary
from native import c_backend
from recipe import (
    RunConfig,
    RunData,
    build_model,
    build_optimizer,
    check_training_fits,
    digest,
    dry_run,
    free_memory,
    load_run_data,
    load_tokenizer,
    model_shape,
    pick_device,
    plain_errors,
    plan_steps,
    planned_state,
    preview,
    prompt_ids,
    read_config,
    save_result,
    write_config,
)
from training import (
    MetricsLog,
    RunPosition,
    checkpoints,
    learning_rate_factor,
    load_state,
    optimizer_step,
    peak_memory_gb,
    plot_losses,
    save_state,
    training_progress,
    validation_loss,
    warmup_steps,
)


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line; describe the run, or do it."""
    remedies = "lower --train.micro-batch-size or --data.max-length, add --train.gradient-checkpointing"
    with plain_errors(out_of_memory=f"{remedies}, or take --train.method lora-8bit"):
        options = parse_arguments(arguments)
        if options.dry_run:
            dry_run(options.run)
        elif options.preview:
            preview(options.run)
        else:
            train(options.run, resume=options.resume)


def train(config: RunConfig, *, resume: bool = False) -> None:
    """Config → data → model → loop → adapter or checkpoint. What can be wrong is found before the long load."""
    device = pick_device(config.train.device)
    torch.manual_seed(config.train.seed)
    tokenizer = load_tokenizer(config.model.tokenizer, config.model.base)
    data = load_run_data(config, tokenizer)
    plan = plan_steps(config, list(map(len, data.train)))
    rates = learning_rates(config, len(plan.steps))
    to_batch = batch_maker(config, tokenizer)
    validation = [to_batch([[example] for example in rows]) for rows in by_length(data.validation, config)]
    fingerprint = {**config.fingerprint(), "data": digest(data)}
    saved = saved_checkpoint(config, resume)

    if not config.train.ignore_memory:
        check_training_fits(config, model_shape(config, tokenizer.vocab_size), free_memory(device))
    model = build_model(config, tokenizer, device)
    optimizer = build_optimizer(model, config.optim)
    done = load_state(saved, model, optimizer, fingerprint) if saved else RunPosition(0, 0, fingerprint)
    metrics = MetricsLog(config.output, after_step=done.step, tensorboard=config.train.tensorboard)
    write_config(config, config.output / "config.toml")
    print_start(config, data, model, len(plan.steps), device)

    autocast = partial(autocast_context, config, device)
    tokens = done.tokens
    with training_progress(len(plan.steps), done=done.step) as progress:

        def validate(step: int) -> None:
            if validation:
                with progress.validating(len(validation)) as advance:
                    loss = validation_loss(model, validation, autocast=autocast, after_batch=advance)
                metrics.write(step, validation_loss=loss)
                progress.say(f"step {step}: validation loss {loss:.4f}, perplexity {math.exp(min(loss, 50)):.2f}")
            answer_aloud(config, data, model, tokenizer, progress.say)

        if done.step == 0:
            validate(0)
        for step in range(done.step + 1, len(plan.steps) + 1):
            started = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = rates[step - 1]
            micro_batches = plan.steps[step - 1]
            batches = [to_batch([[data.train[i] for i in row] for row in rows]).to(device) for rows in micro_batches]
            result = optimizer_step(model, optimizer, batches, clip=config.optim.clip, autocast=autocast)
            tokens += result.n_tokens
            figures = {
                "loss": result.loss,
                "lr": rates[step - 1],
                "tokens_per_second": round(result.n_tokens / (time.perf_counter() - started), 1),
                "memory_gb": round(peak_memory_gb(device), 3),
            }
            progress.update(step, **figures)
            if step % config.train.log_every == 0 or step == len(plan.steps):
                metrics.write(step, **figures, gradient_norm=result.gradient_norm, tokens=tokens)
            if step in plan.evaluations:
                validate(step)
            if config.train.save_every and step % config.train.save_every == 0:
                state = RunPosition(step, tokens, fingerprint)
                save_state(checkpoint_folder(config), model, optimizer, state, keep=config.train.keep_checkpoints)

    print_end(config, save_result(model, config, data.template))


def learning_rates(config: RunConfig, n_steps: int) -> list[float]:
    """The learning rate of every step."""
    settings = config.optim
    warmup = warmup_steps(n_steps, steps=settings.warmup_steps, ratio=settings.warmup_ratio)
    rates = [
        settings.lr * learning_rate_factor(step, total_steps=n_steps, warmup_steps=warmup, schedule=settings.schedule)
        for step in range(n_steps)
    ]
    if not any(rates):
        raise ValueError(f"all {n_steps} steps have a learning rate of zero: train longer, or warm up less")
    return rates


def saved_checkpoint(config: RunConfig, resume: bool) -> Path | None:
    """The checkpoint to go on from; a new run does not begin among those of an old one."""
    config.output.mkdir(parents=True, exist_ok=True)
    found = checkpoints(checkpoint_folder(config))
    if resume and not found:
        raise ValueError(f"{checkpoint_folder(config)} holds nothing to resume; was train.save_every set?")
    if found and not resume:
        raise ValueError(f"{found[-1]} is of an earlier run: add --resume to go on, or choose another --output")
    if resume:
        print(f"resuming from {found[-1]}")
    return found[-1] if resume else None


def checkpoint_folder(config: RunConfig) -> Path:
    """Where a run's resumable checkpoints lie."""
    return config.output / "checkpoints"


def batch_maker(config: RunConfig, tokenizer: Tokenizer) -> Callable[[Sequence[Sequence[Example]]], Batch]:
    """Rows of examples → batch, as `[data]` says."""
    return partial(collate, pad_id=tokenizer.pad_id, padding_side=config.data.padding)


def by_length(examples: Sequence[Example], config: RunConfig) -> list[Sequence[Example]]:
    """Validation examples in groups of similar length, so that little is padded."""
    size = 4 * config.train.micro_batch_size  # no activations are kept for a backward pass
    ordered = sorted(examples, key=len)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


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
        prompt = prompt_ids(data.template, tokenizer, record.instruction, record.input)
        room = model.config.max_seq_len - len(prompt)
        if room > 0:
            ids = generate(model, prompt, max_new_tokens=min(48, room), stop_ids=(tokenizer.eos_id,))
            answer = tokenizer.decode(list(ids))
            asked = record.input or record.instruction
            for label, text in (("asked", asked), ("answers", answer), ("reference", record.output)):
                say(f"  {label:<10} {shorten(text, 200, placeholder=' ...')}")
    model.train(was_training)


def print_start(config: RunConfig, data: RunData, model: Llama, n_steps: int, device: torch.device) -> None:
    """What is about to happen, and by which means."""
    print(f"{config.train.method} on {config.model.base or 'random weights'}, {config.train.precision}, {device}")
    if config.train.method == "lora-8bit":
        print(f"int8 products by {product_backend(device)}, gradients {config.int8.backward}")
    if device.type == "cpu":
        print(f"attention, norms, dropout, loss and 8-bit Adam by {c_backend()}")
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    summary = f"{trainable:,} trainable parameters" if config.train.method == "full" else trainable_summary(model)
    print(f"{summary}; {n_steps:,} steps of {config.train.batch_size} rows")
    if config.optim.name == "adamw8bit":
        in_8bit, in_32bit = planned_state(model, config.optim)
        print(f"optimizer state: {in_8bit / 1e6:.3f} MB in 8 bits, {in_32bit / 1e6:.3f} MB in 32")
        if not in_8bit:
            print(f"note: none in 8 bits, every tensor is under optim.min_8bit_size = {config.optim.min_8bit_size}")
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
    default = Arguments(path, run=read_config(path) if path else RunConfig())
    return tyro.cli(Arguments, args=argv, default=default, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,))


if __name__ == "__main__":
    main()
