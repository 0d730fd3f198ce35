"""Decoding: from a prompt's token ids to an answer.

sampling.py    logits -> next id: temperature, top-k, top-p, repetition penalty
generation.py  one prompt, with a KV cache
batched.py     many prompts of different lengths, a batch of them at a time
compiled.py    one-token steps through torch.compile, for GPUs
beam.py        the most probable whole answer
streaming.py   ids -> text as it comes, whole characters only, up to a stop string
"""

from llama.decoding.batched import generate_batch, generate_many, in_order
from llama.decoding.beam import Hypothesis, beam_search
from llama.decoding.compiled import compile_decoding
from llama.decoding.generation import generate
from llama.decoding.sampling import Sampling
from llama.decoding.streaming import stream_text

__all__ = [
    "Hypothesis",
    "Sampling",
    "beam_search",
    "compile_decoding",
    "generate",
    "generate_batch",
    "generate_many",
    "in_order",
    "stream_text",
]
