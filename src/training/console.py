"""What a run tells beside its progress: how it begins, what the model answers meanwhile, where the results lie."""

from collections.abc import Callable
from pathlib import Path
from textwrap import shorten

import torch

from int8 import product_backend
from llama import Llama, Tokenizer, generate
from lora import trainable_summary
from native import c_backend
from recipe import RunConfig, RunData, planned_state, prompt_ids
from training.metrics import plot_losses
from training.parallel import Engine


def print_start(config: RunConfig, data: RunData, engine: Engine, n_steps: int, device: torch.device) -> None:
    """What is about to happen, and by which means."""
    model, team = engine.model, engine.team
    print(f"{config.train.method} on {config.model.base or 'random weights'}, {config.train.precision}, {device}")
    if team.size > 1:
        way = "every parameter in shares (FSDP)" if engine.sharded else "the whole model in each, gradients summed"
        print(f"{team.size} processes, {way}")
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


def print_end(config: RunConfig, result: Path) -> None:
    """Where the results lie; draws the loss."""
    plot = config.output / "loss.png"
    drawn = plot_losses(config.output / "metrics.jsonl", plot)
    print(f"{'adapter' if config.train.method != 'full' else 'model':<9}{result}")
    print(f"metrics  {config.output / 'metrics.jsonl'}")
    print(f"config   {config.output / 'config.toml'}")
    print(f"loss     {plot if drawn else 'not drawn: matplotlib is in the extra viz'}")
