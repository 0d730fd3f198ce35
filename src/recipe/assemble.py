"""Where the packages meet: from settings to a model ready to train, and from files to a model ready to answer.

checkpoint ──load──▶ Llama ──each block Linear as it arrives──▶ Int8Linear ──add_lora──▶ LoraLinear(Int8Linear)
           (llama)            (int8, method lora-8bit)                      (lora, methods lora and lora-8bit)
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import data.miniature
from data import PromptTemplate
from int8 import Int8Linear
from llama import Llama, LlamaConfig, Tokenizer, load_checkpoint, read_config, save_checkpoint
from lora import LoraConfig, add_lora, load_adapter, save_adapter
from optim8bit import AdamW8bit, embeddings_in_32bit
from recipe.config import MINIATURE, OptimSection, RunConfig, ShapeSection
from recipe.prompt_file import PROMPT_FILE, read_prompt, write_prompt

TOKENIZER_FILE = "tokenizer.model"


@dataclass(frozen=True)
class Inference:
    """A model ready to answer.

    Attributes:
        model: in eval mode, on its device.
        template: how a question becomes a prompt.
        description: one line: what was loaded, how, and onto what.
    """

    model: Llama
    tokenizer: Tokenizer
    template: PromptTemplate
    description: str


def bundled_base() -> Path:
    """The miniature's pretrained checkpoint."""
    return data.miniature.folder() / "base"


def checkpoint_folder(base: str | Path) -> Path:
    """The directory that `model.base` means."""
    return bundled_base() if str(base) == MINIATURE else Path(base)


def data_files(folder: str, files: tuple[str, ...]) -> list[tuple[Path, int | None]]:
    """The data files with the number of rows to draw from each, from entries such as `name.json:1000`.

    >>> data_files("meadow", ("flashcards.json", "wikidoc.json:10000"))
    [(PosixPath('meadow/flashcards.json'), None), (PosixPath('meadow/wikidoc.json'), 10000)]
    """
    root = data.miniature.folder() if folder == MINIATURE else Path(folder)
    parts = []
    for entry in files:
        name, _, count = entry.rpartition(":")
        named = bool(name) and count.isdigit()
        parts.append((root / (name if named else entry), int(count) if named else None))
    return parts


def pick_device(name: str) -> torch.device:
    """The device that `train.device` means; "auto" is the first CUDA GPU, or the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used here ({error}); try auto or cpu") from error


def load_tokenizer(path: str, base: str) -> Tokenizer:
    """The tokenizer at `path`, or beside the base."""
    if not path and not base:
        raise ValueError("neither model.tokenizer nor model.base is set: give a tokenizer.model")
    return Tokenizer(Path(path) if path else checkpoint_folder(base))


def model_shape(config: RunConfig, vocab_size: int | None = None) -> LlamaConfig:
    """The base's shape, read without its weights; if `[shape]` says something else, an error.

    Args:
        vocab_size: of the tokenizer; needed only to draw a model of sizes given in `[shape]`.
    """
    wanted = config.shape
    if config.model.base:
        found = read_config(checkpoint_folder(config.model.base))
        if wanted.name and _sizes(LlamaConfig.named(wanted.name)) != _sizes(found):
            raise ValueError(
                f"{config.model.base} is not a {wanted.name}: (dim, layers, heads, hidden) is {_sizes(found)} "
                f"instead of {_sizes(LlamaConfig.named(wanted.name))}; set shape.name or model.base to match"
            )
        return found
    if wanted.name:
        return LlamaConfig.named(wanted.name)
    if not wanted.dim:
        raise ValueError("nothing to train: set model.base to a checkpoint directory, or [shape] for random weights")
    if vocab_size is None:
        raise ValueError("the sizes in [shape] need model.tokenizer, whose vocabulary completes them")
    return _drawn_shape(wanted, vocab_size)


def build_model(config: RunConfig, tokenizer: Tokenizer, device: torch.device, *, progress: bool = True) -> Llama:
    """The model to train: base loaded or drawn, in 8 bits if the method says so, with adapters if it says so.

    Raises:
        ValueError: whatever does not fit (shape, tokenizer, adapter targets), before weights are read where possible.
    """
    shape = model_shape(config, tokenizer.vocab_size)
    check_vocabulary(tokenizer, shape)
    dtype = storage_dtype(config)
    if config.model.base:
        folder = checkpoint_folder(config.model.base)
        model = load_checkpoint(
            folder, dtype=dtype, device=device, convert_linear=linear_conversion(config), progress=progress
        )
    else:
        generator = torch.Generator().manual_seed(config.train.seed)
        model = Llama(shape).init_weights(generator).to(device=device, dtype=dtype)
    return prepare_for_training(model, config)


def prepare_for_training(model: Llama, config: RunConfig) -> Llama:
    """Add the adapters and set what requires gradients; works on the meta device too."""
    if config.train.method == "full":
        model.requires_grad_(True)
    else:
        lora = config.lora
        generator = torch.Generator().manual_seed(config.train.seed)
        add_lora(model, LoraConfig(lora.r, lora.alpha, lora.dropout, lora.targets, lora.rslora), generator=generator)
    model.gradient_checkpointing = config.train.gradient_checkpointing
    return model.train()


def linear_conversion(config: RunConfig) -> Callable[[nn.Linear], nn.Module] | None:
    """What becomes of each block's Linear as it arrives; None leaves it."""
    if config.train.method != "lora-8bit":
        return None
    return partial(Int8Linear.from_linear, threshold=config.int8.threshold)


