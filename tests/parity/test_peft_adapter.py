"""Adapters exchanged with PEFT on transformers' LLaMA: another rotary layout, grouped queries included."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers_peer import peer_config

from llama import Llama, LlamaConfig
from lora import LoraConfig, LoraLinear, add_lora, load_adapter, lora_layers, merge_lora, save_adapter

peft = pytest.importorskip("peft", reason="install the extra: parity")
transformers = pytest.importorskip("transformers", reason="install the extra: parity")

SHAPES = {
    "multi-head": LlamaConfig(vocab_size=60, dim=32, n_layers=2, n_heads=4, n_kv_heads=4, hidden_dim=48),
    "grouped-query": LlamaConfig(vocab_size=60, dim=48, n_layers=3, n_heads=6, n_kv_heads=2, hidden_dim=40),
    "multi-query": LlamaConfig(vocab_size=60, dim=32, n_layers=1, n_heads=4, n_kv_heads=1, hidden_dim=48),
}
TARGETS = {
    "alpaca-lora": ["q_proj", "v_proj"],
    "rotary": ["q_proj", "k_proj"],
    "all": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
ATOL = 1e-5  # logits of order 1 in float32


def make_peer(config: LlamaConfig) -> nn.Module:
    """transformers' model of that shape with seeded weights wide enough that attention is not uniform."""
    peer = transformers.LlamaForCausalLM(peer_config(config))
    generator = torch.Generator().manual_seed(0)
    for parameter in peer.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.15, generator=generator)
    return peer.eval()


def make_ours(config: LlamaConfig, peer: nn.Module) -> Llama:
    """Our model with the peer's weights, carried over by `adapter_layout` alone."""
    theirs = peer.state_dict()
    names = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm"}
    for i in range(config.n_layers):
        names[f"layers.{i}.attention_norm"] = f"model.layers.{i}.input_layernorm"
        names[f"layers.{i}.ffn_norm"] = f"model.layers.{i}.post_attention_layernorm"
    ours = Llama(config)
    state = {f"{own}.weight": theirs[f"{key}.weight"] for own, key in names.items()}
    for own, slot in ours.adapter_layout().items():
        weight = theirs[f"{slot.key}.weight"]
        state[f"{own}.weight"] = weight if slot.rows is None else weight[slot.rows.argsort()]
    ours.load_state_dict(state)
    return ours.eval()


def make_pair(shape: str) -> tuple[Llama, nn.Module, Tensor]:
    config = SHAPES[shape]
    peer = make_peer(config)
    token_ids = torch.randint(config.vocab_size, (3, 11), generator=torch.Generator().manual_seed(1))
    return make_ours(config, peer), peer, token_ids


def fill(parameters: list[nn.Parameter]) -> None:
    generator = torch.Generator().manual_seed(2)
    for parameter in parameters:
        nn.init.normal_(parameter, std=0.1, generator=generator)


def distance(left: Tensor, right: Tensor) -> float:
    return (left - right).abs().max().item()


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("shape", SHAPES)
def test_our_adapter_in_peft(
    shape: str, targets: str, rslora: bool, tmp_path: Path, check_bound: Callable[[str, float, float], None]
) -> None:
    ours, peer, token_ids = make_pair(shape)
    with torch.no_grad():
        plain = peer(token_ids).logits
        check_bound("lora: base before adapting vs transformers, logits", distance(ours(token_ids), plain), ATOL)
        add_lora(ours, LoraConfig(r=4, alpha=6, dropout=0.1, targets=tuple(TARGETS[targets]), rslora=rslora))
        fill([layer.lora_B for _, layer in lora_layers(ours)])
        save_adapter(ours, tmp_path, base_model="tiny")
        theirs = peft.PeftModel.from_pretrained(peer, tmp_path)
        expected = theirs(token_ids).logits
        assert distance(expected, plain) > 0.05  # the adapter does something
        check_bound("lora: our adapter loaded in peft, logits", distance(ours(token_ids), expected), ATOL)
        merged, theirs_merged = merge_lora(ours)(token_ids), theirs.merge_and_unload()(token_ids).logits
        check_bound("lora: our adapter merged by peft, logits", distance(merged, theirs_merged), ATOL)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("targets", [*TARGETS, "all-linear", "some layers"])
@pytest.mark.parametrize("shape", SHAPES)
def test_pefts_adapter_in_ours(
    shape: str, targets: str, rslora: bool, tmp_path: Path, check_bound: Callable[[str, float, float], None]
) -> None:
    ours, peer, token_ids = make_pair(shape)
    names = {"all-linear": "all-linear", "some layers": r".*\.0\.self_attn\.(q|k)_proj"} | TARGETS
    theirs = peft.get_peft_model(
        peer,
        peft.LoraConfig(
            r=3, lora_alpha=7, lora_dropout=0.1, target_modules=names[targets], use_rslora=rslora, task_type="CAUSAL_LM"
        ),
    ).eval()
    fill([parameter for name, parameter in theirs.named_parameters() if "lora_B" in name])
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        plain = ours(token_ids)
        load_adapter(ours, tmp_path)
        assert distance(ours(token_ids), plain) > 0.05
        error = distance(ours(token_ids), theirs(token_ids).logits)
        check_bound("lora: peft's adapter loaded in ours, logits", error, ATOL)


def test_a_round_trip_through_both_changes_no_bit(tmp_path: Path) -> None:
    ours, peer, _ = make_pair("grouped-query")
    add_lora(ours, LoraConfig(r=4, alpha=6, dropout=0.1, targets=("wq", "wk", "w2")))
    fill([layer.lora_B for _, layer in lora_layers(ours)])
    save_adapter(ours, tmp_path / "ours")
    peft.PeftModel.from_pretrained(peer, tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    back = load_adapter(make_pair("grouped-query")[0], tmp_path / "theirs")
    for (name, sent), (_, returned) in zip(lora_layers(ours), lora_layers(back), strict=True):
        assert torch.equal(sent.lora_A, returned.lora_A) and torch.equal(sent.lora_B, returned.lora_B), name


def test_one_layer_and_its_gradients(check_bound: Callable[[str, float, float], None]) -> None:
    """The same A and B beside the same linear layer: outputs and gradients of both programs."""
    linear = nn.Linear(24, 20)
    layer = LoraLinear(linear, r=4, alpha=6, dropout=0.0)
    peer = peft.tuners.lora.Linear(
        nn.Linear(24, 20), "default", peft.LoraConfig(r=4, lora_alpha=6, target_modules=["x"]), r=4, lora_alpha=6
    )
    fill([layer.lora_B])
    peer.base_layer.load_state_dict(linear.state_dict())
    their_A, their_B = peer.lora_A["default"].weight, peer.lora_B["default"].weight
    with torch.no_grad():
        their_A.copy_(layer.lora_A), their_B.copy_(layer.lora_B)
    x = torch.randn(7, 24, generator=torch.Generator().manual_seed(3))
    results = [layer(x), peer(x)]
    for result in results:
        result.square().sum().backward()
    # One dot product of 24 terms of order 1; gradients are sums over 7 rows of 20 such.
    check_bound("lora: one layer vs peft, float32", distance(*results), 1e-6)
    for name, ours, theirs in (("A", layer.lora_A, their_A), ("B", layer.lora_B, their_B)):
        error = distance(ours.grad, theirs.grad) / theirs.grad.abs().max().item()
        check_bound(f"lora: dL/d{name} of one layer vs peft (relative), float32", error, 1e-6)
