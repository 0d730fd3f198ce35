"""What both benchmarks of AdamW share: the tensors of an adapter, and the bytes of state that an optimizer keeps."""

from collections.abc import Iterator

import torch
from torch import Tensor
from training_peers import LORA

from llama import LlamaConfig


def adapter_shapes(config: LlamaConfig) -> list[tuple[int, int]]:
    """Those of A (r, d) and B (k, r) for q, k, v, o, gate, up and down in every block.

    >>> len(adapter_shapes(LlamaConfig.named("7B")))
    448
    """
    narrow, kv, wide = config.dim, config.n_kv_heads * config.head_dim, config.hidden_dim
    block = [(narrow, narrow), (narrow, kv), (narrow, kv), (narrow, narrow)]  # (d, k)
    block += [(narrow, wide), (narrow, wide), (wide, narrow)]
    return [shape for d, k in block * config.n_layers for shape in ((LORA.r, d), (k, LORA.r))]


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Of all tensors in an optimizer's state; a table that all parameters share counts once."""
    values = [value for state in optimizer.state.values() for value in state.values()]
    plain = [part for value in filter(torch.is_tensor, values) for part in _plain(value)]
    return sum({part.data_ptr(): part.nbytes for part in plain}.values())


def _plain(tensor: Tensor) -> Iterator[Tensor]:
    """The tensor, or those that one of torchao's class is made of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _plain(getattr(tensor, name))