def storage_dtype(config: RunConfig) -> torch.dtype:
    """The dtype of the base's weights: float32 where they are trained as masters, else what `precision` says."""
    return torch.bfloat16 if config.train.precision == "bf16" else torch.float32


def build_optimizer(model: nn.Module, settings: OptimSection) -> torch.optim.Optimizer:
    """AdamW or AdamW8bit over what requires gradients.

    Vectors (the norms' gains) are not decayed. Embeddings keep 32-bit state under adamw8bit.
    """
    groups: list[dict[str, Any]] = []
    for group in embeddings_in_32bit(model):
        matrices = [p for p in group["params"] if p.ndim >= 2]
        vectors = [p for p in group["params"] if p.ndim < 2]
        groups += [{**group, "params": matrices}] if matrices else []
        groups += [{**group, "params": vectors, "weight_decay": 0.0}] if vectors else []
    optimizer = AdamW8bit if settings.name == "adamw8bit" else torch.optim.AdamW
    return optimizer(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay)


def save_result(model: Llama, config: RunConfig, template: PromptTemplate) -> Path:
    """Write what was trained, with its prompt template: `adapter/` in peft's format, or `model/` in Hugging Face's."""
    if config.train.method == "full":
        folder = config.output / "model"
        save_checkpoint(model, folder, layout="hf")
        tokenizer = Path(config.model.tokenizer) if config.model.tokenizer else checkpoint_folder(config.model.base)
        shutil.copyfile(tokenizer / TOKENIZER_FILE if tokenizer.is_dir() else tokenizer, folder / TOKENIZER_FILE)
    else:
        folder = config.output / "adapter"
        save_adapter(model, folder, base_model=config.model.base, require_trained=True)
    write_prompt(template, folder)
    return folder


def load_for_inference(
    base: Path | None,
    *,
    adapter: Path | None = None,
    int8: bool = False,
    dtype: str = "auto",
    template: str | None = None,
    device: str = "auto",
    progress: bool = True,
) -> Inference:
    """Load a model to ask.

    Args:
        base: checkpoint directory; None means the bundled miniature.
        adapter: directory of an adapter trained on that base.
        int8: convert each block Linear to LLM.int8() as it arrives.
        dtype: float32, bfloat16, float16 or auto (bfloat16 on a GPU and for models over 1 GB, else float32).
        template: a template's name or JSON file; None takes the one saved with the adapter or base, else alpaca.

    Raises:
        ValueError: a file is missing, damaged or does not fit the others.
    """
    folder = bundled_base() if base is None else base
    where = pick_device(device)
    shape = read_config(folder)
    tokenizer = Tokenizer(folder)
    check_vocabulary(tokenizer, shape)
    width = inference_dtype(dtype, shape, where)
    convert = partial(Int8Linear.from_linear, threshold=6.0) if int8 else None
    model = load_checkpoint(folder, dtype=width, device=where, convert_linear=convert, progress=progress)
    if adapter is not None:
        load_adapter(model, adapter)
    prompt = choose_template(template, adapter, folder)
    parts = [f"{folder}", f"{shape.n_parameters / 1e9:.3g}B parameters"]
    parts.append(f"int8 + {str(width).removeprefix('torch.')}" if int8 else str(width).removeprefix("torch."))
    parts += [f"adapter {adapter}"] if adapter is not None else []
    return Inference(model.eval(), tokenizer, prompt, ", ".join([*parts, f"on {where}"]))


def choose_template(name: str | None, adapter: Path | None, base: Path) -> PromptTemplate:
    """The template asked for, or the one saved with the adapter or the base, or Alpaca's."""
    if name is not None:
        return PromptTemplate.find(name)
    for folder in (adapter, base):
        if folder is not None and (folder / PROMPT_FILE).exists():
            return read_prompt(folder)
    return PromptTemplate.named("alpaca")


def inference_dtype(name: str, shape: LlamaConfig, device: torch.device) -> torch.dtype:
    """The dtype that `--dtype` means."""
    named = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name in named:
        return named[name]
    if name != "auto":
        raise ValueError(f"dtype {name!r} must be one of auto, {', '.join(named)}")
    small = shape.n_parameters * 4 < 1e9
    return torch.float32 if small and device.type == "cpu" else torch.bfloat16


def check_vocabulary(tokenizer: Tokenizer, shape: LlamaConfig) -> None:
    """Every id the tokenizer can produce must have an embedding."""
    if tokenizer.vocab_size > shape.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} pieces, the embedding {shape.vocab_size} rows: "
            "they do not belong together; give the tokenizer.model of this base"
        )


def _drawn_shape(sizes: ShapeSection, vocab_size: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab_size,
        dim=sizes.dim,
        n_layers=sizes.n_layers,
        n_heads=sizes.n_heads,
        n_kv_heads=sizes.n_kv_heads or sizes.n_heads,
        hidden_dim=sizes.hidden_dim,
        max_seq_len=sizes.max_seq_len,
        tie_embeddings=sizes.tie_embeddings,
    )


def _sizes(shape: LlamaConfig) -> tuple[int, int, int, int]:
    return shape.dim, shape.n_layers, shape.n_heads, shape.hidden_dim
