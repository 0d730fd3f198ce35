"""train.py as its users run it: three methods, two objectives, resume, dry run, preview, and mistakes."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_llama, train_tokenizer

import train
from llama import load_checkpoint, save_checkpoint
from optim8bit import AdamW8bit
from recipe import RunConfig, load_for_inference, read_config
from recipe.config import DataSection, LoraSection, ModelSection, OptimSection, ShapeSection, TrainSection
from training import read_metrics

ROOT = Path(__file__).parent.parent
ROWS = [
    {"instruction": "Answer this question.", "input": f"What is the treatment of case {n}?", "output": f"drug {n % 5}"}
    for n in range(40)
]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    train_tokenizer(folder)
    save_checkpoint(tiny_llama(0, vocab_size=330, max_seq_len=256, std=0.1), folder)
    (folder / "rows.json").write_text(json.dumps(ROWS))
    (folder / "texts.txt").write_text("\n\n".join(f"Asthma number {n} narrows the airways." for n in range(30)))
    return folder


def run_config(base: Path, output: Path, method: str = "lora", **train_options) -> RunConfig:
    return RunConfig(
        model=ModelSection(base=str(base)),
        lora=LoraSection(r=4, dropout=0.1, targets=("q_proj", "v_proj", "down_proj")),
        data=DataSection(
            folder=str(base), files=("rows.json",), template="alpaca_short", max_length=200, validation_rows=8
        ),
        optim=OptimSection(name="adamw8bit" if method == "lora-8bit" else "adamw", lr=0.01, schedule="constant"),
        train=TrainSection(
            method=method, output=str(output), epochs=2, batch_size=8, micro_batch_size=4, precision="float32",
            **train_options,
        ),
    )  # fmt: skip


@pytest.mark.parametrize("method", ["full", "lora", "lora-8bit"])
def test_each_method_learns_and_its_result_loads(base, tmp_path, capsys, method):
    config = run_config(base, tmp_path, method)
    train.train(config)
    losses = [line["validation_loss"] for line in read_metrics(tmp_path / "metrics.jsonl") if "validation_loss" in line]
    assert len(losses) == 3  # before, after each epoch
    assert losses[-1] < losses[0] - 0.5
    assert read_config(tmp_path / "config.toml") == config
    assert (tmp_path / "loss.png").exists()
    assert "metrics.jsonl" in capsys.readouterr().out
    if method == "full":
        loaded = load_for_inference(tmp_path / "model", progress=False)
    else:
        loaded = load_for_inference(base, adapter=tmp_path / "adapter", int8=method == "lora-8bit", progress=False)
    assert loaded.template.name == "alpaca_short"  # saved with the result


def test_the_base_is_untouched_by_adapters(base, tmp_path):
    before = load_checkpoint(base, progress=False).state_dict()
    train.train(run_config(base, tmp_path))
    after = load_checkpoint(base, progress=False).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("method", ["full", "lora-8bit"])
def test_resume_goes_on_bit_for_bit(base, tmp_path, method):
    """Stopped after step 5 of 8 and resumed from step 4: same losses, same result as undisturbed."""
    whole = run_config(base, tmp_path / "whole", method)
    train.train(whole)
    stopped = run_config(base, tmp_path / "stopped", method, save_every=2)
    steps = 0
    original = train.optimizer_step

    def dying_step(*args, **kwargs):
        nonlocal steps
        steps += 1
        if steps == 6:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    train.optimizer_step = dying_step
    try:
        with pytest.raises(KeyboardInterrupt):
            train.train(stopped)
    finally:
        train.optimizer_step = original
    train.train(stopped, resume="auto")

    def losses(folder: Path) -> list[tuple[int, str]]:
        return [(line["step"], line["loss"].hex()) for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]

    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    name = "model/model.safetensors" if method == "full" else "adapter/adapter_model.safetensors"
    assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_two_runs_are_identical(base, tmp_path):
    for name in ("a", "b"):
        train.train(run_config(base, tmp_path / name, "lora-8bit"))
    a, b = ((tmp_path / name / "adapter/adapter_model.safetensors").read_bytes() for name in "ab")
    assert a == b


def test_eight_bit_state_is_really_in_use(base, tmp_path, monkeypatch):
    seen = {}
    original = train.build_optimizer
    monkeypatch.setattr(train, "build_optimizer", lambda *args: seen.setdefault("optimizer", original(*args)))
    config = run_config(base, tmp_path, "full")
    train.train(replace(config, optim=replace(config.optim, name="adamw8bit")))
    assert isinstance(seen["optimizer"], AdamW8bit)
    in_8bit, in_32bit = seen["optimizer"].state_bytes()
    assert in_8bit > 0
    assert in_32bit >= 8 * 330 * 32  # the embedding, by choice


def test_packing_and_grouping_and_checkpointing_train_too(base, tmp_path):
    config = run_config(base, tmp_path, "lora", gradient_checkpointing=True)
    for change in ({"packing": True}, {"group_by_length": True}, {"padding": "left"}):
        train.train(replace(config, data=replace(config.data, **change)))
        losses = [line["loss"] for line in read_metrics(tmp_path / "metrics.jsonl") if "loss" in line]
        assert losses[-1] < losses[0]


def test_text_objective_from_random_weights(base, tmp_path):
    config = run_config(base, tmp_path, "full")
    config = replace(
        config,
        model=ModelSection(tokenizer=str(base)),
        shape=ShapeSection(dim=32, n_layers=1, n_heads=2, hidden_dim=48, max_seq_len=64),
        data=DataSection(objective="text", folder=str(base), files=("texts.txt",), max_length=64, packing=True),
        train=replace(config.train, epochs=20, precision="bf16-mixed"),
    )
    train.train(config)
    losses = [line["loss"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert losses[-1] < losses[0] / 2
    assert load_checkpoint(tmp_path / "model", progress=False).config.dim == 32


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "data.files is empty"),
        (("--shape.name", "7B"), "not a 7B"),
        (("--resume", "nowhere"), "--resume nowhere: it is not a directory"),
        (("--data.max-length", "257"), "exceeds the model's window of 256"),
        (("--train.micro-batch-size", "0"), "train.micro_batch_size = 0 must be positive, and finite"),
        (("--train.micro-batch-size", "3"), "multiple of train.micro_batch_size = 3"),
        (("--train.keep-checkpoints", "0"), "must be positive"),
        (("--optim.lr", "inf"), "optim.lr = inf must be positive, and finite"),
        (("--optim.betas", "0.9", "nan"), "optim.betas = (0.9, nan) must be in [0, 1)"),
        (("--train.seed", "-1"), "train.seed = -1 must be in [0, 2^63)"),
        (("--optim.warmup-steps", "-1"), "must be zero or more"),
        (("--lora.targets", "q_prj"), "did you mean"),
        (("--train.max-steps", "1", "--optim.warmup-steps", "1"), "all 1 steps have a learning rate of zero"),
        (("--data.packing", "--data.group-by-length"), "set one of them"),
        (("--config", "missing.toml"), "no such config file"),
    ],
)
def test_mistakes_end_with_one_line(base, tmp_path, flags, message, capsys):
    data = ("--data.folder", str(base), "--data.files", "rows.json") if flags else ()
    window = () if "--data.max-length" in flags else ("--data.max-length", "200")
    with pytest.raises(SystemExit) as stopped:
        train.main(["--base", str(base), "--output", str(tmp_path), *data, *window, *flags])
    assert str(stopped.value).startswith("error: ") and message in str(stopped.value)


def test_a_new_run_does_not_begin_among_old_checkpoints(base, tmp_path):
    """Otherwise the old run's newer checkpoints would outlive the new one's, and --resume would go on from them."""
    config = run_config(base, tmp_path, save_every=4)
    train.train(config)
    with pytest.raises(ValueError, match="is of an earlier run: add --resume auto"):
        train.train(config)


def test_a_run_is_not_resumed_on_other_data(base, tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    config = run_config(base, tmp_path / "run", save_every=4)
    config = replace(config, data=replace(config.data, folder=str(tmp_path)))
    train.train(config)
    (tmp_path / "rows.json").write_text(json.dumps([*ROWS[1:], ROWS[0]]))
    with pytest.raises(ValueError, match=r"the training tokens: .* then, .* now"):
        train.train(config, resume="auto")


def test_help_teaches():
    done = subprocess.run([sys.executable, "train.py", "--help"], capture_output=True, text=True, cwd=ROOT, check=True)
    for word in (
        "--train.method",
        "adapters on an int8 base",
        "--base",
        "--dry-run",
        "configs/miniature-lora-8bit.toml",
    ):
        assert word in done.stdout


@pytest.mark.parametrize("name", ["medalpaca-7b", "medalpaca-13b-lora", "medalpaca-7b-lora-8bit"])
def test_dry_run_without_weights(name, capsys):
    train.dry_run(read_config(ROOT / f"configs/{name}.toml"))
    out = capsys.readouterr().out
    assert "predicted memory" in out and "total" in out


def test_dry_run_and_preview_with_data(base, tmp_path, capsys):
    config = run_config(base, tmp_path)
    train.dry_run(config)
    assert "8 optimizer steps" in capsys.readouterr().out
    train.preview(config)
    out = capsys.readouterr().out
    assert "What is the treatment of case" in out and "32 of 32 rows kept" in out
    assert not (tmp_path / "config.toml").exists()
