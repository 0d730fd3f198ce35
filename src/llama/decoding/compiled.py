"""One-token steps through torch.compile, for GPUs: what `llama.one_token` does on a CPU, left to PyTorch's compiler.

One graph serves all blocks: they differ in their weights and in their share of the cache, which are its inputs. Prompts
are read without it, since their lengths differ. An int8 layer inside the graph multiplies a single row weight-only.

Letters: B batch, G key/value heads, S capacity in tokens, T new tokens, D head size.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llama.block import Block
from llama.cache import KVCache
from llama.model import Llama


@dataclass
class LayerCache:
    """One layer's share of a cache: keys and values (B, G, S, D). A block need not know which layer it is."""

    keys: Tensor
    values: Tensor
    length: int

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """As `KVCache.update`, whatever `layer` says."""
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        return self.keys[:, :, :end], self.values[:, :, :end]


def compile_decoding(model: Llama, **options: Any) -> Llama:
    """Let the model's one-token steps be compiled, at the first of them; it takes a minute.

    Args:
        options: of `torch.compile`, such as backend.

    Returns:
        The model given.
    """
    graph = torch.compile(_run, **options)

    def run(block: Block, hidden: Tensor, rotation: Any, mask: Tensor | None, cache: KVCache) -> Tensor:
        cache.check_length(cache.length + hidden.shape[1])
        keys, values = (stored[block.attention.layer, : cache.rows] for stored in (cache.keys, cache.values))
        return graph(block, hidden, rotation, mask, LayerCache(keys, values, cache.length))

    model.compiled_block = run
    return model


def _run(block: Block, hidden: Tensor, rotation: Any, mask: Tensor | None, cache: Any) -> Tensor:
    return block(hidden, rotation, mask, cache)
