"""Absurd numbers where a model's shape or an adapter's settings are due: refused before any memory is taken."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile.sound_files import KINDS, SHAPE, make_adapter, make_safetensors, tiny_model

from files import FileError, UnsafeFileError, UnsuitableFileError, read_json_object
from llama import LlamaConfig, load_checkpoint
from llama.checkpoint import read_config
from llama.config import CEILINGS
from lora import load_adapter, lora_layers

ABSURD = {
    "negative": "-1",
    "zero": "0",
    "2^62": str(2**62),
    "2^64": str(2**64),
    "400 digits": "9" * 400,
    "float": "8.0",
    "fraction": "0.5",
    "NaN": "NaN",
    "infinity": "Infinity",
    "1e400": "1e400",
    "1e308": "1e308",
    "true": "true",
    "string": '"8"',
    "list": "[8]",
    "object": '{"8": 8}',
    "deep list": "[" * 900 + "]" * 900,
    "lone surrogate": '"\\ud800"',
    "escape sequence": '"\\u001b[2J"',
    "megabyte": json.dumps("x" * 2**20),
}
HF_COUNTS = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("intermediate_size", "max_position_embeddings", "head_dim"),
)
META_COUNTS = ("vocab_size", "dim", "n_layers", "n_heads", "n_kv_heads", "multiple_of", "max_seq_len")
NUMBERS = ("rms_norm_eps", "rope_theta", "norm_eps", "ffn_dim_multiplier")
META_MINUS_1 = {"params.json": "negative", "config.json": None}  # where −1 means the embedding's
FINE_AS_NUMBER = ("float", "fraction", "1e308", "2^62", "2^64")  # odd, but numbers that size nothing


def put(file: Path, key: str, value: str) -> None:
    """Write a JSON value, which Python may not be able to write, into the file's object."""
    content = json.loads(file.read_text()) | {key: "HERE"}
    for rope in ("rope_parameters", "rope_scaling"):
        if key in content.get(rope, {}):
            content[rope][key] = "HERE"
    file.write_text(json.dumps(content).replace('"HERE"', value))


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("config.json", (*HF_COUNTS, "rms_norm_eps", "rope_theta")),
        ("params.json", (*META_COUNTS, "norm_eps", "rope_theta", "ffn_dim_multiplier")),
    ],
)
def test_absurd_sizes_are_refused_with_key_and_value(
    kind: str, keys: tuple[str, ...], tmp_path: Path, survives: Callable, count_faults: Callable
) -> None:
    file = tmp_path / kind
    KINDS[kind].make(tmp_path)
    sound = file.read_bytes()
    for key in keys:
        for name, value in ABSURD.items():
            if (key in NUMBERS and name in FINE_AS_NUMBER) or (key, name) == ("vocab_size", META_MINUS_1[kind]):
                continue
            file.write_bytes(sound)
            put(file, key, value)
            for read in (load_checkpoint, read_config):
                assert not survives(lambda read=read: read(tmp_path), file), (key, name)
                with pytest.raises(FileError) as caught:
                    read(tmp_path)
                message = str(caught.value)
                assert str(tmp_path) in message and len(message) < 2000, (key, name)
                assert caught.value.remedy or "\n" in message, (key, name)
                count_faults(f"absurd {kind}")


