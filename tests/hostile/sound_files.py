"""Sound model files of every kind that is read, as small as they come, and the reader of each, for tests to spoil.

A `Kind` makes a directory in which one file is to be damaged, and says how that directory is read in earnest.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tiny_models import train_tokenizer

from files import read_safetensors
from llama import Llama, LlamaConfig, Tokenizer, load_checkpoint, save_checkpoint
from llama.checkpoint import apply_diff, make_diff, read_config
from lora import LoraConfig, add_lora, load_adapter, save_adapter
from recipe.int8_checkpoint import load_int8_checkpoint, write_int8_checkpoint

SHAPE = LlamaConfig(vocab_size=20, dim=8, n_layers=1, n_heads=2, n_kv_heads=1, hidden_dim=8)
TEXTS = ("The patient wheezes.", "", "\0 ﬁ Ａ 한국어 e\u0301 ½", "a" * 300)


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Attributes:
        name: how tables call it.
        file: its path in the directory that `make` fills.
        make: writes a sound directory.
        read: reads it all, as a program of this project would.
        is_text: whether its bytes are JSON.
    """

    name: str
    file: str
    make: Callable[[Path], None]
    read: Callable[[Path], object]
    is_text: bool = False


def tiny_model(seed: int = 0) -> Llama:
    return Llama(SHAPE).init_weights(torch.Generator().manual_seed(seed), std=0.2).eval()


def make_safetensors(folder: Path) -> None:
    save_checkpoint(tiny_model(), folder)


def make_indexed(folder: Path) -> None:
    save_checkpoint(tiny_model(), folder, max_shard_bytes=1500)


def make_bin(folder: Path) -> None:
    """As transformers did before safetensors."""
    save_checkpoint(tiny_model(), folder)
    torch.save(read_safetensors(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def make_meta(folder: Path) -> None:
    save_checkpoint(tiny_model(), folder, layout="meta")


def make_meta_shards(folder: Path) -> None:
    save_checkpoint(Llama(LlamaConfig(20, 8, 1, 2, 2, 8)).init_weights(), folder, layout="meta", model_parallel=2)


def make_adapter(folder: Path) -> None:
    model = tiny_model()
    add_lora(model, LoraConfig(r=2, alpha=4, dropout=0.0, targets=("wq", "wv")))
    save_adapter(model, folder)


def make_old_adapter(folder: Path) -> None:
    make_adapter(folder)
    torch.save(read_safetensors(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()


def make_int8(folder: Path) -> None:
    save_checkpoint(tiny_model(), folder / "base")
    write_int8_checkpoint(folder / "base", folder / "int8", progress=False)


def make_difference(folder: Path) -> None:
    save_checkpoint(tiny_model(0), folder / "base")
    save_checkpoint(tiny_model(1), folder / "tuned")
    make_diff(folder / "base", folder / "tuned", folder / "diff", progress=False)


def make_tokenizer(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    train_tokenizer(folder)


def read_checkpoint(folder: Path) -> None:
    load_checkpoint(folder, progress=False)


def read_adapter(folder: Path) -> None:
    load_adapter(tiny_model(), folder)


def read_int8(folder: Path) -> None:
    load_int8_checkpoint(folder / "int8", progress=False)


def read_difference(folder: Path) -> None:
    apply_diff(folder / "base", folder / "diff", folder / "out", progress=False)


def read_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(folder)
    for text in TEXTS:
        tokenizer.decode(tokenizer.encode(text))
    tokenizer.decode(range(tokenizer.vocab_size))


KINDS = {
    kind.name: kind
    for kind in (
        Kind("model.safetensors", "model.safetensors", make_safetensors, read_checkpoint),
        Kind("pytorch_model.bin", "pytorch_model.bin", make_bin, read_checkpoint),
        Kind("consolidated.00.pth", "consolidated.00.pth", make_meta, read_checkpoint),
        Kind("adapter_model.safetensors", "adapter_model.safetensors", make_adapter, read_adapter),
        Kind("adapter_model.bin", "adapter_model.bin", make_old_adapter, read_adapter),
        Kind("int8 model.safetensors", "int8/model.safetensors", make_int8, read_int8),
        Kind("difference model.safetensors", "diff/model.safetensors", make_difference, read_difference),
        Kind("config.json", "config.json", make_safetensors, read_checkpoint, is_text=True),
        Kind("config.json alone", "config.json", make_safetensors, read_config, is_text=True),
        Kind("params.json", "params.json", make_meta, read_checkpoint, is_text=True),
        Kind("index.json", "model.safetensors.index.json", make_indexed, read_checkpoint, is_text=True),
        Kind("adapter_config.json", "adapter_config.json", make_adapter, read_adapter, is_text=True),
        Kind("int8 config.json", "int8/config.json", make_int8, read_int8, is_text=True),
        Kind("difference config.json", "diff/config.json", make_difference, read_difference, is_text=True),
        Kind("tokenizer.model", "tokenizer.model", make_tokenizer, read_tokenizer),
    )
}
