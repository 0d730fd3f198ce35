"""A LLaMA and a SentencePiece tokenizer small enough for every test to make its own."""

import io
from pathlib import Path

import sentencepiece
import torch

from llama.config import LlamaConfig
from llama.model import Llama

CORPUS = [
    "Asthma narrows the airways, and the patient wheezes.",
    "Gout is treated with allopurinol; the patient rests.",
    "What is the treatment of asthma?  It is salbutamol.",
    "Below is an instruction that describes a task.",
    "### Instruction: ### Input: ### Response:",
    "The fever (39.5 °C) lasted 3 days, 12 hours and 7 minutes.",
]


def tiny_llama(
    seed: int, *, vocab_size: int = 61, n_heads: int = 4, n_kv_heads: int = 2, max_seq_len: int = 64, std: float = 0.2
) -> Llama:
    """A random two-layer LLaMA in eval mode. `std` is wide enough that its distributions are far from uniform."""
    config = LlamaConfig(vocab_size, 32, 2, n_heads, n_kv_heads, 48, max_seq_len=max_seq_len)
    return Llama(config).init_weights(torch.Generator().manual_seed(seed), std=std).eval()


def train_tokenizer(folder: Path, **options: object) -> Path:
    """Train a tokenizer the way LLaMA's was: BPE, byte fallback, no normalisation, bos 1, eos 2, unk 0, no pad."""
    settings: dict[str, object] = {
        "model_type": "bpe",
        "vocab_size": 330,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "character_coverage": 1.0,
        "minloglevel": 2,
    }
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(CORPUS), model_writer=model, **(settings | options))
    file = folder / "tokenizer.model"
    file.write_bytes(model.getvalue())
    return file
