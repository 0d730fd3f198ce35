"""Low-rank adapters (LoRA, arXiv 2106.09685) for any model with linear layers inside, of 16 bits or 8.

config.py       rank, scale, dropout, targets           layer.py        W₀ x + (α/r) B A x
inject.py       into a model, out of the way, counted   merge.py        into the weights and back
adapter.py      save and load                           peft_format.py  PEFT's settings, names and row order
files.py        the pair of files, replaced together
"""

from lora.adapter import load_adapter, save_adapter
from lora.config import LoraConfig
from lora.inject import adapters_disabled, add_lora, lora_layers, trainable_summary
from lora.layer import LoraLinear, lora_reference
from lora.merge import merge_lora, unmerge_lora

__all__ = [
    "LoraConfig",
    "LoraLinear",
    "adapters_disabled",
    "add_lora",
    "load_adapter",
    "lora_layers",
    "lora_reference",
    "merge_lora",
    "save_adapter",
    "trainable_summary",
    "unmerge_lora",
]
