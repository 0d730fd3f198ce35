"""Loss curves: does an int8 base, with the gradient in 8 bits too, train to the same place?

    python benchmarks/loss_curves.py --base DIR --data medical_meadow_small.json     train every arm, record, draw
    python benchmarks/loss_curves.py --base DIR --redraw                             only draw what is recorded

Every arm trains LoRA adapters on the same batches in the same order, without dropout. They differ in how the frozen
base multiplies. "exact" decodes the int8 weight for the input's gradient; "fast" quantizes the rows of the output's
gradient and multiplies codes by codes, as SwitchBack does for its input gradients (arXiv 2304.13013).

Two yardsticks. For a curve: the float32 run again, with other initial adapters, the difference that chance makes. For a
gradient, step by step: its distance to the one of the next batch, and to the one that a float32 base gives.

A small model has no outliers, so one case brings them in. Some gains of the norms are multiplied by 20, and the columns
of the weights that read them divided by 20: in float32 the same function, in 8 bits a much harder one.
"""

import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import tyro
from harness import RESULTS, record, relative_error
from loss_figure import SMOOTH, draw, smooth
from peers import OUTLIER_GAIN, OUTLIERS
from rich.progress import track
from torch import Tensor, nn

from data import Batch, collate
from int8 import THRESHOLD, Backward, outlier_columns, set_backward
from llama import Llama, load_checkpoint, save_checkpoint
from recipe import (
    MINIATURE,
    RunConfig,
    build_model,
    build_optimizer,
    checkpoint_folder,
    load_run_data,
    load_tokenizer,
    plain_errors,
    plan_steps,
)
from recipe.config import DataSection, Int8Section, LoraSection, ModelSection, OptimSection, Precision, TrainSection
from training import causal_lm_loss, learning_rate_factor, optimizer_step, validation_loss, warmup_steps

CLAIM = "with the gradient in 8 bits the loss stays nearer to the exact gradient's, on average, than another seed does"
FIGURE = Path(__file__).parent.parent / "docs" / "loss-curves.svg"
SEED = 42
CHECKED = (0.0, 0.02, 0.1, 0.5, 1.0)  # shares of the run at which gradients are compared
THIN = 5  # steps per recorded point

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CPU = torch.device("cpu")
Check = Callable[[Llama, int], None]


@dataclass(frozen=True)
class Options:
    """Loss curves of LoRA on float32, bf16 and int8 bases, the last with exact and with fast gradients."""

    base: str = MINIATURE
    """Checkpoint directory with its tokenizer, or "miniature"."""
    data: Path | None = None
    """A file of instruction, input, output."""
    template: str = "alpaca_short"
    """A vocabulary of 512 spends 200 tokens on the opening sentences of the others."""
    max_length: int = 256
    """Tokens per row."""
    steps: int = 500
    batch: int = 4
    """Rows per step."""
    lr: float = 2e-3
    validation_rows: int = 256
    redraw: bool = False
    """Train nothing; draw the figure from the recorded results."""


@dataclass(frozen=True)
class Arm:
    """One way to multiply by the frozen base.

    Attributes:
        precision: of the base, and of all activations.
        backward: of a base in int8, "exact" or "fast"; None leaves the base in `precision`.
        seed: of the adapters' initial values; the batches are the same for all.
    """

    precision: Precision
    backward: Backward | None = None
    seed: int = SEED


@dataclass(frozen=True)
class Case:
    """What is adapted, and how many outlier channels its base has; the arms by name."""

    targets: tuple[str, ...]
    r: int
    outliers: int
    arms: Mapping[str, Arm]


@dataclass(frozen=True)
class Curve:
    """Nats per supervised token: of every step, and of the held-out rows before the first step and after the last."""

    losses: list[float]
    before: float
    after: float


EXACT = Arm("bf16", "exact")
ARMS = {
    "float32": Arm("float32"),
    "float32, seed 43": Arm("float32", seed=43),
    "float32, seed 44": Arm("float32", seed=44),
    "bf16": Arm("bf16"),
    "int8 exact": EXACT,
    "int8 fast": Arm("bf16", "fast"),
}
IN_FLOAT32 = {"int8 exact, float32": Arm("float32", "exact"), "int8 fast, float32": Arm("float32", "fast")}
SEEDS_IN_INT8 = {
    f"int8 {backward}, seed {seed}": Arm("bf16", backward, seed) for seed in (43, 44) for backward in ("exact", "fast")
}
# What is compared with what, where a case has both.
PAIRS = (
    ("float32, seed 43", "float32"),
    ("float32, seed 44", "float32"),
    ("bf16", "float32"),
    ("int8 exact", "float32"),
    ("int8 fast", "float32"),
    ("int8 fast", "int8 exact"),
    ("int8 fast, seed 43", "int8 exact, seed 43"),
    ("int8 fast, seed 44", "int8 exact, seed 44"),
    ("int8 fast, float32", "int8 exact, float32"),
)
CASES = {
    "q, v; r 8": Case(("q_proj", "v_proj"), 8, 0, ARMS),
    "all seven; r 16": Case(ALL_LINEAR, 16, 0, ARMS | IN_FLOAT32),
    f"q, v; r 8; {OUTLIERS[-1]} outliers": Case(("q_proj", "v_proj"), 8, OUTLIERS[-1], ARMS | SEEDS_IN_INT8),
}


