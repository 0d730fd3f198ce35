"""Runs of several processes on a tiny model, and what it means that two of them are the same."""

import json
from pathlib import Path

import pytest
from forked_team import Teams
from tiny_models import tiny_llama, train_tokenizer

from llama import save_checkpoint
from training import read_metrics

STEPS = 10
LORA_8BIT = ("--train.method", "lora-8bit", "--optim.name", "adamw8bit", "--optim.min-8bit-size", "64")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    train_tokenizer(folder)
    save_checkpoint(tiny_llama(0, vocab_size=330, max_seq_len=256, std=0.1), folder)
    rows = [
        {"instruction": "Answer this question.", "input": f"What of case {n}{'?' * (n % 9)}", "output": f"drug {n % 5}"}
        for n in range(42)
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder


def arguments(base: Path, output: Path, *more: str) -> list[str]:
    """35 rows for training in micro-batches of 2 and steps of 8: the last step of an epoch has 2 micro-batches."""
    return [
        *("--base", str(base), "--data.folder", str(base), "--data.files", "rows.json", "--output", str(output)),
        *("--data.template", "alpaca_short", "--data.max-length", "200", "--data.validation-rows", "7"),
        *("--lora.r", "4", "--lora.dropout", "0.1", "--optim.lr", "0.01", "--train.precision", "float32"),
        *("--train.epochs", "2", "--train.batch-size", "8", "--train.micro-batch-size", "2"),
        *("--train.sample-answers", "0", "--train.device", "cpu", *more),
    ]  # fmt: skip


def trained(teams: Teams, size: int, base: Path, output: Path, *more: str) -> Path:
    """The output of an undisturbed run."""
    ended = teams.run(size, arguments(base, output, *more))
    assert ended.codes == [0] * size, ended.texts
    return output


def values(output: Path, name: str) -> dict[int, float]:
    lines = [line for line in read_metrics(output / "metrics.jsonl") if name in line]
    found = {int(line["step"]): float(line[name]) for line in lines}
    assert len(found) == len(lines)  # each step is written once, whoever many there are
    return found


def same(a: Path, b: Path) -> bool:
    """Every loss and every byte of the adapter."""
    names = ("loss", "validation_loss", "gradient_norm", "tokens")
    hexes = [[(name, step, v.hex()) for name in names for step, v in values(each, name).items()] for each in (a, b)]
    files = [(each / "adapter/adapter_model.safetensors").read_bytes() for each in (a, b)]
    return hexes[0] == hexes[1] and files[0] == files[1]
