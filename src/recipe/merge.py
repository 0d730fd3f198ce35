"""Fold an adapter into its base on the way from file to file: W = W₀ + (α/r) B A, tensor by tensor.

What `lora.merge_lora` does to a model in memory, without the model. Both use `lora.merge.merged_weight` (summed in
float64, rounded once to the dtype of W₀), so the bits are the same. The peak is one tensor in float64, twice.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from files import StoredTensor
from llama import Llama, LlamaConfig
from llama.checkpoint import open_checkpoint, write_checkpoint
from llama.checkpoint.read import Layout
from llama.checkpoint.save import MAX_SHARD_BYTES, cast
from lora import LoraLinear, load_adapter, lora_layers
from lora.merge import merged_weight


@torch.no_grad()
def merge_checkpoint(
    base: str | Path,
    adapter: str | Path,
    out: str | Path,
    layout: Layout = "hf",
    max_shard_bytes: int = MAX_SHARD_BYTES,
    *,
    dtype: torch.dtype | None = None,
    progress: bool = True,
) -> None:
    """Write base plus adapter as a plain checkpoint.

    Args:
        base: directory of the checkpoint that the adapter was trained on, in any layout.
        adapter: directory in peft's format.
        out: directory to make.
        layout, max_shard_bytes: as for `llama.save_checkpoint`.
        dtype: to which the base is rounded before the sum, and the sum again; None is the base's own.
        progress: show a bar on a terminal and one closing line anywhere, on stderr.

    Raises:
        ValueError: the base is quantized, damaged or incomplete; the adapter is damaged or for another base, or adapts
            a head that is tied to the embedding. Nothing was written.
    """
    checkpoint = open_checkpoint(base)
    layers = _adapter_layers(checkpoint.config, adapter)
    if checkpoint.config.tie_embeddings and "output" in layers:
        raise ValueError(
            f"{adapter} adapts the head, which {base} ties to its embedding: merged, it would change both; keep the "
            "adapter beside the base"
        )
    tensors = {name: cast(stored, dtype or stored.dtype) for name, stored in checkpoint.tensors.items()}
    for name, layer in layers.items():
        tensors[f"{name}.weight"] = _merged(tensors[f"{name}.weight"], layer)
    write_checkpoint(tensors, checkpoint.config, out, layout, max_shard_bytes, progress=progress)


def _adapter_layers(config: LlamaConfig, adapter: str | Path) -> dict[str, LoraLinear]:
    """Own name -> an adapter with its A and B on a base of that shape that has no numbers."""
    with torch.device("meta"):
        model = Llama(config)
    load_adapter(model, adapter)  # checks the files, and puts adapters without memory into the model
    layers = dict(lora_layers(model))
    for layer in layers.values():
        layer.lora_A = nn.Parameter(torch.empty_like(layer.lora_A, device="cpu"))
        layer.lora_B = nn.Parameter(torch.empty_like(layer.lora_B, device="cpu"))
    load_adapter(model, adapter)
    return layers


def _merged(stored: StoredTensor, layer: LoraLinear) -> StoredTensor:
    def read() -> Tensor:
        return merged_weight(stored.read(), layer.lora_A, layer.lora_B, layer.scaling)

    return StoredTensor(stored.shape, stored.dtype, read)
