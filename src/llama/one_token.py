"""A decoding step for one token, through all blocks in one go: what the loop over the blocks computes, as native code.

A step of a single token is bound by the bytes of the weights. Run block by block, it spends a good part of its time on
hundreds of operations that each take longer to start than to do. `native.RowBlocks` has the whole way through the
blocks; this module tells it where things are.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from llama.block import Block
from llama.cache import KVCache
from native import RowBlock, RowBlocks, RowMatrix, is_single_row


def through_blocks(
    layers: Iterable[Block], hidden: Tensor, rotation: tuple[Tensor, Tensor], cache: KVCache
) -> Tensor | None:
    """The stream after the last block for one token; its keys and values are stored in the cache.

    Args:
        layers: the model's blocks.
        hidden: (1, 1, C), the token's embedding.
        rotation: cos and sin of its position, from `rotary_table`.

    Returns:
        (1, 1, C). None where the blocks have to be run one by one: several tokens or rows, padding, a full cache, a
        gradient wanted, another dtype than bfloat16, a layer of another kind or with a hook (looked
        for at a cache's first single token), no CPU or no C
        compiler. Nothing has changed then.
    """
    if hidden.dtype != torch.bfloat16 or not is_single_row(hidden, hidden.shape[-1]):
        return None
    if cache.rows != 1 or cache.padding is not None or cache.length >= cache.max_len:
        return None
    if cache.row_blocks is None:
        cache.row_blocks = prepare(layers, cache)
    if not cache.row_blocks.usable:
        return None
    cos, sin = (table.flatten() for table in rotation)
    return cache.row_blocks(hidden.flatten(), length=cache.length, cos=cos, sin=sin).view_as(hidden)


def prepare(layers: Iterable[Block], cache: KVCache) -> RowBlocks:
    """The blocks and their cache as native code takes them; not usable if a layer is of a kind it does not know."""
    first, *_ = layers = list(layers)
    blocks = [row_block(block, cache) for block in layers]
    known = [block for block in blocks if block is not None]
    if len(known) != len(blocks):
        return RowBlocks([], n_heads=0, eps=0.0)
    n_heads = known[0].matrices[0].weight.shape[0] // first.attention.head_dim
    return RowBlocks(known, n_heads=n_heads, eps=first.attention_norm.eps)


def row_block(block: Block, cache: KVCache) -> RowBlock | None:
    """Where a block's parts and its share of the cache lie; None if a layer has a hook or is of another kind."""
    if any(module._forward_hooks or module._forward_pre_hooks for module in block.modules()):
        return None  # somebody watches a layer
    attention, feed_forward = block.attention, block.feed_forward
    linears = (
        attention.wq,
        attention.wk,
        attention.wv,
        attention.wo,
        feed_forward.w1,
        feed_forward.w2,
        feed_forward.w3,
    )
    matrices = [linear.row_matrix() if hasattr(linear, "row_matrix") else None for linear in linears]
    known = [matrix for matrix in matrices if isinstance(matrix, RowMatrix)]
    if len(known) != len(linears):
        return None
    keys, values = cache.keys[attention.layer, 0], cache.values[attention.layer, 0]
    gains = (block.attention_norm.weight.detach(), block.ffn_norm.weight.detach())
    return RowBlock(*gains, known, keys, values)
