"""One frozen linear layer: int8 against bf16, bitsandbytes and torchao; forward, and forward with the input's gradient.

    python benchmarks/linear.py

    Y = X Ŵ,    dX = dY Ŵᵀ        X (M, K), outlier columns 20 times larger; W (K, N), frozen: no dW

Each output is compared with the float32 product of the same bf16 operands before anything is timed. The limit is the
same product of codes, already there, by `torch._int_mm`, timed in turns with the rest; where a backward pass multiplies
in 16 bits, its part of the limit is that product.

bitsandbytes has two ways on a CPU, and both are timed: in evaluation mode LLM.int8() (`MatMul8bitLt`); in training mode
it decodes the weight and multiplies in bf16 (`MatMul8bitFp`). torchao quantizes each row of X and has no outliers; it
is compiled, as it is meant to be, and gives no gradient.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import tyro
from harness import interleaved, medians, record, relative_error
from peers import DTYPE, OUTLIER_GAIN, OUTLIERS, bitsandbytes_linear
from torch import Tensor, nn

from int8 import THRESHOLD, Int8Linear
from recipe import plain_errors

ROWS = (512, 2048)
SHAPES = ((4096, 4096), (4096, 11008))  # (K, N) in a block of LLaMA-7B
STD = 0.02
BASELINE = "bf16 linear"
FORWARD, BOTH = "forward", "forward + dX"
CLAIM = "a frozen int8 linear layer, forward and with its input's gradient, takes less time than bf16's"

# Largest relative error with which a timing still means something: 8-bit codes of both operands make 1 to 1.5 %.
# Outlier columns widen the steps of torchao's codes for a whole row.
PARITY_BOUND = 0.03
PARITY_BOUND_WITHOUT_OUTLIERS = 0.1
TORCHAO = "torchao int8, compiled"


@dataclass(frozen=True)
class Options:
    """Milliseconds of one linear layer."""

    repeats: int = 3
    rows: tuple[int, ...] = ROWS
    """M: tokens in the batch."""
    skip_peers: bool = False
    """Time ours alone."""


@dataclass(frozen=True)
class Case:
    """One shape with its operands, all bf16.

    Attributes:
        x, grad: X (M, K) and dY (M, N).
        linear: holds Wᵀ (N, K).
        outliers: columns of X that are raised.
    """

    x: Tensor
    grad: Tensor
    linear: nn.Linear
    outliers: int
    label: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", f"{len(self.x)} × {self.linear.in_features} → {self.linear.out_features}")


def main() -> None:
    """Compare, time, record."""
    options = tyro.cli(Options, description=__doc__)
    with plain_errors():
        rows = [row for case in cases(options) for row in measure(case, options)]
        notes = [
            f"{options.repeats} repeats, in turns, of each shape",
            "bitsandbytes / it: the faster of bitsandbytes' two ways, by what the row shows",
            "relative error: of Y under forward, of dX under forward + dX, from float32 products",
        ]
        record("linear-ours" if options.skip_peers else "linear", rows, claim=CLAIM, notes=notes)


def cases(options: Options) -> Iterator[Case]:
    """Every shape with and without outlier columns."""
    generator = torch.Generator().manual_seed(0)
    for inner, columns in SHAPES:
        linear = nn.Linear(inner, columns, bias=False, dtype=DTYPE).requires_grad_(False)
        nn.init.normal_(linear.weight, std=STD, generator=generator)
        for n_rows in options.rows:
            for outliers in OUTLIERS:
                x = torch.randn(n_rows, inner, generator=generator)
                x[:, torch.arange(outliers) * inner // max(1, outliers)] *= OUTLIER_GAIN
                yield Case(x.to(DTYPE), torch.randn(n_rows, columns, generator=generator).to(DTYPE), linear, outliers)


def measure(case: Case, options: Options) -> Iterator[dict[str, Any]]:
    """A table row for each layer and each of the two works."""
    layers = line_up(case.linear, skip_peers=options.skip_peers)
    works: dict[tuple[str, str], Callable[[], Tensor]] = {}
    for what, layer in layers.items():
        if what != "ours int8 fast":  # its forward pass is that of "exact"
            works[FORWARD, what] = partial(forward, layer, case)
    for what, layer in layers.items():
        if what != TORCHAO:  # which has no gradient
            works[BOTH, what] = partial(forward_backward, layer, case)
    errors = {key: check_parity(key, work(), case) for key, work in works.items()}
    named = {" / ".join(key): work for key, work in works.items()}
    found = medians(interleaved({**named, **products(case)}, options.repeats))
    for (work, what), error in errors.items():
        seconds = found[f"{work} / {what}"]
        peers = [found[name] for name in named if name.startswith(f"{work} / bitsandbytes")]
        limit = least_seconds(work, what, found)
        yield {
            "shape": case.label,
            "outlier columns": case.outliers,
            "work": work,
            "what": "ours int8" if (work, what) == (FORWARD, "ours int8 exact") else what,
            "ms": 1e3 * seconds,
            f"of {BASELINE}": seconds / found[f"{work} / {BASELINE}"],
            "bitsandbytes / it": min(peers) / seconds if peers else None,
            "relative error": error,
            "limit, ms": 1e3 * limit,
            "of the limit": limit / seconds,
        }


def line_up(linear: nn.Linear, *, skip_peers: bool) -> dict[str, nn.Module]:
    """The layer in every form."""
    layers: dict[str, nn.Module] = {
        BASELINE: linear,
        "ours int8 exact": Int8Linear.from_linear(linear, THRESHOLD, backward="exact"),
        "ours int8 fast": Int8Linear.from_linear(linear, THRESHOLD, backward="fast"),
    }
    if not skip_peers:
        layers["bitsandbytes, LLM.int8()"] = bitsandbytes_linear(linear).eval()
        layers["bitsandbytes, decoding"] = bitsandbytes_linear(linear).train()
        layers[TORCHAO] = torchao_linear(linear)
    return layers


def torchao_linear(linear: nn.Linear) -> nn.Module:
    """torchao's dynamically quantized layer, compiled for one shape."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    layer = nn.Sequential(nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta"))
    layer[0].weight = nn.Parameter(linear.weight.detach().clone(), requires_grad=False)
    quantize_(layer, Int8DynamicActivationInt8WeightConfig())
    return torch.compile(layer, dynamic=False)


