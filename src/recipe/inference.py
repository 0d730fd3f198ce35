"""From files to a model ready to answer: weights, tokenizer, adapter, and the prompt template they were trained on.

checkpoint ──load──▶ Llama ──each block Linear as it arrives──▶ Int8Linear ──load_adapter──▶ LoraLinear(Int8Linear)
           (llama)            (int8, with --int8)                           (lora, with --adapter)
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from data import PromptTemplate, TokenEncoder
from int8 import THRESHOLD, Int8Linear, product_backend
from llama import Llama, LlamaConfig, Tokenizer, load_checkpoint, read_config
from llama.decoding import compile_decoding
from lora import load_adapter, lora_layers
from native import c_backend
from recipe.assemble import check_vocabulary, checkpoint_folder, pick_device
from recipe.companions import holder_of_prompt, read_prompt
from recipe.config import MINIATURE
from recipe.fit import check_load_fits, free_memory
from recipe.int8_checkpoint import is_int8_checkpoint, load_int8_checkpoint
from recipe.model_digest import model_digest

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]

LARGE = 1e9
"""Bytes of float32 weights from which on "auto" means bfloat16 on a CPU as well."""


@dataclass(frozen=True)
class Inference:
    """A model ready to answer.

    Attributes:
        model: in eval mode, on its device.
        template: how a question becomes a prompt.
        description: one line: what was loaded, how, onto what, and which template it is asked with, for which reason.
    """

    model: Llama
    tokenizer: Tokenizer
    template: PromptTemplate
    description: str

    def identity(self) -> dict[str, str]:
        """What it answers with, by name: equal for the same weights, adapter and tokenizer, wherever they lie."""
        scalings = sorted({layer.scaling for _, layer in lora_layers(self.model)})
        thresholds = sorted({layer.threshold for layer in self.model.modules() if isinstance(layer, Int8Linear)})
        return {
            "LoRA scaling": ", ".join(map(str, scalings)) or "no adapter",
            "dtype": str(self.model.tok_embeddings.weight.dtype).removeprefix("torch."),
            "int8 threshold": ", ".join(map(str, thresholds)) or "no int8",
            "shape": json.dumps(asdict(self.model.config)),
            "tokenizer": self.tokenizer.digest()[:16],
            "weights": model_digest(self.model, trained=True)[:16],
        }

    def answer_limit(self, prompt: Sequence[int], wanted: int) -> int:
        """The most tokens an answer may have: as many as wanted, or as the window leaves after the prompt."""
        return min(wanted, max(1, self.model.config.max_seq_len - len(prompt)))


@dataclass(frozen=True)
class ModelOptions:
    """The flags that say which model answers. Embed them in a script's options under an empty name."""

    base: Annotated[str, tyro.conf.arg(aliases=["--model"])] = MINIATURE
    """Checkpoint directory, in Meta's or Hugging Face's layout, in int8 or not, or "miniature": the bundled one."""
    adapter: Path | None = None
    """LoRA adapter (peft's format) trained on that base."""
    int8: bool = False
    """Hold the base in 8 bits: LLM.int8()."""
    int8_threshold: float | None = None
    """In int8: features that reach it are multiplied in 16 bits; by default as an int8 base says, else 6.0.
    Take the one that an adapter was trained with."""
    dtype: DtypeName = "auto"
    """Of weights and activations; auto is bfloat16 on a GPU and for large models, else float32."""
    device: str = "auto"
    """auto takes a CUDA GPU if there is one."""
    template: str | None = None
    """Name (alpaca, medalpaca, ...) or JSON file; by default the one saved with the adapter or base, else alpaca."""
    compile: bool = False
    """Let PyTorch compile the steps of one token, for a GPU; it takes a minute at the first answer."""
    ignore_memory: bool = False
    """Load even if it does not seem to fit into the free memory."""

    def load(self) -> Inference:
        """Load what the flags say; see `load_for_inference`."""
        return load_for_inference(
            self.base,
            adapter=self.adapter,
            int8=self.int8,
            int8_threshold=self.int8_threshold,
            dtype=self.dtype,
            device=self.device,
            template=self.template,
            compile=self.compile,
            ignore_memory=self.ignore_memory,
        )


