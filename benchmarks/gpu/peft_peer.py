"""peft and bitsandbytes as a program of theirs would put them together, without a trip through the CPU's memory.

Peers at their best: under autocast to bfloat16, as `Trainer(bf16=True)` has it, since peft would otherwise widen the
adapter's input to its float32; bitsandbytes without `prepare_model_for_kbit_training`, which would widen head and norms
and recompute activations.
"""

import logging
from collections.abc import Sequence
from typing import Any

from torch import nn

from int8 import THRESHOLD
from lora import LoraConfig


def bitsandbytes_linear(linear: nn.Linear) -> nn.Module:
    """A frozen `Linear8bitLt` of that weight (N, K), quantized where it lies; the linear layer is left alone."""
    import bitsandbytes

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of bfloat16 at every product
    sizes = (linear.in_features, linear.out_features)
    options = {"bias": False, "has_fp16_weights": False, "threshold": THRESHOLD, "device": "meta"}
    layer = bitsandbytes.nn.Linear8bitLt(*sizes, **options)
    codes, absmax, _ = bitsandbytes.functional.int8_vectorwise_quant(linear.weight.detach().half())
    layer.weight = bitsandbytes.nn.Int8Params(codes, requires_grad=False, has_fp16_weights=False, CB=codes, SCB=absmax)
    return layer


def with_adapters(model: Any, config: LoraConfig, *, int8: bool, targets: Sequence[str] | None = None) -> nn.Module:
    """peft's adapters in a model, in training mode.

    Args:
        config: ours; peft's is made from it.
        int8: whether the model's linear layers are bitsandbytes', for which peft has layers of its own.
        targets: names in the place of the config's.
    """
    import peft

    model.is_loaded_in_8bit = int8
    names = list(targets or config.targets)
    theirs = peft.LoraConfig(r=config.r, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=names)
    return peft.inject_adapter_in_model(theirs, model).train()
