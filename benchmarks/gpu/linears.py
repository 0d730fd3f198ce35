"""One linear layer at 7B's shapes: the forward product, and forward and backward under an adapter.

    y = x Ŵ                              M tokens × K in-features → N out-features
    y = x Ŵ + (α/r) drop(x) A B,         then dX, dA and dB from a given dY; the base is frozen

The same random x, W and dY for all. No x reaches 6, except in the outlier channels, which are 20 times larger. Before
a contender is timed, y and dX are compared with float32 products of the unquantized weight (B is 0, as at the start of
a training: the adapter computes, and adds nothing). Each contender has layers enough that no weight of the next call is
left in the GPU's cache, where training would not find it either.

Letters: M tokens, K in-features, N out-features.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from harness import relative_error
from peers import DTYPE, OUTLIER_GAIN, OUTLIERS, bitsandbytes_linear
from peft_peer import with_adapters
from timing import Row, Setting, Work, busy_seconds, ratio, reason, seconds, times
from torch import Tensor, nn
from training_peers import LORA

from int8 import Int8Linear
from lora import add_lora

SHAPES = ((4096, 4096), (4096, 11008), (11008, 4096))  # (K, N) in a block of LLaMA-7B
TOKENS = (512, 2048, 4096)
CACHE_BYTES = 2**28  # several times the 50 and 60 MB that an H100 and an H200 hold
LARGEST = 5.0  # of a regular x: below the threshold, with room for its rounding

# Largest relative errors with which a timing still means something. bfloat16 rounds by 2^-9. 8-bit codes of normal
# numbers are off by 0.9 % in root mean square, in a product of two such by 1.3 %, and in the fast backward as much.
PARITY = {"bf16": 0.01, "int8": 0.05}

BASELINE, PEER = "ours bf16", "bitsandbytes int8"


@dataclass(frozen=True)
class Case:
    """What all contenders get.

    Attributes:
        weights: linear layers (N, K) in bfloat16, frozen.
        x: (M, K).
        grad: dY, (M, N).
        outliers: channels of x that are outliers.
    """

    weights: nn.ModuleList
    x: Tensor
    grad: Tensor
    outliers: int


@dataclass(frozen=True)
class Contender:
    """How to make its layers from the case's, and what is asked of a layer: results, of which the first are compared.

    Both may fail, as where a peer is not installed; that costs this contender its row. `passes` are the ceilings that
    bound its products, in the order of the pass.
    """

    layers: Callable[[], nn.ModuleList]
    product: Callable[[nn.Module], list[Tensor]]
    passes: tuple[str, ...]


def measure_forward(setting: Setting) -> Iterator[Row]:
    """Rows of the forward product."""
    for case in _cases(setting):
        product = partial(_forward, case)
        contenders = {
            BASELINE: Contender(partial(_each, case, nn.Identity()), product, ("bf16",)),
            "ours int8": Contender(partial(_each, case, Int8Linear.from_linear), product, ("int8",)),
        }
        contenders |= _ways(case)
        if setting.peers:
            contenders[PEER] = Contender(partial(_each, case, bitsandbytes_linear), product, ("int8",))
        exact = [case.x.float() @ case.weights[0].weight.float().t()]
        yield from _rows(case, contenders, exact, setting)


def measure_with_lora(setting: Setting) -> Iterator[Row]:
    """Rows of forward and backward under an adapter."""
    for case in _cases(setting):
        ours, theirs = (partial(_forward_backward, case, autocast=autocast) for autocast in (False, True))
        exactly, fast = (partial(Int8Linear.from_linear, backward=backward) for backward in ("exact", "fast"))
        contenders = {
            BASELINE: Contender(partial(_ours, case, nn.Identity()), ours, ("bf16", "bf16")),
            "ours int8, exact": Contender(partial(_ours, case, exactly), ours, ("int8", "bf16")),
            "ours int8, fast": Contender(partial(_ours, case, fast), ours, ("int8", "int8")),
        }
        if setting.peers:
            contenders["peft bf16"] = Contender(partial(_peft, case, int8=False), theirs, ("bf16", "bf16"))
            contenders[PEER] = Contender(partial(_peft, case, int8=True), theirs, ("int8", "bf16"))
        weight = case.weights[0].weight.float()
        exact = [case.x.float() @ weight.t(), case.grad.float() @ weight]
        yield from _rows(case, contenders, exact, setting)


def _each(case: Case, convert: Callable[[nn.Module], nn.Module]) -> nn.ModuleList:
    """Every layer of the case, converted, in a new list."""
    return nn.ModuleList(convert(weight) for weight in case.weights)


def _ours(case: Case, convert: Callable[[nn.Module], nn.Module]) -> nn.ModuleList:
    """The same with our adapters."""
    names = tuple(str(i) for i in range(len(case.weights)))
    return add_lora(_each(case, convert), replace(LORA, targets=names)).train()


def _peft(case: Case, *, int8: bool) -> nn.ModuleList:
    """The same with peft's adapters, on bitsandbytes' layers or on plain ones."""
    layers = _each(case, bitsandbytes_linear if int8 else nn.Identity())
    return with_adapters(layers, LORA, int8=int8, targets=[str(i) for i in range(len(layers))])


def _ways(case: Case) -> dict[str, Contender]:
    """Each way to multiply that `Int8Linear` chooses from on a GPU; none where Triton is not installed."""
    if find_spec("triton") is None:
        return {}
    from int8 import launch

    layers = partial(_each, case, Int8Linear.from_linear)
    contenders = {}
    for way in launch.ways(len(case.x), turned=False):
        cut = way.tiles
        name = "torch._int_mm, scaled by Triton" if cut is None else f"Triton, {cut.m} × {cut.n} × {cut.k}"
        contenders[f"ours int8: {name}"] = Contender(layers, partial(_forward_by, case, way), ("int8",))
    return contenders


@torch.no_grad()
def _forward_by(case: Case, way: Any, layer: nn.Module) -> list[Tensor]:
    """[y]"""
    from int8 import launch

    return [launch.forward(case.x, layer.weight_codes, layer.weight_absmax, layer.threshold, way=way)]


@torch.no_grad()
def _forward(case: Case, layer: nn.Module) -> list[Tensor]:
    """[y]"""
    return [layer(case.x)]


def _forward_backward(case: Case, layer: nn.Module, *, autocast: bool) -> list[Tensor]:
    """[y, dX, dA, dB]"""
    x = case.x.detach().requires_grad_()
    trainable = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    with torch.autocast(x.device.type, DTYPE, enabled=autocast):
        y = layer(x)
    return [y.detach(), *torch.autograd.grad(y, [x, *trainable], case.grad)]


def _cases(setting: Setting) -> Iterator[Case]:
    """Every shape with every number of tokens and of outliers."""
    device = setting.device
    for inner, outer in ((64, 96),) if setting.tiny else SHAPES:
        copies = 2 if setting.tiny else math.ceil(CACHE_BYTES / (inner * outer))
        layers = (nn.Linear(inner, outer, bias=False, device=device, dtype=DTYPE) for _ in range(copies))
        weights = nn.ModuleList(layers).requires_grad_(False)
        for weight in weights.parameters():
            weight.normal_(std=inner**-0.5)
        for tokens in (32,) if setting.tiny else TOKENS:
            x = torch.randn(tokens, inner, device=device).clamp_(-LARGEST, LARGEST)
            grad = torch.randn(tokens, outer, device=device).to(DTYPE)
            for outliers in OUTLIERS:
                gains = torch.ones(inner, device=device)
                gains[torch.arange(outliers) * inner // max(1, outliers)] = OUTLIER_GAIN
                yield Case(weights, (x * gains).to(DTYPE), grad, outliers)


def _rows(case: Case, contenders: Mapping[str, Contender], exact: Sequence[Tensor], setting: Setting) -> Iterator[Row]:
    """Make, compare and time the contenders. exact: what their first results should be."""
    works: dict[str, Work] = {}
    errors: dict[str, float] = {}
    failures: dict[str, str] = {}
    for name, contender in contenders.items():
        try:
            layers = contender.layers()
            results = contender.product(layers[0])
            errors[name] = max(relative_error(result, ideal) for result, ideal in zip(results, exact, strict=False))
            if not errors[name] <= PARITY["int8" if "int8" in name else "bf16"]:
                raise ValueError("results are too far from the float32 product for a timing to mean anything")
            works[name] = partial(_all, contender.product, layers)
        except Exception as error:
            failures[name] = reason(error)

    copies = len(case.weights)
    taken = {name: total / copies for name, total in seconds(works, setting).items()}
    busy = {name: busy_seconds(work, setting.device) / copies for name, work in works.items()}
    for name, contender in contenders.items():
        limit = _limit(case, contender.passes, setting)
        yield {
            "tokens": case.x.shape[0],
            "in": case.x.shape[1],
            "out": case.grad.shape[1],
            "outliers": case.outliers,
            "what": name,
            "ms": times(1e3, taken.get(name)),
            "device ms": times(1e3, busy.get(name)),
            "limit, ms": times(1e3, limit),
            "of limit": ratio(limit, taken.get(name)),
            "÷ bf16": ratio(taken.get(name), taken.get(BASELINE)),
            "÷ bitsandbytes": ratio(taken.get(name), taken.get(PEER)),
            "relative error": errors.get(name),
            "note": failures.get(name, ""),
        }


def _limit(case: Case, passes: Sequence[str], setting: Setting) -> float | None:
    """Seconds that the products alone take at the ceilings' rates."""
    if not all(key in setting.rates for key in passes):
        return None
    operations = 2 * case.x.shape[0] * case.x.shape[1] * case.grad.shape[1]
    return sum(operations / setting.rates[key] for key in passes)


def _all(product: Callable[[nn.Module], list[Tensor]], layers: nn.ModuleList) -> None:
    for layer in layers:
        product(layer)
