"""Fold adapters into their base and take them out again.

    W = W₀ + (α/r) B A        (LoRA, arXiv 2106.09685, section 4: "no additional inference latency")

The sum is computed in float64 and rounded once to the weight's dtype, so a merged weight is off by half a unit in its
last place: relatively 2⁻²⁴ in float32, 2⁻¹¹ in float16, 2⁻⁸ in bfloat16. In 16 bits an update below that vanishes:
merge into float32 weights and round the finished checkpoint if the last digits matter.

No arithmetic restores W₀ from a rounded W, so merging keeps W₀ (memory for the adapted weights a second time) and
unmerging puts it back, bit by bit, in any dtype. `unload=True` keeps nothing and has no way back.
"""

from typing import TypeVar

import torch
from torch import Tensor, nn

from lora.inject import replace_module, require_lora_layers
from lora.layer import LoraLinear

Model = TypeVar("Model", bound=nn.Module)


@torch.no_grad()
def merge_lora(model: Model, *, unload: bool = False) -> Model:
    """Add every adapter's update to its base's weight, in place. The adapters then rest until `unmerge_lora`.

    Args:
        model: with adapters; the weights of their bases must be floating-point.
        unload: also put the bases back into the places of the LoraLinears: a plain model remains, fit for
            `save_checkpoint`, frozen as it was. Adapters that are merged already are just unloaded.

    Returns:
        The model given.

    Raises:
        ValueError: there are no adapters, they are merged already, an adapter is not finite, or a base's weight is
            quantized or shared with another module. The model is then unchanged.
    """
    layers = require_lora_layers(model)
    if not unload and (merged := [name for name, layer in layers.items() if layer.merged]):
        raise ValueError(f"the adapter of {merged[0]} is merged already: merging twice would add its update twice")
    uses = _uses_of_parameters(model)
    for name, layer in layers.items():
        _check_mergeable(name, layer, uses)

    for name, layer in layers.items():
        weight = _float_weight(layer)
        assert weight is not None  # checked above
        if not layer.merged:
            total = merged_weight(weight, layer.lora_A, layer.lora_B, layer.scaling)
            if not unload:
                layer.unmerged_weight = weight.detach().clone()
            weight.copy_(total)
        if unload:
            replace_module(model, name, layer.base)
    if unload and hasattr(model, "lora_config"):
        del model.lora_config
    return model


@torch.no_grad()
def unmerge_lora(model: Model) -> Model:
    """Put the bases' own weights back, bit by bit. The adapters answer beside them again.

    Raises:
        ValueError: the model has no adapters, or one is not merged.
    """
    layers = require_lora_layers(model)
    if apart := [name for name, layer in layers.items() if not layer.merged]:
        raise ValueError(f"the adapter of {apart[0]} is not merged: call merge_lora first")
    for layer in layers.values():
        weight = _float_weight(layer)
        assert weight is not None and layer.unmerged_weight is not None
        weight.copy_(layer.unmerged_weight)
        layer.unmerged_weight = None
    return model


def merged_weight(weight: Tensor, lora_A: Tensor, lora_B: Tensor, scaling: float) -> Tensor:
    """W₀ + (α/r) B A, rounded once to the dtype of W₀.

    float64 is no luxury: where TF32 is switched on, a float32 product on the GPU has 11 significant bits.

    >>> merged_weight(torch.eye(2), torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0], [-1.0]]), 0.5).tolist()
    [[1.5, 1.0], [-0.5, 0.0]]
    """
    return torch.addmm(weight.double(), lora_B.double(), lora_A.double(), alpha=scaling).to(weight.dtype)


def _check_mergeable(name: str, layer: LoraLinear, uses: dict[int, list[str]]) -> None:
    weight = _float_weight(layer)
    if weight is None:
        raise ValueError(
            f"cannot merge into {name}: {type(layer.base).__name__} has no floating-point weight, and a quantized one "
            "would round the update away. Reload the base in 16 bits, load the adapter into that, merge, and quantize "
            "the result if need be"
        )
    if len(uses[id(weight)]) > 1:
        raise ValueError(
            f"cannot merge into {name}: its weight is tied ({' = '.join(uses[id(weight)])}), so the update would "
            "change the other module too. Keep the adapter beside the base, or untie the weights first"
        )
    if not (layer.lora_A.isfinite().all() and layer.lora_B.isfinite().all()):
        raise ValueError(f"cannot merge {name}: its adapter holds NaN or infinite values; load an earlier one")


def _float_weight(layer: LoraLinear) -> nn.Parameter | None:
    """The base's weight, if it is a floating-point parameter of its own."""
    weight = dict(layer.base.named_parameters(recurse=False)).get("weight")
    return weight if weight is not None and weight.is_floating_point() else None


def _uses_of_parameters(model: nn.Module) -> dict[int, list[str]]:
    """Identity of each parameter -> every name it goes by."""
    uses: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        uses.setdefault(id(parameter), []).append(name)
    return uses
