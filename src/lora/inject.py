"""Put adapters into a model, find them again, switch them off.

Targets are matched against two names of every linear module: its own (`layers.0.attention.wq`) and, where the model
has an `adapter_layout`, the name it bears in Hugging Face's model (`model.layers.0.self_attn.q_proj`).
"""

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from lora.config import LoraConfig
from lora.layer import LoraLinear, is_linear_like

SUGGESTED = 4
"""Of how many unknown targets the nearest name is sought: each takes a comparison with all names there are."""

Model = TypeVar("Model", bound=nn.Module)


class Slot(Protocol):
    """Where a linear module lives in the foreign model: its name there and, unless None, the order of its rows."""

    @property
    def key(self) -> str: ...

    @property
    def rows(self) -> Tensor | None: ...


def add_lora(model: Model, config: LoraConfig, *, generator: torch.Generator | None = None) -> Model:
    """Wrap every linear module that a target names into a LoraLinear, in place, and freeze all else.

    Args:
        model: any module with linear modules inside.
        config: the adapter's settings; kept as `model.lora_config`.
        generator: source of the initial values, drawn in the order of `model.named_modules()`.

    Returns:
        The model given.

    Raises:
        ValueError: a target names no module, or the model has adapters already. The model is then unchanged.

    >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> trainable_summary(add_lora(model, LoraConfig(r=2, alpha=4, dropout=0.0, targets=["0", "2"])))
    '2 adapters, 28 trainable parameters'
    """
    if next(lora_layers(model), None) is not None:
        raise ValueError("the model has LoRA adapters already: load into them, or merge them first (unload=True)")
    names = match_targets(model, config.targets)
    model.requires_grad_(False)
    for name in names:
        base = model.get_submodule(name)
        replace_module(
            model,
            name,
            LoraLinear(base, config.r, config.alpha, config.dropout, config.rslora, generator=generator),
        )
    model.lora_config = config  # type: ignore[assignment]
    return model


def match_targets(model: nn.Module, targets: tuple[str, ...]) -> list[str]:
    """Own names of the linear modules that the targets name, in the model's order.

    Raises:
        ValueError: at least one target names nothing; the message has the nearest name and all there are.
    """
    foreign = foreign_names(model)
    matched = {target: [own for own in foreign if _names(target, own, foreign[own])] for target in targets}
    if lost := [target for target, found in matched.items() if not found]:
        raise ValueError(_no_match(lost, foreign))
    wanted = {own for found in matched.values() for own in found}
    return [own for own in foreign if own in wanted]


def foreign_names(model: nn.Module) -> dict[str, str]:
    """Own name -> foreign name of every linear module; one that the model's layout omits keeps its own."""
    layout = adapter_layout(model)
    names = [name for name, _ in linear_modules(model)]
    return {name: layout[name].key if name in layout else name for name in names}


def adapter_layout(model: nn.Module) -> Mapping[str, Slot]:
    """What the model says of its linear modules' foreign names and row orders; nothing if it has no such method."""
    return model.adapter_layout() if hasattr(model, "adapter_layout") else {}  # type: ignore[operator]


def linear_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Linear modules inside the model by name. A LoraLinear is one; the base inside it is not listed again."""
    adapted: list[str] = []
    for name, module in model.named_modules():
        if not name or name.startswith(tuple(adapted)):
            continue
        if isinstance(module, LoraLinear):
            adapted.append(f"{name}.")
        if is_linear_like(module):
            yield name, module


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """The adapters of a model by name."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLinear))


def require_lora_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """The adapters of a model by name.

    Raises:
        ValueError: it has none.
    """
    if not (layers := dict(lora_layers(model))):
        raise ValueError(f"{type(model).__name__} has no LoRA adapters: call add_lora or load_adapter first")
    return layers


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of the one with that dotted name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


@contextmanager
def adapters_disabled(model: nn.Module) -> Iterator[None]:
    """Within this context the base model answers, exactly as it did before it was adapted.

    Raises:
        ValueError: the model has no adapters, or they are merged, so that there is no base to answer.
    """
    layers = require_lora_layers(model)
    if merged := [name for name, layer in layers.items() if layer.merged]:
        raise ValueError(f"the adapter of {merged[0]} is merged into its base: call unmerge_lora first")
    before = [layer.enabled for layer in layers.values()]
    try:
        for layer in layers.values():
            layer.enabled = False
        yield
    finally:
        for layer, enabled in zip(layers.values(), before, strict=True):
            layer.enabled = enabled


def trainable_summary(model: nn.Module) -> str:
    """One line for the log: how many adapters, how many parameters that train."""
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return f"{len(require_lora_layers(model))} adapters, {count:,} trainable parameters"


def _names(target: str, *names: str) -> bool:
    """Whether the target is one of the names, or their end from a dot on."""
    return any(name == target or name.endswith(f".{target}") for name in names)


def _no_match(targets: list[str], foreign: dict[str, str]) -> str:
    """The message for targets that name nothing."""
    if not foreign:
        return f"LoRA targets {', '.join(map(repr, targets))}: the model has no linear modules to adapt"
    short = {own.rpartition(".")[2]: key.rpartition(".")[2] for own, key in foreign.items()}
    candidates = [*short, *short.values(), *foreign, *foreign.values()]
    complaints = []
    for target in targets[:SUGGESTED]:
        near = difflib.get_close_matches(target, candidates, n=1)
        complaints.append(repr(target) + (f" (did you mean {near[0]!r}?)" if near else ""))
    if len(targets) > SUGGESTED:
        complaints.append(f"and {len(targets) - SUGGESTED} more")
    available = ", ".join(own if own == key else f"{own} = {key}" for own, key in short.items())
    return f"no linear module is named by the LoRA target {', '.join(complaints)}; available: {available}"
