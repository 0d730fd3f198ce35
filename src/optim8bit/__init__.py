"""Optimizers with 8-bit state by block-wise dynamic quantization (arXiv 2110.02861).

- `dynamic_map`: the 256 values of a code, signed and unsigned, and the nearest code to a number.
- `blockwise`: tensor ↔ uint8 codes and one scale per block.
- `step`: one step of Adam on such state: the formula, its reference, the guard against underflow.
- `fast_step`: the same step in place, for all parameters: in C, by Triton, or by PyTorch's operators.
- `cuda`: the Triton kernel.
- `moments`: what is kept of a parameter, its names and shapes.
- `sharding`: parameters cut by rows over several processes.
- `adam`: `Adam8bit` and `AdamW8bit`, drop-in `torch.optim.Optimizer`s.
"""

from optim8bit.adam import Adam8bit, AdamW8bit, StateBytes, embeddings_in_32bit, planned_state_bytes
from optim8bit.blockwise import (
    dequantize_blockwise,
    dequantize_blockwise_reference,
    quantize_blockwise,
    quantize_blockwise_reference,
)
from optim8bit.dynamic_map import dynamic_map
from optim8bit.step import Moments8bit, adam8bit_step_reference

__all__ = [
    "Adam8bit",
    "AdamW8bit",
    "Moments8bit",
    "StateBytes",
    "adam8bit_step_reference",
    "dequantize_blockwise",
    "dequantize_blockwise_reference",
    "dynamic_map",
    "embeddings_in_32bit",
    "planned_state_bytes",
    "quantize_blockwise",
    "quantize_blockwise_reference",
]
