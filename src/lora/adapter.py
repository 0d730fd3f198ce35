"""Save a model's adapter in PEFT's format and load one, ours or PEFT's.

A fresh directory holds `adapter_config.json` and `adapter_model.safetensors`; `peft_format` has the names in them,
`files` the writing and reading. What is saved was checked before and is read back after; what is loaded is checked
whole (settings, names, shapes, values) before the model changes.
"""

from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from files import UnsuitableFileError, shown
from lora.config import LoraConfig
from lora.files import read_settings, read_tensors, write_adapter_files
from lora.inject import add_lora, foreign_names, lora_layers, match_targets, require_lora_layers
from lora.layer import LoraLinear, features
from lora.peft_format import (
    config_from_settings,
    foreign_rows,
    own_rows,
    settings_from_config,
    target_modules,
    tensor_name,
    unsupported_settings,
)

Model = TypeVar("Model", bound=nn.Module)
Shapes = dict[str, tuple[int, ...]]


def save_adapter(
    model: nn.Module, folder: str | Path, *, base_model: str | None = None, require_trained: bool = False
) -> None:
    """Write the model's adapter as a directory that this project and PEFT can load.

    Args:
        model: with adapters, from `add_lora` or `load_adapter`. Merged or not makes no difference.
        folder: made if needed. An earlier adapter there is replaced only by one that was read back and found right.
        base_model: name or path of the base, for PEFT's readers.
        require_trained: also refuse an adapter whose every B is still zero, which changes nothing.

    Raises:
        ValueError: there is no adapter, it holds NaN or infinite values, or (if asked) was never trained.
        OSError: the system refuses the write; earlier files stay.
    """
    _refuse_wrapped(model)
    layers = require_lora_layers(model)
    tensors = adapter_tensors(model)
    if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise ValueError(
            f"the adapter is not saved: {broken[0]} holds NaN or infinite values (as do {len(broken)} of "
            f"{len(tensors)} tensors). What was in {folder} before is unchanged; resume from the last good checkpoint"
        )
    if require_trained and not any(layer.lora_B.any() for layer in layers.values()):
        raise ValueError("the adapter is not saved: every B is zero, so it was never trained and would change nothing")
    config = getattr(model, "lora_config", None)
    if not isinstance(config, LoraConfig):
        raise ValueError(
            "the model has no lora_config: let add_lora put the adapters in, so that it knows their settings"
        )
    settings = settings_from_config(config, target_modules(model, list(layers)), base_model)
    write_adapter_files(Path(folder), settings, tensors)


