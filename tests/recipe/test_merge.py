"""Merging from file to file gives the bits of merging in memory."""

from functools import partial
from pathlib import Path

import pytest
import torch
from oracles.checkpoint_files import WRITERS, random_state, write_hf, write_meta

from llama.checkpoint import load_checkpoint
from lora import LoraConfig, add_lora, load_adapter, merge_lora, save_adapter
from recipe.merge import merge_checkpoint

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

load = partial(load_checkpoint, progress=False)
merge = partial(merge_checkpoint, progress=False)


def write_adapter(folder: Path, base: Path, targets: tuple[str, ...] = ALL, *, rslora: bool = False) -> Path:
    """A random adapter in peft's format."""
    model = add_lora(load(base, dtype=torch.float32), LoraConfig(4, 6, 0.0, targets, rslora))
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(generator=generator)
    save_adapter(model, folder)
    return folder


def assert_same_as_in_memory(base: Path, adapter: Path, out: Path, dtype: torch.dtype | None = None) -> None:
    expected = merge_lora(load_adapter(load(base, dtype=dtype), adapter), unload=True).state_dict()
    plain, merged = load(base, dtype=dtype).state_dict(), load(out).state_dict()
    assert merged.keys() == expected.keys()
    for name, weight in expected.items():
        assert merged[name].dtype == weight.dtype and torch.equal(merged[name], weight), name
    assert any(not torch.equal(plain[name], weight) for name, weight in merged.items())


@pytest.mark.parametrize("kind", ["safetensors", "bin in 2 files", "Meta in 4 shards"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_layout(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    base = WRITERS[kind](tmp_path / "base", random_state(dtype))
    adapter = write_adapter(tmp_path / "adapter", base)
    merge(base, adapter, tmp_path / "out")
    assert_same_as_in_memory(base, adapter, tmp_path / "out")


@pytest.mark.parametrize(
    ("targets", "rslora"), [(("q_proj",), False), (("layers.1.attention.wk", "w2"), True), (("lm_head",), False)]
)
def test_some_modules_and_the_scale_of_rslora(targets: tuple[str, ...], rslora: bool, tmp_path: Path) -> None:
    base = write_hf(tmp_path / "base", random_state(torch.float16), suffix="safetensors")
    adapter = write_adapter(tmp_path / "adapter", base, targets, rslora=rslora)
    merge(base, adapter, tmp_path / "out")
    assert_same_as_in_memory(base, adapter, tmp_path / "out")


@pytest.mark.parametrize(("stored", "dtype"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_another_dtype_is_that_of_the_base_before_the_sum(
    stored: torch.dtype, dtype: torch.dtype, tmp_path: Path
) -> None:
    base = write_meta(tmp_path / "base", random_state(stored))
    adapter = write_adapter(tmp_path / "adapter", base)
    merge(base, adapter, tmp_path / "out", "meta", dtype=dtype)
    assert_same_as_in_memory(base, adapter, tmp_path / "out", dtype)


def test_an_adapter_for_another_base_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    base = write_hf(tmp_path / "base", random_state(), suffix="safetensors")
    wider = random_state()
    wider |= {name: torch.zeros(120, 128) for name in ("tok_embeddings.weight", "output.weight")}
    other = write_hf(tmp_path / "other", wider, suffix="safetensors", vocab_size=120)
    adapter = write_adapter(tmp_path / "adapter", other, ("lm_head",))
    with pytest.raises(ValueError, match=r"lora_B\.weight is \(120, 4\) in the file, but model .* need \(96, 4\)"):
        merge(base, adapter, tmp_path / "out")
    with pytest.raises(ValueError, match=r"no-adapter/adapter_config\.json is missing"):
        merge(base, tmp_path / "no-adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tied_head_is_not_merged_into(tmp_path: Path) -> None:
    base = write_hf(tmp_path / "base", random_state(tied=True), suffix="safetensors", tie_word_embeddings=True)
    adapter = write_adapter(tmp_path / "adapter", base, ("lm_head", "q_proj"))
    with pytest.raises(ValueError, match=r"adapts the head, which .* ties to its embedding"):
        merge(base, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    body = write_adapter(tmp_path / "body", base, ("q_proj",))
    merge(base, body, tmp_path / "out")
    assert_same_as_in_memory(base, body, tmp_path / "out")
