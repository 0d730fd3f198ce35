"""LLaMA by hand: the transformer (arXiv 2302.13971), its tokenizer, its checkpoints, its decoding.

config.py      shapes, the published ones by name       norm.py       RMSNorm
rotary.py      rotary position embedding                swiglu.py     the gated feed-forward layer
attention.py   causal grouped-query attention           attend.py     its formula, and the ways to compute it
masks.py       who sees whom: dense masks               documents.py  several documents in a row
block.py       pre-norm block                           cache.py      keys and values for decoding
model.py       the whole model                          linear.py     a linear layer, one row fast
tokenizer.py   text and token ids                       decoding/     sampling, batches, beam search, streaming
one_token.py   one token through all blocks, in C       checkpoint/   Meta's and Hugging Face's files, differences
"""

from llama.attention import Attention
from llama.block import Block
from llama.cache import KVCache
from llama.checkpoint import load_checkpoint, read_config, save_checkpoint
from llama.config import LlamaConfig
from llama.decoding import Hypothesis, beam_search, generate, generate_batch, generate_many, in_order, stream_text
from llama.model import AdapterSlot, Llama
from llama.norm import RMSNorm
from llama.rotary import rotary_table, rotate
from llama.swiglu import SwiGLU
from llama.tokenizer import TOKENIZER_FILE, Tokenizer

__all__ = [
    "TOKENIZER_FILE",
    "AdapterSlot",
    "Attention",
    "Block",
    "Hypothesis",
    "KVCache",
    "Llama",
    "LlamaConfig",
    "RMSNorm",
    "SwiGLU",
    "Tokenizer",
    "beam_search",
    "generate",
    "generate_batch",
    "generate_many",
    "in_order",
    "load_checkpoint",
    "read_config",
    "rotary_table",
    "rotate",
    "save_checkpoint",
    "stream_text",
]
