"""peft's adapters as a program of theirs would put them together, without a trip through the CPU's memory.

Peers at their best: under autocast to bfloat16, as `Trainer(bf16=True)` has it, since peft would otherwise widen the
adapter's input to its float32; bitsandbytes without `prepare_model_for_kbit_training`, which would widen head and norms
and recompute activations.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from lora import LoraConfig


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
