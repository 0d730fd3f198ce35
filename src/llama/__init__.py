"""LLaMA by hand: the transformer (arXiv 2302.13971), its tokenizer, its checkpoints, its decoding.

config.py       shapes, the published ones by name          norm.py        RMSNorm
rotary.py       rotary position embedding                   swiglu.py      the gated feed-forward layer
attention.py    causal grouped-query attention, masks       cache.py       keys and values for decoding
block.py        pre-norm block                              model.py       the whole model
"""

from llama.attention import Attention
from llama.block import Block
from llama.cache import KVCache
from llama.config import LlamaConfig
from llama.model import AdapterSlot, Llama
from llama.norm import RMSNorm
from llama.rotary import rotary_table, rotate
from llama.swiglu import SwiGLU

__all__ = [
    "AdapterSlot",
    "Attention",
    "Block",
    "KVCache",
    "Llama",
    "LlamaConfig",
    "RMSNorm",
    "SwiGLU",
    "rotary_table",
    "rotate",
]
