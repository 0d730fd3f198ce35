"""Checkpoints written by the formats' published rules, without the project's code.

Rotary rows: w.view(heads, D/2, 2, dim).transpose(1, 2), as in transformers' conversion script. Model-parallel shards:
as Meta's ColumnParallelLinear (rows of the weight), RowParallelLinear and ParallelEmbedding (columns) cut them.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

State = dict[str, Tensor]

# dim 128 = 16 heads of size 8 (at 4 the order of rows is its own inverse); every size divides into eight shards.
SHAPE = {"vocab": 96, "dim": 128, "layers": 2, "heads": 16, "kv_heads": 8, "hidden": 352}
PARAMS = {
    "dim": 128,
    "n_layers": 2,
    "n_heads": 16,
    "n_kv_heads": 8,
    "vocab_size": -1,
    "multiple_of": 16,
    "norm_eps": 1e-5,
}
HF_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "vocab_size": 96,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}


def random_state(dtype: torch.dtype = torch.float32, seed: int = 0, tied: bool = False) -> State:
    """Random weights under Meta's names, in Meta's rotary layout."""
    generator = torch.Generator().manual_seed(seed)
    dim, hidden, vocab = SHAPE["dim"], SHAPE["hidden"], SHAPE["vocab"]
    kv = dim // SHAPE["heads"] * SHAPE["kv_heads"]
    shapes: dict[str, tuple[int, ...]] = {"tok_embeddings.weight": (vocab, dim), "norm.weight": (dim,)}
    shapes["output.weight"] = (vocab, dim)
    for layer in range(SHAPE["layers"]):
        block = {"attention.wq": (dim, dim), "attention.wk": (kv, dim), "attention.wv": (kv, dim)}
        block |= {"attention.wo": (dim, dim), "feed_forward.w1": (hidden, dim), "feed_forward.w2": (dim, hidden)}
        block |= {"feed_forward.w3": (hidden, dim), "attention_norm": (dim,), "ffn_norm": (dim,)}
        shapes |= {f"layers.{layer}.{name}.weight": shape for name, shape in block.items()}
    state = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    if tied:
        state["output.weight"] = state["tok_embeddings.weight"].clone()
    return state


def hf_state(state: State) -> State:
    """The same weights under Hugging Face's names, in its rotary layout."""
    names = {
        "attention.wq": "self_attn.q_proj",
        "attention.wk": "self_attn.k_proj",
        "attention.wv": "self_attn.v_proj",
        "attention.wo": "self_attn.o_proj",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w2": "mlp.down_proj",
        "feed_forward.w3": "mlp.up_proj",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    hf = {
        "model.embed_tokens.weight": state["tok_embeddings.weight"],
        "model.norm.weight": state["norm.weight"],
        "lm_head.weight": state["output.weight"],
    }
    for layer in range(SHAPE["layers"]):
        for own, foreign in names.items():
            weight = state[f"layers.{layer}.{own}.weight"]
            if own in ("attention.wq", "attention.wk"):
                heads = SHAPE["heads"] if own == "attention.wq" else SHAPE["kv_heads"]
                rows, dim = weight.shape
                weight = weight.view(heads, rows // heads // 2, 2, dim).transpose(1, 2).reshape(rows, dim)
            hf[f"model.layers.{layer}.{foreign}.weight"] = weight
    return hf


def write_hf(
    folder: Path, state: State, *, suffix: str, n_files: int = 1, index: bool = False, **config: object
) -> Path:
    """config.json and weights as safetensors or .bin, dealt out to several files in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(HF_CONFIG | config))
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    hf = hf_state(state)
    if config.get("tie_word_embeddings"):
        del hf["lm_head.weight"]
    weight_map = {}
    for number in range(n_files):
        part = {name: hf[name].contiguous() for name in list(hf)[number::n_files]}
        file = f"{stem}.{suffix}" if n_files == 1 else f"{stem}-{number + 1:05d}-of-{n_files:05d}.{suffix}"
        save_file(part, folder / file, {"format": "pt"}) if suffix == "safetensors" else torch.save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    if index:
        content = {"metadata": {"total_size": sum(w.nbytes for w in hf.values())}, "weight_map": weight_map}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(content))
    return folder


def write_meta(folder: Path, state: State, n_ranks: int = 1, **params: object) -> Path:
    """params.json and one consolidated.*.pth per rank."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(PARAMS | params))
    for rank in range(n_ranks):
        shard = {"rope.freqs": torch.ones(2)}
        for name, weight in state.items():
            if weight.ndim == 1:
                part = weight
            elif any(module in name for module in ("tok_embeddings", "wo", "w2")):
                width = weight.shape[1] // n_ranks
                part = weight[:, rank * width : (rank + 1) * width]
            else:
                height = weight.shape[0] // n_ranks
                part = weight[rank * height : (rank + 1) * height]
            shard[name] = part.clone()
        torch.save(shard, folder / f"consolidated.{rank:02d}.pth")
    return folder


WRITERS = {
    "safetensors": lambda folder, state: write_hf(folder, state, suffix="safetensors"),
    "safetensors in 3 files": lambda folder, state: write_hf(
        folder, state, suffix="safetensors", n_files=3, index=True
    ),
    "bin": lambda folder, state: write_hf(folder, state, suffix="bin"),
    "bin in 2 files": lambda folder, state: write_hf(folder, state, suffix="bin", n_files=2, index=True),
    "bin in 2 files, no index": lambda folder, state: write_hf(folder, state, suffix="bin", n_files=2),
    "Meta": lambda folder, state: write_meta(folder, state),
    "Meta in 2 shards": lambda folder, state: write_meta(folder, state, 2),
    "Meta in 4 shards": lambda folder, state: write_meta(folder, state, 4),
    "Meta in 8 shards": lambda folder, state: write_meta(folder, state, 8),
}
