"""TOML in and out: what is written is read back; what is mistyped is named with the nearest known key."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from files import FileError
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
        ("[lora]\nr = 8.0", r"run\.toml, lora\.r: 8\.0 must be of type int, not float"),
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


HOSTILE = [
    (b"\xff\xfe[\0o\0", "the content is UTF-16"),
    (b"[optim]\nlr = 1 # caf\xe9", "line 2: byte 0xe9 at offset 20 is not UTF-8"),
    (b"\x1f\x8b\x08\0\0", "the content is gzip"),
    (b"{}", "not valid TOML"),
    (b"[optim]\nlr = 1\nlr = 2", "not valid TOML: Cannot overwrite a value"),
    (b"[optim]\nlr = 1\n[optim]\n", "not valid TOML: Cannot declare ('optim',) twice"),
    (b"[[optim]]\nlr = 1", r"optim is a table, not [{'lr': 1}]; write [optim]"),
    (b"optim.lr.x = 1", "optim.lr: {'x': 1} must be of type float, not dict"),
    (b"x = " + b"[" * 10_000, "not valid TOML: nested too deeply"),
    (b"a." * 10_000 + b"a = 1", "unknown key 'a'"),
    (b"#" * 2**15 + b"\n", "larger than 32,768 bytes"),
    (b"[optim]\nlr = nan", "optim.lr: nan is no finite number; write one, such as 1e-4"),
    (b"[optim]\nlr = inf", "optim.lr: inf is no finite number"),
    (b"[optim]\nlr = 1e999", "optim.lr: inf is no finite number"),
    (b"[optim]\nbetas = [0.9, -inf]", "optim.betas: -inf is no finite number"),
    (b"[optim]\nlr = -1e-4", "optim.lr = -0.0001 must be positive"),
    (b"[optim]\nlr = 1" + b"0" * 400, "optim.lr: a whole number of 1329 bits, at most 63 fit"),
    (b"[train]\nepochs = " + b"9" * 5000, "not valid TOML: a number of thousands of digits"),
    (
        b"[train]\nepochs = 0x" + b"f" * 9000,
        "train.epochs: a whole number of 36000 bits, at most 63 fit; write a smaller",
    ),
    (b"[train]\nepochs = -3", "train.epochs = -3 must be positive"),
    (b"[train]\nepochs = 1.5", "train.epochs: 1.5 must be of type int, not float"),
    (b"[train]\nepochs = true", "train.epochs: True must be of type int, not bool"),
    (b"[train]\ntensorboard = 1", "train.tensorboard: 1 must be of type bool, not int"),
    (b"[train]\nseed = 1979-05-27", "train.seed: datetime.date(1979, 5, 27) must be of type int, not date"),
    (b"[train]\nmicro_batch_size = 0", "train.micro_batch_size = 0 must be positive"),
    (b"[data]\nmax_length = -512", "data.max_length = -512 must be positive"),
    (b"[data]\nfiles = ['a.json', 3]", "data.files: 3 must be of type str, not int"),
    (b"[data]\nfiles = [['a.json']]", "data.files: ['a.json'] must be of type str, not list"),
    (b'[data]\nfolder = "a\\u0000b"', "data.folder: the text holds a NUL at character 1"),
    (b'"a\\n\\u001b[2J" = 1', r"unknown key 'a\n\x1b[2J'"),
    (b"[train]\nmethod = '" + b"x" * 20_000 + b"'", "must be one of 'full', 'lora', 'lora-8bit'"),
    (b"[train]\nmethod = []", "train.method: [] must be one of"),
]


@pytest.mark.parametrize(("content", "problem"), HOSTILE, ids=lambda value: str(value[:30]))
def test_a_config_that_is_none_is_refused_on_one_line(tmp_path, count_faults, content, problem):
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(FileError) as refused:
        read_config(path)
    said = str(refused.value)
    assert said.startswith(str(path)) and problem in said
    assert said.isprintable() and len(said) < 1000
    count_faults("bad configs")


def test_a_byte_order_mark_is_no_content(tmp_path):
    (tmp_path / "run.toml").write_bytes(b"\xef\xbb\xbf[optim]\nlr = 0.5")
    assert read_config(tmp_path / "run.toml").optim.lr == 0.5


def test_a_folder_and_a_pipe_are_no_configs(tmp_path, count_faults):
    (tmp_path / "folder.toml").mkdir()
    os.mkfifo(tmp_path / "pipe.toml")
    for name, problem in (("folder.toml", "it is a directory"), ("pipe.toml", "it is a pipe")):
        with pytest.raises(FileError, match=f"{name}: {problem}, not a regular file"):
            read_config(tmp_path / name)
        count_faults("bad configs")


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
