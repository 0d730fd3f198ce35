"""From a run's settings to what it trains: the model, its optimizer, and at the end the files that are its result.

checkpoint ──load──▶ Llama ──each block Linear as it arrives──▶ Int8Linear ──add_lora──▶ LoraLinear(Int8Linear)
           (llama)            (int8, method lora-8bit)                      (lora, methods lora and lora-8bit)
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

import data.miniature
from data import PromptTemplate
from int8 import Int8Linear, set_backward
from llama import Llama, LlamaConfig, Tokenizer, load_checkpoint, read_config, save_checkpoint
from llama.checkpoint.load import fill_parameters
from lora import LoraConfig, add_lora, save_adapter
from optim8bit import AdamW8bit, embeddings_in_32bit
from recipe.companions import copy_companions, write_prompt
from recipe.config import MINIATURE, OptimSection, RunConfig, ShapeSection
from recipe.int8_checkpoint import is_int8_checkpoint, load_int8_checkpoint


def checkpoint_folder(base: str | Path) -> Path:
    """The directory that `--base` means."""
    return data.miniature.folder() / "base" if str(base) == MINIATURE else Path(base)


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
    return Tokenizer(checkpoint_folder(path or base))


def model_shape(config: RunConfig, vocab_size: int | None = None) -> LlamaConfig:
    """The base's shape, read without its weights; if `[shape]` says something else, an error.

    Args:
        vocab_size: of the tokenizer; needed only to draw a model of sizes given in `[shape]`.
    """
    wanted = config.shape
    if config.model.base:
        found = read_config(checkpoint_folder(config.model.base))
        if config.train.method != "lora-8bit" and is_int8_checkpoint(checkpoint_folder(config.model.base)):
            raise ValueError(
                f"{config.model.base} holds int8 weights, which train.method = {config.train.method!r} cannot train: "
                "set it to lora-8bit, or model.base to the 16-bit checkpoint that they were made from"
            )
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
    shape = empty_model(config, tokenizer).config  # a misspelt target shows here, not after the long load
    dtype = storage_dtype(config)
    if config.model.base:
        folder = checkpoint_folder(config.model.base)
        if is_int8_checkpoint(folder):
            threshold = config.int8.threshold
            model = load_int8_checkpoint(folder, dtype=dtype, device=device, threshold=threshold, progress=progress)
        else:
            convert = linear_conversion(config)
            model = load_checkpoint(folder, dtype=dtype, device=device, convert_linear=convert, progress=progress)
    else:
        model = Llama(shape).init_weights(_seeded(config)).to(device=device, dtype=dtype)
    return prepare_for_training(model, config)


def empty_model(config: RunConfig, tokenizer: Tokenizer) -> Llama:
    """The model to train without its numbers, on the meta device: names, shapes, dtypes, and what requires gradients.

    Raises:
        ValueError: whatever does not fit (shape, tokenizer, window, adapter targets).
    """
    shape = model_shape(config, tokenizer.vocab_size)
    check_vocabulary(tokenizer, shape)
    check_window(config, shape)
    with torch.device("meta"):
        return prepare_for_training(Llama(shape).to(storage_dtype(config)), config)


@torch.no_grad()
def fill_model(model: Llama, config: RunConfig, put: Callable[[Tensor, Tensor], object], *, progress: bool) -> None:
    """Give an empty model of the method full its numbers, in place: those that `build_model` gives, bit for bit.

    Args:
        model: from `empty_model`, its parameters now in memory, maybe spread over several processes.
        put: copies a whole tensor into a parameter, which may have some of its rows only.

    At any time one tensor is whole in memory, besides what the parameters hold.
    """
    if config.model.base:
        fill_parameters(model, checkpoint_folder(config.model.base), put=put, progress=progress)
    else:
        Llama.init_weights(cast(Llama, _OneByOne(model, put)), _seeded(config))


@dataclass(frozen=True)
class _OneByOne:
    """As much of a Llama as `Llama.init_weights` looks at; each parameter is whole only while it is drawn."""

    model: Llama
    put: Callable[[Tensor, Tensor], object]

    @property
    def config(self) -> LlamaConfig:
        return self.model.config

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.model.named_parameters():
            whole = torch.empty(parameter.shape)
            yield name, whole
            self.put(parameter, whole)


def _seeded(config: RunConfig) -> torch.Generator:
    return torch.Generator().manual_seed(config.train.seed)


def prepare_for_training(model: Llama, config: RunConfig) -> Llama:
    """Add the adapters and set what requires gradients; works on the meta device too."""
    if config.train.method == "full":
        model.requires_grad_(True)
    else:
        lora = config.lora
        settings = LoraConfig(lora.r, lora.alpha, lora.dropout, lora.targets, lora.rslora)
        add_lora(model, settings, generator=_seeded(config))
    set_backward(model, config.int8.backward)  # of an int8 base; a layer's own default is the paper's, exact
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

    Vectors (the norms' gains) are not decayed. Embeddings keep 32-bit state under adamw8bit. So does everything where
    adamw trains 16-bit weights: torch's own would hold their moments in 16 bits, where v·0.999 rounds back to v.
    """
    narrow = any(p.dtype.itemsize < 4 for p in model.parameters() if p.requires_grad)
    ours = settings.name == "adamw8bit" or narrow
    groups: list[dict[str, Any]] = []
    for group in embeddings_in_32bit(model):
        matrices = [p for p in group["params"] if p.ndim >= 2]
        vectors = [p for p in group["params"] if p.ndim < 2]
        groups += [{**group, "params": matrices}] if matrices else []
        groups += [{**group, "params": vectors, "weight_decay": 0.0}] if vectors else []
    if settings.name == "adamw":
        groups = [{**group, "bits": 32} for group in groups]
    options: dict[str, Any] = {"lr": settings.lr, "betas": settings.betas, "eps": settings.eps}
    options["weight_decay"] = settings.weight_decay
    if not ours:
        return torch.optim.AdamW(groups, **options)
    optimizer = AdamW8bit(groups, **options, min_8bit_size=settings.min_8bit_size)
    _say_what_is_split(model, optimizer)
    return optimizer


