"""TOML in and out: what is written is read back; what is mistyped is named with the nearest known key."""

from dataclasses import replace
from pathlib import Path

import pytest

from recipe import RunConfig, read_config, write_config

CONFIGS = sorted((Path(__file__).parent.parent.parent / "configs").glob("*.toml"))


def read(tmp_path: Path, text: str) -> RunConfig:
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    return read_config(path)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_recipe_reads_and_round_trips(path, tmp_path):
    config = read_config(path)
    write_config(config, tmp_path / "resolved.toml")
    assert read_config(tmp_path / "resolved.toml") == config


def test_a_file_is_a_partial_override(tmp_path):
    config = read(tmp_path, "[optim]\nlr = 1\n[data]\nfiles = ['a.json', 'b.json:7']\n")
    default = RunConfig()
    assert config.optim == replace(default.optim, lr=1.0)
    assert config.data.files == ("a.json", "b.json:7")
    assert config.train == default.train


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[optim]\nlearning = 1.0", r"run\.toml: unknown key 'optim\.learning'"),
        ("[optim]\nwarmup_step = 3", "did you mean 'warmup_steps'"),
        ("[optm]\nlr = 1.0", "did you mean 'optim'"),
        ("lr = 1.0", "unknown key 'lr'"),
        ("optim = 3", r"write \[optim\]"),
        ("[lora]\nr = 8.0", "r = 8.0 must be of type int, not float"),
        ("[lora]\nr = true", "must be of type int, not bool"),
        ("[optim]\nlr = '1e-4'", "must be of type float, not str"),
        ("[optim]\nbetas = [0.9]", "array of 2"),
        ("[lora]\ntargets = 'q_proj'", "must be an array"),
        ("[train]\nmethod = 'qlora'", "must be one of 'full', 'lora', 'lora-8bit'"),
        ("[optim", "not valid TOML"),
        ("[train]\nbatch_size = 10\nmicro_batch_size = 4", "multiple of train.micro_batch_size = 4"),
        ("[train]\nprecision = 'bf16-mixed'", "use bf16"),
        ("[optim]\nwarmup_steps = 3\nwarmup_ratio = 0.1", "not both"),
        ("[data]\nvalidation_rows = 3\nvalidation_fraction = 0.1", "not both"),
        ("[data]\nvalidation_fraction = 1.0", r"must be in \[0, 1\)"),
        ("[train]\nepochs = 0", "train.epochs = 0 must be positive"),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text)


def test_missing_file_points_to_the_recipes(tmp_path):
    with pytest.raises(ValueError, match="configs/"):
        read_config(tmp_path / "none.toml")


@pytest.mark.parametrize("size", ["7b", "13b"])
@pytest.mark.parametrize("suffix", ["", "-lora", "-lora-8bit"])
def test_the_six_medalpaca_recipes(size, suffix):
    config = read_config(CONFIGS[0].parent / f"medalpaca-{size}{suffix}.toml")
    assert config.shape.name == size.upper()
    assert config.train.method == (suffix.removeprefix("-") or "full")
    assert (config.optim.name == "adamw8bit") == (suffix == "-lora-8bit")
    assert (config.optim.lr, config.data.max_length, config.data.template) == (2e-5, 256, "medalpaca")
    assert config.data.files == read_config(CONFIGS[0].parent / "medalpaca-7b.toml").data.files
    assert len(config.data.files) == 15