@torch.no_grad()
def forward(layer: nn.Module, case: Case) -> Tensor:
    """Y."""
    return layer(case.x)


def forward_backward(layer: nn.Module, case: Case) -> Tensor:
    """dX, after Y."""
    x = case.x.detach().requires_grad_()
    return torch.autograd.grad(layer(x), x, case.grad)[0]


def check_parity(key: tuple[str, str], found: Tensor, case: Case) -> float:
    """The relative error of Y or dX.

    Raises:
        ValueError: it is too large for a timing to mean anything.
    """
    weight = case.linear.weight.float()  # (N, K)
    expected = case.x.float() @ weight.t() if key[0] == FORWARD else case.grad.float() @ weight
    error = relative_error(found, expected)
    bound = PARITY_BOUND_WITHOUT_OUTLIERS if key[1] == TORCHAO else PARITY_BOUND
    if not error <= bound:
        raise ValueError(
            f"{' / '.join(key)}, {case.label}, {case.outliers} outlier columns: {error:.1%} from the float32 product, "
            f"more than {bound:.0%}: this shape was not timed"
        )
    return error


def products(case: Case) -> dict[str, Callable[[], Tensor]]:
    """The bare products, of codes forward and backward and of bf16 backward."""
    x, grad, weight = (
        torch.randint_like(t, -127, 128, dtype=torch.int8) for t in (case.x, case.grad, case.linear.weight)
    )
    return {
        "int8 Y": partial(torch._int_mm, x, weight.t()),
        "int8 dX": partial(torch._int_mm, grad, weight),
        "bf16 dX": partial(torch.mm, case.grad, case.linear.weight),
    }


def least_seconds(work: str, what: str, found: dict[str, float]) -> float:
    """The products that a layer does at least; for those in bf16 the bf16 layer's own time is the limit."""
    if what == BASELINE:
        return found[f"{work} / {what}"]
    backward = "int8 dX" if what == "ours int8 fast" else "bf16 dX"
    return found["int8 Y"] + (found[backward] if work == BOTH else 0.0)


if __name__ == "__main__":
    main()