def _say_what_is_split(model: nn.Module, optimizer: AdamW8bit) -> None:
    """Name what has 32-bit moments because its blocks would lie on two processes; the first process says it."""
    split = {id(p) for p in optimizer.split_blocks()}
    names = [f"{name} {tuple(p.shape)}" for name, p in model.named_parameters() if id(p) in split]
    if names and torch.distributed.get_rank() == 0:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        warnings.warn(
            f"8-bit Adam keeps 32-bit moments of {', '.join(names[:3])}{more}: on {torch.distributed.get_world_size()} "
            "processes a block of 256 would lie on two of them",
            stacklevel=3,
        )


def save_result(
    model: Llama,
    config: RunConfig,
    template: PromptTemplate,
    *,
    require_trained: bool = True,
    read: Callable[[str], Tensor] | None = None,
) -> Path:
    """Write what was trained, with its prompt template: `adapter/` in peft's format, or `model/` in Hugging Face's.

    Args:
        require_trained: refuse an adapter that would change nothing.
        read: of a model spread over several processes, fetches the whole parameter of a name.
    """
    if config.train.method == "full":
        folder = config.output / "model"
        save_checkpoint(model, folder, layout="hf", read=read)
        copy_companions(folder, tokenizer=checkpoint_folder(config.model.tokenizer or config.model.base))
    else:
        folder = config.output / "adapter"
        save_adapter(model, folder, base_model=config.model.base, require_trained=require_trained)
    write_prompt(template, folder)
    return folder


def check_vocabulary(tokenizer: Tokenizer, shape: LlamaConfig) -> None:
    """Every id the tokenizer can produce must have an embedding."""
    if tokenizer.vocab_size > shape.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} pieces, the embedding {shape.vocab_size} rows: "
            "they do not belong together; give the tokenizer.model of this base"
        )


def check_window(config: RunConfig, shape: LlamaConfig) -> None:
    """Rows may not be longer than the context the model was trained for."""
    if config.data.max_length > shape.max_seq_len:
        raise ValueError(
            f"data.max_length = {config.data.max_length} exceeds the model's window of {shape.max_seq_len} tokens: "
            "lower it; the model has never seen later positions"
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
