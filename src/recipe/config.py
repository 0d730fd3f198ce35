"""One run's settings: frozen dataclasses, the only place where a default stands.

A TOML file overrides some of them (`config_file.py`), the command line overrides the file. Section and field names are
those of the TOML tables and of the flags: `lr` in `[optim]` is `--optim.lr`. The docstrings below are the help texts.
"""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from int8 import THRESHOLD, Backward

Method = Literal["full", "lora", "lora-8bit"]
Precision = Literal["float32", "bf16", "bf16-mixed"]

MINIATURE = "miniature"
"""In `model.base`, `model.tokenizer` and `data.folder`: the world bundled with the project."""


FREE_TO_CHANGE = {
    *("model.base", "model.tokenizer", "data.folder"),
    *("train.output", "train.device", "train.log_every", "train.eval_every", "train.save_every"),
    *("train.keep_checkpoints", "train.sample_answers", "train.tensorboard", "train.gradient_checkpointing"),
    "train.ignore_memory",
}
"""Settings that may differ between a run and its continuation: they say where and how, and shape no weight."""


@dataclass(frozen=True)
class ModelSection:
    """Which weights to start from."""

    base: Annotated[str, arg(aliases=("--base",))] = ""
    """Checkpoint directory (Meta's or Hugging Face's layout), or "miniature"; empty starts from random weights."""
    tokenizer: str = ""
    """SentencePiece model, a directory that holds one, or "miniature"; empty looks beside the base."""


@dataclass(frozen=True)
class ShapeSection:
    """The shape expected of the base, or the shape to draw at random: a published name, or sizes."""

    name: str = ""
    """A published shape: 7B, 13B, 33B, 65B, LLaMA-2-7B, TinyLlama-1.1B, ..."""
    dim: int = 0
    n_layers: int = 0
    n_heads: int = 0
    n_kv_heads: int = 0
    """0: as many as n_heads."""
    hidden_dim: int = 0
    max_seq_len: int = 512
    tie_embeddings: bool = True


@dataclass(frozen=True)
class LoraSection:
    """Low-rank adapters (arXiv 2106.09685); read by the methods lora and lora-8bit."""

    r: int = 8
    """Rank."""
    alpha: float = 16.0
    """The update is scaled by alpha / r."""
    dropout: float = 0.05
    """Probability of dropping an input feature of the adapter while training."""
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    """Linear modules to adapt, by Hugging Face's or Meta's names."""
    rslora: bool = False
    """Scale by alpha / sqrt(r) instead (arXiv 2312.03732)."""


@dataclass(frozen=True)
class Int8Section:
    """LLM.int8() (arXiv 2208.07339); read by the method lora-8bit."""

    threshold: float = THRESHOLD
    """Features that reach this magnitude are multiplied in 16 bits; 0 multiplies everything in 8."""
    backward: Backward = "fast"
    """How gradients pass through the int8 base. fast: rounded to 8 bits, multiplied by the codes; exact: by the decoded
    weight, in the activations' dtype, which takes longer."""


@dataclass(frozen=True)
class DataSection:
    """What to learn from, and how rows become supervised tokens."""

    objective: Literal["instruct", "text"] = "instruct"
    """instruct: rows of instruction, input, output. text: plain documents."""
    folder: str = "."
    """Directory that `files` are relative to, or "miniature"."""
    files: tuple[str, ...] = ()
    """File names; `name.json:1000` takes a random 1,000 of its rows."""
    template: str = "alpaca"
    """Prompt template: alpaca, alpaca_legacy, alpaca_short, medalpaca, context_question, or a JSON file."""
    max_length: int = 512
    """Tokens per row; longer rows are cut on the right."""
    train_on_prompt: bool = False
    """Let the prompt's tokens count in the loss as well."""
    add_bos: bool = True
    """Begin each row with BOS."""
    add_eos: bool = True
    """End each whole answer with EOS; without it a model never learns to stop."""
    padding: Literal["right", "left"] = "right"
    packing: bool = False
    """Fill rows with several examples; attention and loss stay within each."""
    group_by_length: bool = False
    """Batch rows of similar length together, for less padding."""
    validation_rows: int = 0
    """Rows held out for validation; 0 takes validation_fraction."""
    validation_fraction: float = 0.0
    """Share of the rows held out for validation."""


@dataclass(frozen=True)
class OptimSection:
    """Optimizer and learning-rate schedule."""

    name: Literal["adamw", "adamw8bit"] = "adamw"
    """adamw8bit keeps its moments in block-wise 8 bits (arXiv 2110.02861)."""
    min_8bit_size: int = 4096
    """adamw8bit keeps the moments of smaller tensors in 32 bits."""
    lr: float = 2e-5
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    """Decoupled; applied to matrices only."""
    clip: float = 1.0
    """Largest norm of the whole gradient; 0 does not clip."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the decay to zero after the warm-up."""
    warmup_steps: int = 0
    warmup_ratio: float = 0.0
    """Warm-up as a share of all steps; give this or warmup_steps."""