@torch.no_grad()
def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every A and B under its foreign name, in the foreign row order, on the CPU."""
    foreign = foreign_names(model)
    tensors = {}
    for name, layer in require_lora_layers(model).items():
        tensors[tensor_name(foreign[name], "A")] = layer.lora_A.detach().cpu().contiguous()
        tensors[tensor_name(foreign[name], "B")] = foreign_rows(model, name, layer.lora_B.detach().cpu()).contiguous()
    return tensors


@torch.no_grad()
def load_adapter(model: Model, folder: str | Path) -> Model:
    """Give the model the adapter in a directory. Settings come from there: rank, scale, dropout, targets.

    A model without adapters gets them added, trainable, with all else frozen. A model that has them must agree with
    the directory in everything but dropout; then their values are replaced.

    Args:
        model: the adapter's base, or any model of the same shape.
        folder: written by `save_adapter` or by PEFT (`.safetensors`, or the older `.bin`).

    Returns:
        The model given.

    Raises:
        FileError: the directory is damaged, its adapter is for another model, or it uses what this project does not
            compute. The message names file and reason; the model is then unchanged.
        ValueError: the model is wrapped.
    """
    _refuse_wrapped(model)
    folder = Path(folder)
    settings = read_settings(folder)
    path, tensors = read_tensors(folder)
    try:
        config = config_from_settings(settings, list(tensors))
        names = _check_fits(model, settings, config)
        _check_tensors(_expected_shapes(model, names, config.r), tensors, config.r)
        _check_agrees(model, names, config)
    except ValueError as error:
        made_for = settings.get("base_model_name_or_path")
        origin = f" (made for {made_for if isinstance(made_for, str) else shown(made_for)})" if made_for else ""
        raise UnsuitableFileError(
            f"the adapter{origin} cannot be loaded into this {type(model).__name__}: {error}", file=path
        ) from error

    if not any(lora_layers(model)):
        add_lora(model, config, generator=torch.Generator())  # overwritten at once: leave the global generator alone
    foreign = foreign_names(model)
    for name, layer in require_lora_layers(model).items():
        layer.lora_A.copy_(tensors[tensor_name(foreign[name], "A")])
        layer.lora_B.copy_(own_rows(model, name, tensors[tensor_name(foreign[name], "B")]))
    return model


def _check_fits(model: nn.Module, settings: dict[str, object], config: LoraConfig) -> list[str]:
    """Names of the modules to adapt, or a ValueError with everything that speaks against it."""
    names: list[str] = []
    problems = []
    try:
        names = match_targets(model, config.targets)
    except ValueError as error:
        problems.append(str(error))
    problems += unsupported_settings(settings)
    if problems:
        raise ValueError("; ".join(problems))
    return names


def _expected_shapes(model: nn.Module, names: list[str], r: int) -> Shapes:
    foreign = foreign_names(model)
    shapes: Shapes = {}
    for name in names:
        d, k = features(model.get_submodule(name))
        shapes[tensor_name(foreign[name], "A")] = (r, d)
        shapes[tensor_name(foreign[name], "B")] = (k, r)
    return shapes


def _check_tensors(expected: Shapes, tensors: dict[str, Tensor], r: int) -> None:
    """Raise unless the tensors have just the expected names and shapes, and finite floating-point values."""
    if missing := [name for name in expected if name not in tensors]:
        raise ValueError(f"{len(missing)} of the {len(expected)} tensors it needs are missing: {_some(missing)}")
    if unexpected := [name for name in tensors if name not in expected]:
        raise ValueError(
            f"{len(unexpected)} of its {len(tensors)} tensors have no place in the model: {_some(unexpected)}; was it "
            "trained on a deeper model, or saved with embeddings?"
        )
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != expected[name]:
            raise ValueError(
                f"{name} is {tuple(tensor.shape)} in the file, but model and settings (r = {shown(r)}) need "
                f"{expected[name]}: find the base it was made for"
            )
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise ValueError(f"{name} is not all finite floating-point numbers: the adapter is spoilt")


def _check_agrees(model: nn.Module, names: list[str], config: LoraConfig) -> None:
    """Raise if the model has adapters of another kind, or merged ones."""
    layers = dict(lora_layers(model))
    if layers and set(layers) != set(names):
        raise ValueError(f"it adapts {len(names)} modules, the present adapter {len(layers)}: load a fresh base")
    for name, layer in layers.items():
        if layer.merged:
            raise ValueError(f"the present adapter of {name} is merged into its base: call unmerge_lora first")
        present, given = _kind(layer), (config.r, config.alpha, config.rslora)
        if present != given:
            raise ValueError(
                f"its (r, alpha, rslora) = {given} and the model's present {present} differ: load a fresh base"
            )


def _kind(layer: LoraLinear) -> tuple[int, float, bool]:
    return layer.r, layer.alpha, layer.rslora


def _some(names: list[str], limit: int = 4) -> str:
    """The first few names."""
    return ", ".join(names[:limit]) + (" …" if len(names) > limit else "")


def _refuse_wrapped(model: nn.Module) -> None:
    """A wrapper's names are not the model's, and files written under them would fit no other model."""
    if isinstance(model, DistributedDataParallel):
        raise ValueError("give the model inside the DistributedDataParallel wrapper: model.module")
    if hasattr(model, "_orig_mod"):
        raise ValueError("give the model inside the torch.compile wrapper: model._orig_mod")
