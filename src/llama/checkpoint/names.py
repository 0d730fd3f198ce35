"""Two ways to write one LLaMA down: Meta's names, which are this project's own, and Hugging Face's.

They differ in three things: the tensors' names, the order of the rows of the query and key projections (see
`llama.rotary`), and how a model is cut into files. Meta's shards follow the model-parallel training: each file holds an
equal slice of every matrix, cut along its output rows or, where the slices' products are summed, its input columns.
Hugging Face's shards hold whole tensors.
"""

from functools import lru_cache

import torch
from torch import Tensor

from llama.config import LlamaConfig
from llama.model import HF_LINEARS, Llama, hf_linear_rows

# Tables of rotary frequencies that both formats once stored and everyone computes anew.
IGNORED_SUFFIXES = ("rope.freqs", "rotary_emb.inv_freq")

# The dimension along which Meta cuts a matrix; the vectors (norms) are copied to every shard.
ROWS = ("attention.wq", "attention.wk", "attention.wv", "feed_forward.w1", "feed_forward.w3", "output")
COLUMNS = ("tok_embeddings", "attention.wo", "feed_forward.w2")

HF_OUTSIDE_BLOCKS = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
HF_BLOCK = {f"{own}.weight": f"{hf}.weight" for own, hf in HF_LINEARS.items()} | {
    "attention_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
}


def skeleton(config: LlamaConfig) -> Llama:
    """The model without its numbers: every parameter has shape and name but no memory (device "meta")."""
    with torch.device("meta"):
        return Llama(config).eval()


def parameter_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Own name -> shape of every parameter, in the model's order; a tied head is listed like any other."""
    return dict(_named_shapes(config))


@lru_cache(maxsize=4)  # opening a checkpoint asks for them many times, and a skeleton of 1024 blocks takes seconds
def _named_shapes(config: LlamaConfig) -> tuple[tuple[str, tuple[int, ...]], ...]:
    parameters = skeleton(config).named_parameters(remove_duplicate=False)
    return tuple((name, tuple(parameter.shape)) for name, parameter in parameters)


def hf_name(name: str) -> str:
    """Hugging Face's name of a parameter.

    >>> hf_name("layers.3.attention.wq.weight"), hf_name("norm.weight")
    ('model.layers.3.self_attn.q_proj.weight', 'model.norm.weight')
    """
    if name in HF_OUTSIDE_BLOCKS:
        return HF_OUTSIDE_BLOCKS[name]
    _, layer, rest = name.split(".", 2)
    return f"model.layers.{layer}.{HF_BLOCK[rest]}"


def hf_rows(name: str, config: LlamaConfig) -> Tensor | None:
    """Order of a parameter's rows at Hugging Face's, `hf = own[rows]`; None where it is the same."""
    rows = hf_linear_rows(config)
    return next((order for own, order in rows.items() if name.endswith(f"{own}.weight")), None)


def shard_dim(name: str) -> int | None:
    """The dimension along which Meta's model-parallel shards cut a parameter; None if each holds a copy.

    >>> shard_dim("layers.0.attention.wq.weight"), shard_dim("layers.0.attention.wo.weight"), shard_dim("norm.weight")
    (0, 1, None)
    """
    module = name.removesuffix(".weight")
    if module.endswith(ROWS):
        return 0
    return 1 if module.endswith(COLUMNS) else None


def is_ignored(name: str) -> bool:
    """Whether a stored tensor is one of the frequency tables that are computed, not loaded."""
    return name.endswith(IGNORED_SUFFIXES)