@dataclass(frozen=True)
class TrainSection:
    """How long, how much at once, and where the results go."""

    method: Method = "lora"
    """full: every weight. lora: adapters on a 16-bit base. lora-8bit: adapters on an int8 base."""
    output: Annotated[str, arg(aliases=("--output",))] = "runs/latest"
    """Directory for the adapter or checkpoint, metrics.jsonl, config.toml, loss.png and report.html."""
    epochs: int = 3
    max_steps: int = 0
    """Stop after so many optimizer steps; 0 means all epochs."""
    batch_size: int = 128
    """Rows per optimizer step."""
    micro_batch_size: int = 4
    """Rows per forward pass; the gradient of batch_size rows is accumulated over several."""
    precision: Precision = "bf16"
    """bf16-mixed keeps float32 master weights under bf16 autocast (method full only)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    seed: int = 42
    device: str = "auto"
    """auto takes a CUDA GPU if there is one."""
    ignore_memory: bool = False
    """Begin even if the run does not seem to fit into the free memory."""
    log_every: int = 1
    """Optimizer steps between lines of metrics.jsonl."""
    eval_every: int = 0
    """Optimizer steps between validations; 0 validates before, after, and at the end of each epoch."""
    save_every: int = 0
    """Optimizer steps between resumable checkpoints; 0 saves only the result."""
    keep_checkpoints: int = 2
    """How many of the newest resumable checkpoints stay."""
    sample_answers: int = 1
    """Validation prompts answered aloud at each validation."""
    tensorboard: bool = False
    """Also write TensorBoard events (extra: logging)."""


@dataclass(frozen=True)
class RunConfig:
    """Fine-tune a LLaMA: full, with LoRA, or with LoRA on an 8-bit base."""

    model: ModelSection = field(default_factory=ModelSection)
    shape: ShapeSection = field(default_factory=ShapeSection)
    lora: LoraSection = field(default_factory=LoraSection)
    int8: Int8Section = field(default_factory=Int8Section)
    data: DataSection = field(default_factory=DataSection)
    optim: OptimSection = field(default_factory=OptimSection)
    train: TrainSection = field(default_factory=TrainSection)

    def __post_init__(self) -> None:
        self._check_numbers()
        train, optim, data = self.train, self.optim, self.data
        if train.batch_size % train.micro_batch_size:
            raise ValueError(
                f"train.batch_size = {train.batch_size} must be a multiple of "
                f"train.micro_batch_size = {train.micro_batch_size}"
            )
        if train.precision == "bf16-mixed" and train.method != "full":
            raise ValueError(
                f"train.precision = bf16-mixed keeps float32 masters of trainable weights; under train.method = "
                f"{train.method} the base is frozen and adapters are float32 anyway: use bf16"
            )
        if optim.warmup_steps and optim.warmup_ratio:
            raise ValueError("give optim.warmup_steps or optim.warmup_ratio, not both")
        if data.validation_rows and data.validation_fraction:
            raise ValueError("give data.validation_rows or data.validation_fraction, not both")
        if data.packing and data.group_by_length:
            raise ValueError("data.packing leaves nothing for data.group_by_length to do: set one of them")

    def _check_numbers(self) -> None:
        """Every number in its range, before anything divides by it."""
        positive = "train.epochs train.batch_size train.micro_batch_size train.log_every train.keep_checkpoints"
        positive += " optim.lr optim.eps optim.min_8bit_size data.max_length"
        not_negative = "train.max_steps train.eval_every train.save_every train.sample_answers optim.warmup_steps"
        not_negative += " optim.clip optim.weight_decay data.validation_rows int8.threshold"
        shares = "optim.warmup_ratio data.validation_fraction"
        for names, fits, range_ in (
            (positive, lambda value: 0 < value < math.inf, "positive, and finite"),
            (not_negative, lambda value: 0 <= value < math.inf, "zero or more, and finite"),
            (shares, lambda value: 0 <= value < 1, "in [0, 1)"),
            ("optim.betas", lambda values: all(0 <= beta < 1 for beta in values), "in [0, 1)"),
            ("train.seed", lambda value: 0 <= value < 2**63, "in [0, 2^63)"),
        ):
            for name in names.split():
                section, field_name = name.split(".")
                value = getattr(getattr(self, section), field_name)
                if not fits(value):
                    raise ValueError(f"{name} = {value} must be {range_}")

    def fingerprint(self) -> dict[str, str]:
        """Every setting that shapes the weights, by its full name: what must agree when a run is resumed."""
        return {
            f"{section}.{name}": repr(value)
            for section, values in asdict(self).items()
            for name, value in values.items()
            if f"{section}.{name}" not in FREE_TO_CHANGE and (section != "int8" or self.train.method == "lora-8bit")
        }

    @property
    def accumulation(self) -> int:
        """Micro-batches per optimizer step."""
        return self.train.batch_size // self.train.micro_batch_size

    @property
    def output(self) -> Path:
        """The run's directory."""
        return Path(self.train.output)