@pytest.mark.parametrize("key", [*HF_COUNTS[:-1], "rms_norm_eps"])
def test_null_is_the_default_or_refused(key: str, tmp_path: Path) -> None:
    make_safetensors(tmp_path)
    put(tmp_path / "config.json", key, "null")
    if key in ("rms_norm_eps", "max_position_embeddings"):
        load_checkpoint(tmp_path, progress=False)
    else:
        with pytest.raises(UnsuitableFileError):
            load_checkpoint(tmp_path, progress=False)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"num_attention_heads": 3}, r"dim = 8 over n_heads = 3 must give a whole, even"),
        ("config.json", {"num_attention_heads": 8, "num_key_value_heads": 8}, "dim = 8 over n_heads = 8"),
        ("config.json", {"num_attention_heads": 4, "num_key_value_heads": 3}, "n_heads = 4 .* n_kv_heads = 3"),
        ("params.json", {"n_heads": 3}, "dim = 8 over n_heads = 3"),
        ("params.json", {"n_heads": 4, "n_kv_heads": 3}, "n_heads = 4 .* n_kv_heads = 3"),
        ("config.json", {"num_hidden_layers": 1000}, "1000 blocks, but the weights beside it are 12 tensors"),
        ("params.json", {"n_layers": 1000}, "1000 blocks, but the weights beside it are 12 tensors"),
        ("config.json", {"num_hidden_layers": 2}, r"missing: model\.layers\.1\."),
        ("config.json", {"vocab_size": 2**24}, r"\(20, 8\), the config implies \(16777216, 8\)"),
        ("config.json", {"hidden_size": 2**18}, r"the config implies \(20, 262144\)"),
        ("params.json", {"ffn_dim_multiplier": 1e300}, "hidden_dim = .* must be a whole number from 1 to 1048576"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused_with_both(
    file: str, changes: dict, message: str, tmp_path: Path, survives: Callable, count_faults: Callable
) -> None:
    KINDS[file].make(tmp_path)
    (tmp_path / file).write_text(json.dumps(json.loads((tmp_path / file).read_text()) | changes))
    assert not survives(lambda: load_checkpoint(tmp_path, progress=False), tmp_path / file)
    with pytest.raises(UnsuitableFileError, match=message):
        load_checkpoint(tmp_path, progress=False)
    count_faults("sizes that do not go together")


@pytest.mark.parametrize("name", CEILINGS)
def test_a_shape_just_above_its_ceiling_is_refused(name: str) -> None:
    sizes = {field: getattr(SHAPE, field) for field in CEILINGS}
    with pytest.raises(ValueError, match=rf"{name} = {CEILINGS[name] + 1} must be a whole number from 1 to"):
        LlamaConfig(**(sizes | {name: CEILINGS[name] + 1}))


def test_every_published_shape_is_far_below_the_ceilings() -> None:
    largest = {"vocab_size": 128_256, "dim": 16_384, "n_layers": 126, "n_heads": 128, "hidden_dim": 53_248}
    assert all(8 * size <= CEILINGS[name] for name, size in largest.items())


# --- Adapters ---

SETTINGS = ("r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "peft_type", "bias", "init_lora_weights")
FINE = {
    **dict.fromkeys([("lora_alpha", name) for name in ("2^62", "2^64", "10^9", "float", "fraction", "1e308")]),
    **dict.fromkeys([("lora_dropout", name) for name in ("zero", "fraction")]),
    # A text is a pattern, which whoever wrote the tensors has resolved: their names say which modules are meant.
    **dict.fromkeys([("target_modules", name) for name in ("string", "lone surrogate", "escape sequence", "megabyte")]),
    **dict.fromkeys([("use_rslora", "true"), ("init_lora_weights", "true"), ("init_lora_weights", "zero")]),
}


@pytest.mark.parametrize("key", [*SETTINGS, "rank_pattern", "layers_to_transform", "use_dora"])
def test_absurd_settings_of_an_adapter_are_refused(
    key: str, tmp_path: Path, survives: Callable, count_faults: Callable
) -> None:
    make_adapter(tmp_path)
    file = tmp_path / "adapter_config.json"
    sound = file.read_bytes()
    values = ABSURD | {"10^9": str(10**9), "empty": '""', "null": "null", "null in a list": "[null]"}
    for name, value in values.items():
        if (key, name) in FINE or (name in ("empty", "null") and key not in ("r", "lora_alpha", "peft_type")):
            continue
        file.write_bytes(sound)
        put(file, key, value)
        model = tiny_model()
        assert not survives(lambda model=model: load_adapter(model, tmp_path), file), (key, name)
        with pytest.raises(FileError, match=re.escape(str(tmp_path))) as caught:
            load_adapter(model, tmp_path)
        assert not list(lora_layers(model)) and len(str(caught.value)) < 2000
        count_faults("absurd adapter_config.json")


def test_ten_thousand_targets_do_not_hang(tmp_path: Path, survives: Callable) -> None:
    make_adapter(tmp_path)
    file = tmp_path / "adapter_config.json"
    for n, length in ((10_001, 3), (300, 5)):
        put(file, "target_modules", json.dumps([f"{number:0{length}}" for number in range(n)]))
        assert not survives(lambda: load_adapter(tiny_model(), tmp_path), file)


# --- JSON ---


def test_json_that_would_fill_the_memory_is_refused_unread(tmp_path: Path, survives: Callable) -> None:
    file = tmp_path / "config.json"
    with file.open("wb") as sparse:
        sparse.write(b'{"a": ')
        sparse.truncate(40 * 10**9)
    with pytest.raises(UnsafeFileError, match="40000000000 bytes, more than the 100000000"):
        read_json_object(file)


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.is_text])
def test_json_cut_anywhere_is_refused(kind: str, tmp_path: Path, survives: Callable, count_faults: Callable) -> None:
    sort = KINDS[kind]
    sort.make(tmp_path)
    content = (tmp_path / sort.file).read_bytes()
    for end in range(0, len(content.rstrip()), max(1, len(content) // 50)):
        (tmp_path / sort.file).write_bytes(content[:end])
        assert not survives(lambda: sort.read(tmp_path), tmp_path / sort.file), end
        count_faults("JSON cut")
