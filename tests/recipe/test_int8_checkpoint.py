"""An int8 base on disk: it answers as its source does, lies in the file's pages, and is read warily."""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from oracles.checkpoint_files import HF_CONFIG, SHAPE, WRITERS, random_state, write_hf
from safetensors.torch import load_file, save_file
from torch import Tensor

from int8 import Int8Linear
from llama import Llama
from llama.checkpoint import load_checkpoint
from recipe.int8_checkpoint import is_int8_checkpoint, load_int8_checkpoint, write_int8_checkpoint

IDS = torch.arange(24).view(2, 12) * 3 % SHAPE["vocab"]
UP = "model.layers.1.mlp.up_proj"

load = partial(load_int8_checkpoint, progress=False)
write = partial(write_int8_checkpoint, progress=False)


def small_state(dtype: torch.dtype, tied: bool = False) -> dict[str, Tensor]:
    """Weights under which no activation overflows 16 bits, and some features of it are outliers."""
    return {
        name: 0.3 * weight if weight.ndim == 2 else weight for name, weight in random_state(dtype, tied=tied).items()
    }


def quantized_while_loading(folder: Path, dtype: torch.dtype | None = None, threshold: float = 6.0) -> Llama:
    convert = partial(Int8Linear.from_linear, threshold=threshold)
    return load_checkpoint(folder, dtype=dtype, convert_linear=convert, progress=False)


