"""Does an 8-bit LoRA step of a 7B model run within MedAlpaca's 8.9 GB? PyTorch is given no more than that and is asked.

The share is set before the first tensor, so that the making of the model must fit as well. A step at MedAlpaca's
setting, two rows of 256 tokens, is tried as it is and with the blocks' activations recomputed in the backward pass. The
share bounds what the allocator holds, fragments included; the driver's own context comes on top, as it did in 2023.
"""

import gc
import time
from collections.abc import Iterator

import torch
from models import config, our_model_with_adapters, raise_channels
from peers import OUTLIERS
from timing import Row, Setting, peak_memory, reason, synchronize, times
from training_peers import CLIP, MEDALPACA_ROWS, documents

from data import Batch, collate
from int8 import set_backward
from llama import Llama
from optim8bit import AdamW8bit
from training import optimizer_step

SHARE_BYTES = 8.9e9
STEPS = 3  # the first one tunes and warms, and takes the most


def measure(setting: Setting) -> Iterator[Row]:
    """One row without recomputation and one with it."""
    if setting.device.type == "cuda":
        total = torch.cuda.get_device_properties(setting.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, SHARE_BYTES / total), setting.device)
    model = our_model_with_adapters(setting, int8=True)
    raise_channels(model, max(OUTLIERS))
    rows = documents([(1, 16)] * 2 if setting.tiny else MEDALPACA_ROWS, config(setting).vocab_size)
    batch = collate([[row] for row in rows], pad_id=0).to(setting.device)
    for backward in ("fast", "exact"):
        set_backward(model, backward)
        for recomputing in (False, True):
            model.gradient_checkpointing = recomputing
            yield {"backward": backward, "recomputing": recomputing, **_attempt(model, batch, setting)}
            gc.collect()  # what a failed step still holds
            if setting.device.type == "cuda":
                torch.cuda.empty_cache()


def _attempt(model: Llama, batch: Batch, setting: Setting) -> Row:
    """Some steps, if they fit."""
    optimizer = AdamW8bit([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    note, taken = "", None
    with peak_memory(setting.device) as peak:
        try:
            for _ in range(STEPS):
                start = time.perf_counter()
                optimizer_step(model, optimizer, [batch], clip=CLIP)
                synchronize(setting.device)
                taken = time.perf_counter() - start
        except torch.OutOfMemoryError as error:
            note, taken = reason(error), None
        allocated, reserved = peak()
    return {
        "share GB": times(1e-9, SHARE_BYTES) if setting.device.type == "cuda" else None,
        "fits": taken is not None,
        "allocated GB": times(1e-9, allocated or None),
        "reserved GB": times(1e-9, reserved or None),
        "seconds": taken,
        "note": note,
    }
