"""Int8 checkpoints exchanged with transformers and bitsandbytes: the same tensors, and each loads the other's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from int8 import integer_backend
from llama.checkpoint import load_checkpoint, save_checkpoint
from llama.config import LlamaConfig
from llama.model import Llama
from recipe.int8_checkpoint import load_int8_checkpoint, write_int8_checkpoint

transformers = pytest.importorskip("transformers", reason="install the extra: parity")
pytest.importorskip("bitsandbytes", reason="install the extra: parity")

IDS = torch.randint(128, (2, 33), generator=torch.Generator().manual_seed(1))
CONFIGS = {
    "grouped-query": LlamaConfig(128, 64, 3, 8, 2, 172, norm_eps=1e-5, rope_theta=500_000.0, max_seq_len=512),
    "tied": LlamaConfig(128, 96, 2, 6, 1, 200, norm_eps=1e-5, tie_embeddings=True),
}


def write_source(folder: Path, shape: str, dtype: torch.dtype) -> Path:
    model = Llama(CONFIGS[shape]).init_weights(torch.Generator().manual_seed(0), std=0.1)
    save_checkpoint(model, folder, dtype=dtype)
    return folder


def their_quantized(folder: Path, dtype: torch.dtype) -> Any:
    settings = transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.LlamaForCausalLM.from_pretrained(folder, quantization_config=settings, dtype=dtype)


def codes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if tensor.dtype == torch.int8}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", CONFIGS)
@torch.no_grad()
def test_the_files_hold_the_same_and_each_loads_the_others(shape: str, dtype: torch.dtype, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", shape, dtype)
    theirs = their_quantized(source, dtype)
    theirs.save_pretrained(tmp_path / "theirs")
    write_int8_checkpoint(source, tmp_path / "ours", progress=False)
    ours_stored, theirs_stored = (load_file(tmp_path / who / "model.safetensors") for who in ("ours", "theirs"))
    assert ours_stored.keys() == theirs_stored.keys() and len(codes(ours_stored)) == 7 * CONFIGS[shape].n_layers
    for name, tensor in ours_stored.items():
        assert tensor.dtype == theirs_stored[name].dtype and torch.equal(tensor, theirs_stored[name]), name

    loaded, report = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(loaded.model.layers[0].mlp.up_proj).__name__ == "Linear8bitLt" and loaded.dtype == dtype
    expected = theirs(IDS).logits
    assert expected.std() > 0.1 and torch.equal(loaded(IDS).logits, expected)

    ours, from_theirs = (load_int8_checkpoint(tmp_path / who, progress=False) for who in ("ours", "theirs"))
    assert from_theirs.config == ours.config == CONFIGS[shape]
    assert torch.equal(from_theirs(IDS), ours(IDS))


def test_of_float32_weights_a_few_codes_differ_by_one(tmp_path: Path) -> None:
    """bitsandbytes rounds a weight to float16 first: by up to 2⁻¹¹ of 127 codes, which takes some over a tie."""
    source = write_source(tmp_path / "source", "grouped-query", torch.float32)
    their_quantized(source, torch.float32).save_pretrained(tmp_path / "theirs")
    write_int8_checkpoint(source, tmp_path / "ours", progress=False)
    ours, theirs = (codes(load_file(tmp_path / who / "model.safetensors")) for who in ("ours", "theirs"))
    steps = torch.cat([(ours[name].int() - theirs[name].int()).abs().flatten() for name in ours])
    assert steps.max() == 1
    # Twice 2⁻¹¹ (the weight's rounding and its row's absmax) of a code that is 127 at most: 0.12 of a step, at worst.
    assert 0 < (steps > 0).double().mean() < 0.12


@pytest.mark.skipif(
    integer_backend("cpu") != "torch._int_mm", reason="torch._int_mm saturates on this CPU, and bitsandbytes uses it"
)
@torch.no_grad()
def test_answers_are_as_near_as_two_roundings(tmp_path: Path, check_bound: Callable[[str, float, float], None]) -> None:
    source = write_source(tmp_path / "source", "grouped-query", torch.float16)
    write_int8_checkpoint(source, tmp_path / "int8", progress=False)
    exact = load_checkpoint(source, dtype=torch.float32, progress=False)(IDS)
    ours = load_int8_checkpoint(tmp_path / "int8", dtype=torch.float32, progress=False)(IDS)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "int8")(IDS).logits.float()
    their_error = (theirs - exact).norm()
    assert 0 < their_error < 0.1 * exact.norm()
    # Two errors of equal size that share no more than the weights' part: √2 of one if they shared nothing.
    ratio = (ours - theirs).norm() / their_error
    check_bound("int8 checkpoint: logits, ours - bitsandbytes', in their error", ratio.item(), 2**0.5)
    check_bound("int8 checkpoint: logits, our error / bitsandbytes'", ((ours - exact).norm() / their_error).item(), 1.1)
