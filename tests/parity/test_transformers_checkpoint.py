"""Checkpoints exchanged with transformers, both ways: what one saves the other loads, with the same logits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers_peer import peer_config

from llama.checkpoint import load_checkpoint, save_checkpoint
from llama.config import LlamaConfig
from llama.model import Llama

transformers = pytest.importorskip("transformers", reason="install the extra: parity")

# Logits here are below 4 in magnitude, sums of some hundred float32 products in another order than the peer's.
LOGIT_BOUND = 1e-5

CONFIGS = {
    "multi-head": LlamaConfig(128, 64, 2, 4, 4, 160, norm_eps=1e-6),
    "grouped-query": LlamaConfig(128, 64, 3, 8, 2, 172, norm_eps=1e-5, rope_theta=500_000.0, max_seq_len=512),
    "one key/value head, tied": LlamaConfig(128, 96, 2, 6, 1, 200, norm_eps=1e-5, tie_embeddings=True),
}


def our_model(config: LlamaConfig) -> Llama:
    model = Llama(config).init_weights(torch.Generator().manual_seed(0), std=0.1).eval()
    for block in model.layers:  # gains other than 1, or swapping the norms would go unnoticed
        for norm in (block.attention_norm, block.ffn_norm, model.norm):
            norm.weight.data.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(block.attention.layer))
    return model


def their_model(config: LlamaConfig) -> Any:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(peer_config(config, initializer_range=0.1)).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.5, 1.5)
    return model


@torch.no_grad()
def logit_difference(ours: Llama, theirs: Any) -> float:
    ids = torch.randint(ours.config.vocab_size, (2, 33), generator=torch.Generator().manual_seed(1))
    own, other = ours(ids), theirs(ids).logits
    assert own.std() > 0.1  # logits that say something
    return (own - other).abs().max().item()


@pytest.mark.parametrize("max_shard_bytes", [10**9, 60_000])
@pytest.mark.parametrize("shape", CONFIGS)
def test_transformers_loads_what_we_save(
    shape: str, max_shard_bytes: int, tmp_path: Path, check_bound: Callable[[str, float, float], None]
) -> None:
    ours = our_model(CONFIGS[shape])
    save_checkpoint(ours, tmp_path, "hf", max_shard_bytes=max_shard_bytes)
    theirs, report = transformers.LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    check_bound("checkpoint: transformers on ours, logits", logit_difference(ours, theirs), LOGIT_BOUND)


@pytest.mark.parametrize("how", ["safetensors", "sharded safetensors", "bin"])
@pytest.mark.parametrize("shape", CONFIGS)
def test_we_load_what_transformers_saves(
    shape: str, how: str, tmp_path: Path, check_bound: Callable[[str, float, float], None]
) -> None:
    theirs = their_model(CONFIGS[shape])
    if how == "bin":  # recent versions write no pickles any more
        theirs.config.save_pretrained(tmp_path)
        torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    else:
        theirs.save_pretrained(tmp_path, max_shard_size="60KB" if "sharded" in how else "1GB")
        assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == ("sharded" in how)
    ours = load_checkpoint(tmp_path, progress=False)
    assert ours.config == CONFIGS[shape]
    check_bound("checkpoint: ours on transformers', logits", logit_difference(ours, theirs), LOGIT_BOUND)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_found_by_transformers(dtype: torch.dtype, tmp_path: Path) -> None:
    ours = our_model(CONFIGS["grouped-query"])
    save_checkpoint(ours, tmp_path, dtype=dtype)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert theirs.dtype == dtype
    assert torch.equal(theirs.model.embed_tokens.weight, ours.tok_embeddings.weight.to(dtype))


def test_transformers_agrees_on_the_real_model(
    real_data: Path, tmp_path: Path, check_bound: Callable[[str, float, float], None]
) -> None:
    ours = load_checkpoint(real_data / "stories260K-meta", progress=False)
    save_checkpoint(ours, tmp_path)
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    theirs = transformers.LlamaForCausalLM.from_pretrained(real_data / "stories260K")
    largest = theirs(torch.tensor([[1]])).logits.detach().abs().max()  # ten times those of the models above
    name = "checkpoint: transformers on the real model, logits relative to the largest"
    check_bound(name, logit_difference(ours, theirs) / largest, LOGIT_BOUND)
    ids = torch.arange(200)[None]
    assert torch.equal(again(ids).logits, theirs(ids).logits)
