"""transformers' LLaMA of our shape, or with our weights. Import transformers with `pytest.importorskip` first."""

from typing import Any

from torch import Tensor

from llama import Llama, LlamaConfig


def peer_config(config: LlamaConfig, **options: Any) -> Any:
    """transformers' config of that shape; eager attention, the plainest there is."""
    import transformers

    shape = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "max_position_embeddings": config.max_seq_len,
        "tie_word_embeddings": config.tie_embeddings,
        "attn_implementation": "eager",
    }
    return transformers.LlamaConfig(**(shape | options))


def peer_weights(model: Llama) -> dict[str, Tensor]:
    """Our weights under transformers' names, in its row order; written out here, apart from the checkpoint code."""
    weights = {"model.embed_tokens.weight": model.tok_embeddings.weight, "model.norm.weight": model.norm.weight}
    for i, block in enumerate(model.layers):
        weights[f"model.layers.{i}.input_layernorm.weight"] = block.attention_norm.weight
        weights[f"model.layers.{i}.post_attention_layernorm.weight"] = block.ffn_norm.weight
    for name, slot in model.adapter_layout().items():
        weight = model.get_submodule(name).weight
        weights[f"{slot.key}.weight"] = weight if slot.rows is None else weight[slot.rows]
    return {key: weight.detach() for key, weight in weights.items()}


def as_transformers(model: Llama, **options: Any) -> Any:
    """transformers' LLaMA with the weights of ours, in eval mode."""
    import transformers

    peer = transformers.LlamaForCausalLM(peer_config(model.config, **options))
    peer.load_state_dict(peer_weights(model), strict=True)
    return peer.eval()
