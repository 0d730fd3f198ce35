"""A model's linear layers into int8, one at a time, so that no more than one exists in both forms."""

from collections.abc import Collection
from typing import TypeVar, get_args

from torch import nn

from int8.gradient import Backward
from int8.linear import Int8Linear
from int8.quantize import THRESHOLD

Model = TypeVar("Model", bound=nn.Module)

HEADS = ("lm_head", "output")
"""What Hugging Face and Meta call the projection to the vocabulary, which is customarily left in 16 bits."""


def convert_to_int8(
    model: Model, threshold: float = THRESHOLD, skip: Collection[str] = HEADS, *, backward: Backward = "exact"
) -> Model:
    """Replace every `nn.Linear` inside the model by an `Int8Linear`, in place.

    Args:
        model: changed in place. To convert weights while they are being loaded, hand `Int8Linear.from_linear` to the
            loader instead: then the 16-bit model never exists whole.
        threshold: of each layer's outlier decomposition; 0 disables it.
        skip: names to leave alone, compared with the last component of a module's path.
        backward: of each layer.

    Returns:
        The model.

    Raises:
        ValueError: there was nothing to convert.

    >>> model = nn.Sequential()
    >>> model.add_module("hidden", nn.Linear(4, 4))
    >>> model.add_module("output", nn.Linear(4, 9))
    >>> convert_to_int8(model)
    Sequential(
      (hidden): Int8Linear(in_features=4, out_features=4, bias=True, threshold=6.0)
      (output): Linear(in_features=4, out_features=9, bias=True)
    )
    """
    places = _linear_places(model, skip)
    if not places:
        raise ValueError(
            f"found no nn.Linear to convert in {type(model).__name__} (skipping {', '.join(skip) or 'nothing'}): "
            "it is converted already, or it is a linear itself, for which there is Int8Linear.from_linear"
        )
    while places:
        linear, paths = places.popitem()
        converted = Int8Linear.from_linear(linear, threshold, backward)
        for path in paths:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, converted)
        del linear  # its 16-bit weight is freed here, before the next layer's codes are allocated
    return model


def set_backward(model: nn.Module, backward: Backward) -> None:
    """Let every `Int8Linear` inside compute its input's gradient in that way; no weight depends on it.

    Raises:
        ValueError: there is no such way.
    """
    if backward not in get_args(Backward):
        raise ValueError(f"backward is {backward!r}: it must be one of {', '.join(get_args(Backward))}")
    for module in model.modules():
        if isinstance(module, Int8Linear):
            module.backward = backward


def _linear_places(model: nn.Module, skip: Collection[str]) -> dict[nn.Linear, list[str]]:
    """Each linear layer below the model and every path that leads to it: a layer with two parents stays shared."""
    places: dict[nn.Linear, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if path and isinstance(module, nn.Linear) and path.rpartition(".")[2] not in skip:
            places.setdefault(module, []).append(path)
    return places