def main() -> None:
    """Train, compare, record, draw."""
    options = tyro.cli(Options, description=__doc__)
    name = "loss-curves-miniature" if options.base == MINIATURE else "loss-curves"
    with plain_errors(), tempfile.TemporaryDirectory() as scratch:
        if not options.redraw:
            run(options, Path(scratch), name)
        if options.base != MINIATURE:
            draw(json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")), FIGURE)


def run(options: Options, scratch: Path, name: str) -> None:
    """The benchmark. scratch: room for a copy of the checkpoint."""
    if options.steps < SMOOTH:
        raise ValueError(f"steps = {options.steps} is too short a run to smooth: take at least {SMOOTH}")
    base = checkpoint_folder(options.base)
    steps, validation = load_batches(options, run_config(options, base))
    rows: list[dict[str, Any]] = []
    notes = [f"{options.steps} steps of {options.batch} rows of up to {options.max_length} tokens"]
    details: dict[str, Any] = {"gradients": [], "curves": {}}
    for title, case in CASES.items():
        config = run_config(options, write_outliers(base, scratch, case.outliers) if case.outliers else base, case)
        curves = {}
        for arm_name, arm in case.arms.items():
            model, check = build_arm(config, arm), None
            if arm == EXACT:
                found = outliers_found(model, steps[0])
                notes.append(f"{title}: outlier columns found, by linear layer: {found}")
                twin = build_arm(config, case.arms["float32"])
                check = partial(compare_gradients, twin, steps, details["gradients"], title)
            curves[arm_name] = train(model, config, steps, validation, label=f"{title}: {arm_name}", check=check)
        rows += [compare(title, a, b, curves) for a, b in PAIRS if a in curves]
        start, end = curves["float32"].before, curves["float32"].after
        notes.append(f"{title}: validation loss of float32 {start:.4f} before, {end:.4f} after")
        details["curves"][title] = {arm_name: thin(curve.losses) for arm_name, curve in curves.items()}
    file = record(name, rows, claim=CLAIM, notes=notes)
    content = json.loads(file.read_text(encoding="utf-8")) | {"steps per point": THIN} | details
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for row in details["gradients"]:
        print(", ".join(f"{key} {value:.4g}" if isinstance(value, float) else str(value) for key, value in row.items()))


# --- Training --------------------------------------------------------------------------------------------------------


def run_config(options: Options, base: Path, case: Case | None = None) -> RunConfig:
    """The settings of a run, as train.py would read them."""
    if options.data is None:
        raise ValueError("--data is not set: name the file to train on, such as medical_meadow_small.json")
    lora = LoraSection(case.r, 2 * case.r, 0.0, case.targets) if case else LoraSection()
    return RunConfig(
        model=ModelSection(str(base), options.base),
        lora=lora,
        data=DataSection(
            folder=str(options.data.parent),
            files=(options.data.name,),
            template=options.template,
            max_length=options.max_length,
            validation_rows=options.validation_rows,
        ),
        optim=OptimSection(lr=options.lr, warmup_steps=min(20, options.steps // 10)),
        train=TrainSection(
            epochs=100, max_steps=options.steps, batch_size=options.batch, micro_batch_size=options.batch, seed=SEED
        ),
    )


def load_batches(options: Options, config: RunConfig) -> tuple[list[Batch], list[Batch]]:
    """One batch per step, and those of the held-out rows."""
    tokenizer = load_tokenizer(options.base, options.base)
    data = load_run_data(config, tokenizer)
    plan = plan_steps(config, list(map(len, data.train)))
    to_batch = partial(collate, pad_id=tokenizer.pad_id)
    steps = [to_batch([[data.train[i] for i in row] for row in rows]) for [rows] in plan.steps]
    held_out = sorted(data.validation, key=len)
    groups = [held_out[start : start + 32] for start in range(0, len(held_out), 32)]
    return steps, [to_batch([[example] for example in group]) for group in groups]


def build_arm(config: RunConfig, arm: Arm) -> Llama:
    """The arm's model with its adapters."""
    method = "lora" if arm.backward is None else "lora-8bit"
    settings = replace(config.train, method=method, precision=arm.precision, seed=arm.seed)
    config = replace(config, train=settings, int8=Int8Section(backward=arm.backward or "exact"))
    tokenizer = load_tokenizer(config.model.tokenizer, config.model.base)
    return build_model(config, tokenizer, CPU, progress=False)


def train(
    model: Llama,
    config: RunConfig,
    steps: Sequence[Batch],
    validation: Sequence[Batch],
    *,
    label: str,
    check: Check | None = None,
) -> Curve:
    """Train on every batch once; `check` sees the model before the first, the last and some steps between."""
    optimizer = build_optimizer(model, config.optim)
    warmup = warmup_steps(len(steps), steps=config.optim.warmup_steps)
    checked = {round(share * (len(steps) - 1)) for share in CHECKED}
    before = validation_loss(model, validation)
    losses = []
    for number, batch in enumerate(track(steps, label)):
        if check is not None and number in checked:
            check(model, number)
        factor = learning_rate_factor(
            number, total_steps=len(steps), warmup_steps=warmup, schedule=config.optim.schedule
        )
        for group in optimizer.param_groups:
            group["lr"] = config.optim.lr * factor
        losses.append(optimizer_step(model, optimizer, [batch], clip=config.optim.clip).loss)
    return Curve(losses, before, validation_loss(model, validation))


def write_outliers(base: Path, scratch: Path, channels: int) -> Path:
    """A copy of the checkpoint that computes the same through larger activations in a few channels, float32."""
    model = load_checkpoint(base, dtype=torch.float32, progress=False)
    chosen = torch.arange(channels) * model.config.dim // channels
    with torch.no_grad():
        for block in model.layers:
            attention, feed_forward = block.attention, block.feed_forward
            for norm, readers in (
                (block.attention_norm, (attention.wq, attention.wk, attention.wv)),
                (block.ffn_norm, (feed_forward.w1, feed_forward.w3)),
            ):
                norm.weight[chosen] *= OUTLIER_GAIN
                for linear in readers:
                    linear.weight[:, chosen] /= OUTLIER_GAIN
    folder = scratch / f"{channels}-outliers"
    save_checkpoint(model, folder)
    return folder


@torch.no_grad()
def outliers_found(model: Llama, batch: Batch) -> dict[str, float]:
    """How many columns of a batch are outliers, by the linear layer that reads them; means over the blocks."""
    counts: dict[str, list[int]] = defaultdict(list)

    def count(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        counts[name].append(len(outlier_columns(inputs[0].flatten(0, 1), THRESHOLD)))

    names = [name for name in model.adapter_layout() if name.startswith("layers.")]
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(partial(count, name.rpartition(".")[2])) for name in names
    ]
    model.hidden_states(batch.token_ids)
    for hook in hooks:
        hook.remove()
    return {name: fmean(numbers) for name, numbers in counts.items()}


# --- Comparing -------------------------------------------------------------------------------------------------------


def compare(title: str, a: str, b: str, curves: Mapping[str, Curve]) -> dict[str, Any]:
    """How far two curves are apart, in nats per token: step by step, on average, and where smoothed."""
    differences = [x - y for x, y in zip(curves[a].losses, curves[b].losses, strict=True)]
    return {
        "case": title,
        "curve": a,
        "against": b,
        "mean |difference|": fmean(map(abs, differences)),
        "mean difference": fmean(differences),
        f"largest over {SMOOTH} steps": max(map(abs, smooth(differences))),
        "validation": curves[a].after,
        "difference there": curves[a].after - curves[b].after,
    }


def compare_gradients(
    twin: Llama, steps: Sequence[Batch], rows: list[dict[str, Any]], title: str, model: Llama, number: int
) -> None:
    """Append how far the fast gradient of a step is from the exact one, and how far others are: ‖g − exact‖ / ‖exact‖.

    Args:
        twin: the same adapters on a float32 base; they are set to the model's.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    twin.load_state_dict(trained, strict=False)
    exact = gradients(model, steps[number])
    following = gradients(model, steps[(number + 1) % len(steps)])
    set_backward(model, "fast")
    fast = gradients(model, steps[number])
    set_backward(model, "exact")

    def error(found: Mapping[str, Tensor], prefix: str = "") -> float:
        return relative_error(joined(found, prefix), joined(exact, prefix))

    rows.append(
        {
            "case": title,
            "update": number + 1,
            "fast": error(fast),
            "fast, first block": error(fast, "layers.0."),
            "fast, last block": error(fast, f"layers.{model.config.n_layers - 1}."),
            "float32 base": error(gradients(twin, steps[number])),
            "next batch": error(following),
            "cosine of fast": torch.cosine_similarity(joined(fast), joined(exact), dim=0).item(),
        }
    )


def gradients(model: Llama, batch: Batch) -> dict[str, Tensor]:
    """The gradient of the mean loss with respect to each trained parameter; the model's own are left empty."""
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    loss = causal_lm_loss(model, batch) / batch.n_supervised
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


def joined(tensors: Mapping[str, Tensor], prefix: str = "") -> Tensor:
    """All whose names begin so, as one vector."""
    return torch.cat([tensor.flatten() for name, tensor in tensors.items() if name.startswith(prefix)])


def thin(values: Sequence[float]) -> list[float]:
    """Means of THIN steps at a time; the mean of a difference is the difference of means."""
    return [round(fmean(values[start : start + THIN]), 6) for start in range(0, len(values), THIN)]


if __name__ == "__main__":
    main()