def load_for_inference(
    base: str | Path = MINIATURE,
    *,
    adapter: Path | None = None,
    int8: bool = False,
    int8_threshold: float | None = None,
    dtype: str = "auto",
    device: str = "auto",
    template: str | None = None,
    compile: bool = False,
    ignore_memory: bool = False,
    progress: bool = True,
) -> Inference:
    """Load a model to ask. Arguments as in `ModelOptions`; `progress` shows a bar while weights are read.

    Raises:
        ValueError: a file is missing, damaged or does not fit the others; or the model does not fit into memory.
    """
    folder = checkpoint_folder(base)
    prompt, origin = choose_template(template, adapter, folder)
    where = pick_device(device)
    shape = read_config(folder)
    tokenizer = Tokenizer(folder)
    check_vocabulary(tokenizer, shape)
    width = inference_dtype(dtype, shape, where)
    stored_int8 = is_int8_checkpoint(folder)
    mapped = stored_int8 and where.type == "cpu"  # takes next to no memory of its own
    if not ignore_memory and not mapped:
        check_load_fits(shape, width, int8=int8 or stored_int8, free=free_memory(where))
    if adapter is not None:
        with torch.device("meta"):
            skeleton = Llama(shape)
        load_adapter(skeleton, adapter)  # one that does not fit shows here, not after the long load
    if stored_int8:
        model = load_int8_checkpoint(folder, dtype=width, device=where, threshold=int8_threshold, progress=progress)
    else:
        threshold = THRESHOLD if int8_threshold is None else int8_threshold
        convert = partial(Int8Linear.from_linear, threshold=threshold) if int8 else None
        model = load_checkpoint(folder, dtype=width, device=where, convert_linear=convert, progress=progress)
    if adapter is not None:
        load_adapter(model, adapter)
    if compile:
        compile_decoding(model)
    parts = [str(base), f"{readable(shape.n_parameters)} parameters"]
    parts += [f"int8 by {product_backend(where)}"] if int8 or stored_int8 else []
    parts += [f"single tokens by {c_backend()}"] if _rows_apply(where, width, int8 or stored_int8) else []
    parts.append(str(width).removeprefix("torch."))
    parts += [f"adapter {adapter}"] if adapter is not None else []
    parts += ["single tokens compiled"] if compile and not _rows_apply(where, width, int8 or stored_int8) else []
    parts += [f"on {where}", f"template {prompt.name} ({origin})"]
    return Inference(model.eval(), tokenizer, prompt, ", ".join(parts))


def _rows_apply(device: torch.device, dtype: torch.dtype, int8: bool) -> bool:
    """Whether single tokens take the products of `native.rows`, if there is a C compiler."""
    return device.type == "cpu" and (dtype == torch.bfloat16 or (int8 and dtype == torch.float32))


def choose_template(name: str | None, adapter: Path | None, base: Path) -> tuple[PromptTemplate, str]:
    """The template asked for, or the one saved with the adapter or the base, or Alpaca's; and which of these it is."""
    if name is not None:
        return PromptTemplate.find(name), "as asked"
    holder = holder_of_prompt([base] if adapter is None else [adapter, base])
    if holder is None:
        return PromptTemplate.named("alpaca"), "default: none was saved"
    return read_prompt(holder), f"saved with the {'adapter' if holder == adapter else 'base'}"


def readable(count: int) -> str:
    """A number of parameters as people say it.

    >>> readable(1_131_648), readable(6_738_415_616)
    ('1.13M', '6.74B')
    """
    return f"{count / 1e9:.3g}B" if count >= 1e9 else f"{count / 1e6:.3g}M"


def inference_dtype(name: str, shape: LlamaConfig, device: torch.device) -> torch.dtype:
    """The dtype that `--dtype` means."""
    named = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name in named:
        return named[name]
    if name != "auto":
        raise ValueError(f"dtype {name!r} must be one of auto, {', '.join(named)}")
    small = shape.n_parameters * 4 < LARGE
    return torch.float32 if small and device.type == "cpu" else torch.bfloat16


def prompt_ids(template: PromptTemplate, tokenizer: TokenEncoder, instruction: str, input: str = "") -> list[int]:
    """The ids that an answer is to continue, BOS first.

    A space at the prompt's end is left to the answer: in training it belonged to the piece of the first word, "▁Yes".
    (Where the answer is known, as in training and in scoring an exam, the joint encoding shows where it begins.)
    """
    return tokenizer.encode(template.render(instruction, input).rstrip(" "), bos=True)