@torch.no_grad()
def assert_same(model: Llama, expected: Llama) -> None:
    """The same tensors, modules and answers, bit for bit."""
    held, wanted = model.state_dict(), expected.state_dict()
    assert held.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert held[name].dtype == tensor.dtype and torch.equal(held[name], tensor), name
    assert repr(model) == repr(expected) and model.config == expected.config and not model.training
    answer = expected(IDS)
    assert answer.isfinite().all() and answer.std() > 0.1
    assert torch.equal(model(IDS), answer)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [*((kind, torch.float16) for kind in WRITERS), ("safetensors", torch.bfloat16), ("safetensors", torch.float32)],
)
def test_it_is_the_model_that_loading_quantizes(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    source = WRITERS[kind](tmp_path / "source", small_state(dtype))
    write(source, tmp_path / "int8")
    assert is_int8_checkpoint(tmp_path / "int8") and not is_int8_checkpoint(source)
    assert_same(load(tmp_path / "int8"), quantized_while_loading(source))


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_shards_a_tied_head_another_dtype_and_threshold(dtype: torch.dtype | None, tmp_path: Path) -> None:
    state = small_state(torch.bfloat16, tied=True)
    source = write_hf(tmp_path / "source", state, suffix="safetensors", tie_word_embeddings=True)
    write(source, tmp_path / "int8", 50_000, threshold=2.5)
    assert len(list((tmp_path / "int8").glob("model-*.safetensors"))) > 2
    model = load(tmp_path / "int8", dtype=dtype)
    assert_same(model, quantized_while_loading(source, dtype, threshold=2.5))
    assert model.output.weight is model.tok_embeddings.weight
    assert_same(load(tmp_path / "int8", dtype=dtype, threshold=0), quantized_while_loading(source, dtype, threshold=0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = write_hf(tmp_path / "source", small_state(torch.float16), suffix="safetensors")
    write(source, tmp_path / "int8")
    return tmp_path / "int8"


def test_the_format_is_the_one_of_transformers(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    assert tensors[f"{UP}.weight"].dtype == torch.int8 and tensors[f"{UP}.weight"].shape == (352, 128)
    assert tensors[f"{UP}.SCB"].dtype == torch.float32 and tensors[f"{UP}.SCB"].shape == (352,)
    assert tensors[f"{UP}.weight_format"].tolist() == 0 and tensors[f"{UP}.weight_format"].dtype == torch.uint8
    assert tensors["lm_head.weight"].dtype == tensors["model.norm.weight"].dtype == torch.float16
    config = json.loads((folder / "config.json").read_text())
    assert config["torch_dtype"] == "float16"
    settings = config["quantization_config"]
    assert settings["quant_method"] == "bitsandbytes" and settings["load_in_8bit"] is True
    assert settings["llm_int8_threshold"] == 6.0 and settings["llm_int8_skip_modules"] == ["lm_head"]


@pytest.mark.skipif(not os.access("/proc/self/maps", os.R_OK), reason="Linux lists a process's maps in /proc")
def test_codes_lie_in_the_files_pages(folder: Path) -> None:
    """All but those of queries and keys, whose rows have another order; each at the start of a cache line."""
    model = load(folder)
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]
    spans = [tuple(int(end, 16) for end in line[0].split("-")) for line in maps]
    assert len(spans) == 1
    for name, module in model.named_modules():
        if isinstance(module, Int8Linear):
            address = module.weight_codes.data_ptr()
            mapped = any(start <= address and address + module.weight_codes.nbytes <= end for start, end in spans)
            assert mapped == (not name.endswith(("wq", "wk"))), name
            assert address % 64 == 0, name


def test_layers_of_older_files_without_a_format_are_row_by_row(folder: Path) -> None:
    before = load(folder).state_dict()
    tensors = load_file(folder / "model.safetensors")
    rest = {name: tensor for name, tensor in tensors.items() if not name.endswith("weight_format")}
    save_file(rest, folder / "model.safetensors")
    assert all(torch.equal(tensor, before[name]) for name, tensor in load(folder).state_dict().items())


# --- What is refused ---

Tensors = dict[str, Tensor]
DAMAGE: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "no scales": (lambda t: t.pop(f"{UP}.SCB"), rf"missing: {UP}\.SCB"),
    "no codes": (lambda t: t.pop(f"{UP}.weight"), rf"missing: {UP}\.weight"),
    "no norm": (lambda t: t.pop("model.norm.weight"), r"missing: model\.norm\.weight"),
    "narrow scales": (lambda t: t.update({f"{UP}.SCB": t[f"{UP}.SCB"].half()}), rf"{UP}\.SCB is .* torch\.float16"),
    "short scales": (lambda t: t.update({f"{UP}.SCB": t[f"{UP}.SCB"][1:].clone()}), rf"{UP}\.SCB is \(351,\)"),
    "float weight": (lambda t: t.update({f"{UP}.weight": t[f"{UP}.weight"].half()}), rf"{UP}\.weight is .*float16"),
    "packed weight": (lambda t: t.update({f"{UP}.weight": t[f"{UP}.weight"][:, :64].clone()}), rf"{UP}\.weight is"),
    "quantized head": (lambda t: t.update({"lm_head.SCB": torch.ones(96)}), r"unexpected: lm_head\.SCB"),
    "integer head": (lambda t: t.update({"lm_head.weight": t["lm_head.weight"].to(torch.int8)}), "not floating-point"),
    "NaN": (lambda t: t[f"{UP}.SCB"][3].fill_(torch.nan), rf"{UP}\.SCB holds NaN"),
    "infinity": (lambda t: t[f"{UP}.SCB"][3].fill_(torch.inf), rf"{UP}\.SCB holds NaN, infinite"),
    "negative": (lambda t: t[f"{UP}.SCB"][3].fill_(-1), rf"{UP}\.SCB holds NaN, infinite or negative"),
    "tiled": (lambda t: t[f"{UP}.weight_format"].fill_(2), rf"{UP}\.weight_format = 2"),
    "wide format": (lambda t: t.update({f"{UP}.weight_format": torch.zeros(2)}), rf"{UP}\.weight_format is \(2,\)"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_tensors_are_named(kind: str, folder: Path) -> None:
    damage, message = DAMAGE[kind]
    tensors = load_file(folder / "model.safetensors")
    damage(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quant_method": "gptq"}, "'gptq'.* is not the int8 of bitsandbytes"),
        ({"load_in_8bit": False, "load_in_4bit": True}, "is not the int8 of bitsandbytes"),
        ({"llm_int8_has_fp16_weight": True}, "is not the int8 of bitsandbytes"),
        ({"llm_int8_threshold": "6"}, "llm_int8_threshold = '6' must be 0"),
        ({"llm_int8_threshold": -1}, "llm_int8_threshold = -1 must be 0"),
        (None, "quantization_config = None is not the int8"),
        ([8], r"quantization_config = \[8\] is not the int8"),
    ],
)
def test_other_quantizations_are_refused(change: object, message: str, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    settings = config["quantization_config"]
    config["quantization_config"] = settings | change if isinstance(change, dict) else change
    (folder / "config.json").write_text(json.dumps(config))
    assert is_int8_checkpoint(folder) == (message.startswith("llm_int8"))
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_incomplete_directories_are_refused(folder: Path, tmp_path: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(ValueError, match=r"bytes, but .* follow the header"):
        load(folder)
    file.unlink()
    with pytest.raises(ValueError, match=r"holds no model\*\.safetensors"):
        load(folder)
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        load(tmp_path)
    assert not is_int8_checkpoint(tmp_path)


def test_options_out_of_range_are_refused(folder: Path, tmp_path: Path) -> None:
    for threshold in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"threshold = .* must be 0 \(no decomposition\) or positive"):
            write(tmp_path / "source", tmp_path / "out", threshold=threshold)
        with pytest.raises(ValueError, match="threshold = "):
            load(folder, threshold=threshold)
    with pytest.raises(ValueError, match=r"dtype = torch\.int8 must be a floating-point"):
        load(folder, dtype=torch.int8)


def test_it_is_no_source_for_what_needs_the_numbers(folder: Path, tmp_path: Path) -> None:
    for use in (partial(load_checkpoint, progress=False), lambda path: write(path, tmp_path / "again")):
        with pytest.raises(ValueError, match=r"weights are quantized .*name the checkpoint in 16 or 32 bits"):
            use(folder)
    assert not (tmp_path / "again").exists()


def test_a_tied_head_that_differs_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    with pytest.raises(ValueError, match=r"ties the head to the embedding, but lm_head\.weight differs"):
        load(folder)


def test_a_weight_without_finite_values_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    state = small_state(torch.float16)
    state["layers.1.feed_forward.w3.weight"][5, 5] = torch.nan
    source = write_hf(tmp_path / "source", state, suffix="safetensors")
    with pytest.raises(ValueError, match=rf"{UP}\.weight: cannot quantize .*first: 5"):
        write(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_weight_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes come before their scales in the file, and both from one reading."""
    calls = []
    from_linear = Int8Linear.from_linear
    monkeypatch.setattr(Int8Linear, "from_linear", lambda *args: calls.append(1) or from_linear(*args))
    write(write_hf(tmp_path / "source", small_state(torch.float16), suffix="safetensors"), tmp_path / "int8")
    assert len(calls) == 7 * HF_CONFIG["num_hidden_layers"]
