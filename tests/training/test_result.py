"""What a run leaves, and the same tried before the run begins."""

import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_llama, train_tokenizer

from data import PromptTemplate
from llama import Tokenizer, load_checkpoint, save_checkpoint
from recipe import RunConfig
from recipe.config import DataSection, LoraSection, ModelSection, TrainSection
from training import Engine, build_engine
from training.result import TRIAL, result_bytes, save_run, try_save

TEMPLATE = PromptTemplate.named("medalpaca")
METHODS = ("full", "lora", "lora-8bit")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    train_tokenizer(folder)
    save_checkpoint(tiny_llama(0, vocab_size=330), folder)
    return folder


def begin(base: Path, output: Path, method: str) -> tuple[Engine, RunConfig]:
    config = RunConfig(
        model=ModelSection(base=str(base)),
        data=DataSection(max_length=64),
        lora=LoraSection(r=2),
        train=TrainSection(method=method, precision="float32", output=str(output)),
    )
    return build_engine(config, Tokenizer(base), torch.device("cpu")), config


@pytest.mark.parametrize("method", METHODS)
def test_a_trial_leaves_nothing_and_changes_nothing(base, tmp_path, method):
    engine, config = begin(base, tmp_path / "run", method)
    before = {name: tensor.clone() for name, tensor in engine.model.state_dict().items()}
    random_state = torch.get_rng_state()
    try_save(engine, config, TEMPLATE)
    assert list((tmp_path / "run").iterdir()) == []
    assert torch.equal(torch.get_rng_state(), random_state)
    after = engine.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_what_is_saved_is_what_was_trained(base, tmp_path):
    engine, config = begin(base, tmp_path, "full")
    with torch.no_grad():
        for p in engine.model.parameters():
            p.add_(1)
    folder = save_run(engine, config, TEMPLATE)
    loaded = load_checkpoint(folder, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(engine.model.parameters(), loaded.parameters(), strict=True))
    assert sum(p.nbytes for p in loaded.parameters()) == result_bytes(engine.model)


def test_an_adapter_that_was_never_trained_is_tried_but_not_saved(base, tmp_path):
    engine, config = begin(base, tmp_path, "lora")
    try_save(engine, config, TEMPLATE)
    with pytest.raises(ValueError, match="never trained"):
        save_run(engine, config, TEMPLATE)


@pytest.mark.parametrize("method", METHODS)
def test_too_little_space_is_said_in_both_numbers(base, tmp_path, monkeypatch, method):
    engine, config = begin(base, tmp_path, method)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    needed = result_bytes(engine.model)
    with pytest.raises(OSError, match=f"takes {needed:,} bytes, 1,000 are free") as refused:
        try_save(engine, config, TEMPLATE)
    assert refused.value.filename == str(tmp_path) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", METHODS)
def test_a_place_that_cannot_be_written_to_shows_before_the_run(base, tmp_path, method):
    (tmp_path / "run").touch()
    engine, config = begin(base, tmp_path / "run", method)
    with pytest.raises(OSError, match="run"):
        try_save(engine, config, TEMPLATE)


def test_what_a_killed_trial_left_is_removed(base, tmp_path):
    engine, config = begin(base, tmp_path, "lora")
    (tmp_path / TRIAL / "adapter").mkdir(parents=True)
    (tmp_path / TRIAL / "adapter" / "adapter_model.safetensors").write_bytes(b"half")
    try_save(engine, config, TEMPLATE)
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_that_comes_back_changed_is_an_error_and_the_model_keeps_its_own(base, tmp_path, monkeypatch):
    engine, config = begin(base, tmp_path, "lora")
    before = {name: p.detach().clone() for name, p in engine.model.named_parameters()}

    def spoiled(model, folder):
        with torch.no_grad():
            model.layers[0].attention.wq.lora_A[0, 0] += 1

    monkeypatch.setattr("training.result.load_adapter", spoiled)
    with pytest.raises(ValueError, match=r"layers\.0\.attention\.wq\.lora_A came back"):
        try_save(engine, config, TEMPLATE)
    assert all(torch.equal(p, before[name]) for name, p in engine.model.named_parameters())
    assert list(tmp_path.iterdir()) == []


def test_a_trial_does_not_touch_the_result_of_an_earlier_run(base, tmp_path):
    engine, config = begin(base, tmp_path, "full")
    result = save_run(engine, config, TEMPLATE)
    content = {file.name: file.read_bytes() for file in result.iterdir()}
    other = replace(config, train=replace(config.train, seed=7))
    with torch.no_grad():
        engine.model.norm.weight.fill_(3)
    try_save(engine, other, TEMPLATE)
    assert {file.name: file.read_bytes() for file in result.iterdir()} == content
