"""config.json and params.json: the published shapes, both spellings of everything, and refusals by name."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles.checkpoint_files import HF_CONFIG, PARAMS

from llama.checkpoint import hf_config_dict, read_config
from llama.checkpoint.configs import config_from_hf, config_from_params, params_dict
from llama.config import NAMED, LlamaConfig, swiglu_hidden_dim

# As distributed with the weights.
LLAMA_1_7B = {"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-06, "vocab_size": -1}
LLAMA_2_70B = LLAMA_1_7B | {"dim": 8192, "n_heads": 64, "n_kv_heads": 8, "n_layers": 80, "norm_eps": 1e-05}
LLAMA_2_70B |= {"multiple_of": 4096, "ffn_dim_multiplier": 1.3}
META_MODEL_ARGS = {
    "dim",
    "n_layers",
    "n_heads",
    "n_kv_heads",
    "vocab_size",
    "multiple_of",
    "ffn_dim_multiplier",
    "norm_eps",
}


@pytest.mark.parametrize(("params", "name"), [(LLAMA_1_7B, "7B"), (LLAMA_2_70B, "LLaMA-2-70B")])
def test_distributed_params_are_the_published_shapes(params: dict[str, object], name: str) -> None:
    assert config_from_params(params, embedding_rows=32_000, tied=False) == LlamaConfig.named(name)
    assert params_dict(LlamaConfig.named(name)) == {**params, "vocab_size": 32_000}


@pytest.mark.parametrize("name", NAMED)
def test_published_shapes_survive_both_files(name: str) -> None:
    config = LlamaConfig.named(name)
    params = json.loads(json.dumps(params_dict(config)))
    assert config_from_params(params, embedding_rows=None, tied=False) == config
    assert set(params) <= META_MODEL_ARGS  # Meta's own loader accepts no other key
    assert config_from_hf(json.loads(json.dumps(hf_config_dict(config, torch.bfloat16)))) == config


@given(
    half_dim=st.integers(1, 5000),
    hidden_dim=st.integers(1, 60_000),
    n_kv_heads=st.sampled_from([1, 2]),
    theta=st.sampled_from([10_000.0, 500_000.0]),
    max_seq_len=st.integers(1, 10_000),
    tied=st.booleans(),
)
def test_any_shape_survives_both_files(
    half_dim: int, hidden_dim: int, n_kv_heads: int, theta: float, max_seq_len: int, tied: bool
) -> None:
    config = LlamaConfig(512, 4 * half_dim, 3, 2, n_kv_heads, hidden_dim, 1e-5, theta, max_seq_len, tied)
    assert config_from_hf(json.loads(json.dumps(hf_config_dict(config)))) == config
    params = json.loads(json.dumps(params_dict(config)))
    assert config_from_params(params, embedding_rows=None, tied=tied) == config
    hidden = swiglu_hidden_dim(config.dim, params["multiple_of"], params.get("ffn_dim_multiplier", 1.0))
    assert hidden == hidden_dim


def test_rope_theta_is_found_where_each_version_puts_it() -> None:
    older = HF_CONFIG | {"rope_theta": 5e5, "rope_scaling": None}
    newer = {key: value for key, value in HF_CONFIG.items() if key != "rope_theta"}
    newer["rope_parameters"] = {"rope_theta": 5e5, "rope_type": "default"}
    assert config_from_hf(older) == config_from_hf(newer)
    assert config_from_hf(newer).rope_theta == 5e5
    absent = {key: value for key, value in HF_CONFIG.items() if key != "rope_theta"}
    assert config_from_hf(absent).rope_theta == 10_000.0


def test_absent_keys_mean_what_transformers_takes_them_for() -> None:
    optional = {"num_key_value_heads", "rope_theta", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings"}
    config = config_from_hf({key: value for key, value in HF_CONFIG.items() if key not in optional})
    assert (config.n_kv_heads, config.norm_eps, config.max_seq_len, config.tie_embeddings) == (16, 1e-6, 2048, False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_bias": True}, "attention_bias = True"),
        ({"mlp_bias": True}, "mlp_bias = True"),
        ({"head_dim": 128}, r"head_dim = 128, but hidden_size / num_attention_heads = 8"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, r"rope_type\) = 'linear'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, r"rope_type\) = 'llama3'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, r"rope_type\) = 'yarn'"),
        ({"rope_scaling": "linear"}, "rope_scaling = 'linear' must be an object"),
        ({"model_type": "mistral"}, "model_type = 'mistral'"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ({"hidden_size": "64"}, "hidden_size = '64' must be a positive whole number"),
        ({"hidden_size": None}, "hidden_size = None"),
        ({"num_hidden_layers": True}, "num_hidden_layers = True"),
        ({"rms_norm_eps": 0}, "rms_norm_eps = 0 must be a positive number"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings = 'no' must be true or false"),
        ({"num_key_value_heads": 3}, "n_kv_heads = 3"),
    ],
)
def test_hf_config_refusals_name_the_key(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_from_hf(HF_CONFIG | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_scaled_rope": True}, "use_scaled_rope = True"),
        ({"moe": {"num_experts": 8}, "sliding_window": 4096}, "unknown keys moe, sliding_window"),
        ({"multiple_of": 0}, "multiple_of = 0"),
        ({"dim": 64.0}, "dim = 64.0 must be a positive whole number"),
        ({"norm_eps": None}, "norm_eps = None"),
        ({"ffn_dim_multiplier": "1.3"}, "ffn_dim_multiplier = '1.3'"),
        ({"vocab_size": -1}, "vocab_size = -1 means the embedding's, but there are no weights"),
    ],
)
def test_params_refusals_name_the_key(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_from_params(PARAMS | {"vocab_size": 96} | change, embedding_rows=None, tied=False)


def test_every_refusal_is_in_one_message() -> None:
    with pytest.raises(ValueError, match=r"attention_bias = True .*mlp_bias = True .*'yarn'"):
        config_from_hf(HF_CONFIG | {"attention_bias": True, "mlp_bias": True, "rope_scaling": {"rope_type": "yarn"}})


@pytest.mark.parametrize("text", [b"", b"[1]", b"{", b"\xff\xfe", b"nul", b"[" * 100_000])
def test_broken_json_is_named(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        read_config(tmp_path)


def test_a_shape_can_be_read_without_weights(tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text(json.dumps(PARAMS | {"vocab_size": 96}))
    from_params = read_config(tmp_path)
    (tmp_path / "params.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(HF_CONFIG))
    assert read_config(tmp_path) == from_params == replace(from_params, vocab_size=96, hidden_dim=352)
