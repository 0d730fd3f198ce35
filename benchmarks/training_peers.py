"""LoRA training, ours and the peers', behind one small interface, all from the same checkpoint and adapter.

A step is forward, loss, backward, clipping and AdamW. Adapters are of rank 8 on q and v with a dropout of 0.1, as
MedAlpaca trains them; their B is random, not zero, so that parity sees them.

Peers at their best: transformers and peft in bfloat16 with AdamW's fused step, weights in memory of large pages and the
default attention (PyTorch's); adapters in bfloat16 too, since peft's default, float32, has every adapter widen its
whole input; bitsandbytes without `prepare_model_for_kbit_training`, which would widen the head and the norms to float32
and recompute activations. On a CPU bitsandbytes has a true int8 product (`MatMul8bitLt`) in evaluation mode alone; in
training it decodes the weight and multiplies in bfloat16 (`MatMul8bitFp`). linear.py times both.

Several documents reach transformers as a padded batch, or as one row with restarting `position_ids`, for which it
builds a block-diagonal mask. The row is the faster: with two blocks the eleven documents of `MEADOW_2048` took 68.5 s
padded and 14.7 s in a row, 4.7 times less, and with all 22 padding them ran a machine of 23 GB out of memory. Its loss
works on a dense table of logits, with a row for every token.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from peers import DTYPE, Transformers, raise_outliers
from torch import Tensor, nn

from data import Example, collate
from data.collate import IGNORE, shifted_targets
from int8 import THRESHOLD, Int8Linear
from llama import Llama, LlamaConfig, load_checkpoint, save_checkpoint
from lora import LoraConfig, add_lora, load_adapter, lora_layers, save_adapter
from native import advise_huge_pages
from optim8bit import AdamW8bit
from training import causal_lm_loss, optimizer_step

LORA = LoraConfig(r=8, alpha=16, dropout=0.1, targets=("q_proj", "v_proj"))
B_STD = 0.1  # the adapter then changes a projection by a third of its size
LEARNING_RATE = 1e-4
CLIP = 1.0

ALPACA_ROWS = ((102, 256), (102, 256))
"""(prompt, all) tokens of two rows as long as MedAlpaca's window, two fifths of each masked."""

MEDALPACA_ROWS = ((1, 256), (1, 256))
"""The same as MedAlpaca trains them, its prompts supervised too."""

MEADOW_512 = ((73, 227), (76, 130), (72, 142))
"""(prompt, all) tokens of the documents in a row of 512, as `data.pack` fills it from Medical Meadow's patient
information (medical_meadow_small.json, template medalpaca) with LLaMA's tokenizer: three documents are the median."""

MEADOW_2048 = (
    *((65, 415), (64, 106), (76, 119), (73, 157), (79, 103), (74, 170)),
    *((71, 84), (80, 94), (70, 288), (64, 312), (64, 146)),
)
"""The same in a row of 2,048; eleven documents are the median."""

Rows = Sequence[Sequence[Example]]
Layout = Literal["packed", "padded"]


def documents(lengths: Sequence[tuple[int, int]], vocab_size: int) -> list[Example]:
    """Random tokens in documents of those lengths, (prompt, all); the prompt is not supervised."""
    generator = torch.Generator().manual_seed(0)
    return [
        Example(
            torch.randint(vocab_size, (total,), generator=generator).tolist(),
            [False] * prompt + [True] * (total - prompt),
        )
        for prompt, total in lengths
    ]


def write_base(folder: Path, config: LlamaConfig, outliers: int) -> None:
    """A random model with that many outlier channels, in `folder/base`, and an adapter for it, in `folder/adapter`."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        model = Llama(config).to(DTYPE)
    model = raise_outliers(model.to_empty(device="cpu").init_weights(generator), outliers)
    save_checkpoint(model, folder / "base")
    for _, layer in lora_layers(add_lora(model, LORA, generator=generator)):
        nn.init.normal_(layer.lora_B, std=B_STD, generator=generator)
    save_adapter(model, folder / "adapter")


class OurTrainer:
    """This project's model in bfloat16, or in int8 with one of its two backward passes."""

    def __init__(self, folder: Path, backward: Literal["exact", "fast"] | None) -> None:
        convert = None
        if backward is not None:
            convert = partial(Int8Linear.from_linear, threshold=THRESHOLD, backward=backward)
        self.model = load_checkpoint(folder / "base", dtype=DTYPE, convert_linear=convert, progress=False)
        load_adapter(self.model, folder / "adapter")
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        adamw = torch.optim.AdamW if backward is None else AdamW8bit
        self.optimizer = adamw(trainable, lr=LEARNING_RATE, weight_decay=0.0)

    def step(self, rows: Rows) -> float:
        """One optimizer step; the loss before it."""
        self.model.train()
        return optimizer_step(self.model, self.optimizer, [collate(rows, pad_id=0)], clip=CLIP).loss

    def loss_and_gradient(self, rows: Rows) -> tuple[float, float]:
        """The loss without dropout, and the norm of its gradient; nothing is updated."""
        self.model.eval()
        self.optimizer.zero_grad(set_to_none=True)
        batch = collate(rows, pad_id=0)
        loss = causal_lm_loss(self.model, batch, scale=1 / batch.n_supervised)
        loss.backward()
        return loss.item(), gradient_norm(self.model)


class PeerTrainer:
    """transformers and peft, in bfloat16 or on bitsandbytes' int8."""

    def __init__(self, folder: Path, int8: bool) -> None:
        import peft

        base = Transformers({0: folder / "base"}, 0, torch.device("cpu"), int8=int8).model
        if int8:  # what stays in 16 bits would keep the whole file mapped, and counted
            for parameter in filter(torch.is_floating_point, base.parameters()):
                parameter.data = advise_huge_pages(torch.empty_like(parameter)).copy_(parameter)
        self.model = peft.PeftModel.from_pretrained(
            base, str(folder / "adapter"), is_trainable=True, autocast_adapter_dtype=False
        )
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        for parameter in trainable:
            parameter.data = parameter.to(DTYPE)  # on a base in int8 they are float32 even so
        self.optimizer = torch.optim.AdamW(trainable, lr=LEARNING_RATE, weight_decay=0.0, fused=True)

    def step(self, rows: Rows) -> float:
        """As `OurTrainer.step`."""
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.model(**peer_batch(rows, "packed"), use_cache=False).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        return loss.item()

    def loss_and_gradient(self, rows: Rows, layout: Layout = "packed") -> tuple[float, float]:
        """As `OurTrainer.loss_and_gradient`."""
        self.model.eval()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.model(**peer_batch(rows, layout), use_cache=False).loss
        loss.backward()
        return loss.item(), gradient_norm(self.model)


def peer_batch(rows: Rows, layout: Layout) -> dict[str, Tensor]:
    """The arguments of transformers' model for rows of documents; rows of one length if they are to be packed.

    Its loss shifts the labels itself. A document's first token is never supervised, so that none is predicted from the
    document before it.
    """
    if layout == "padded":
        rows = [[document] for row in rows for document in row]
    width = max(sum(map(len, row)) for row in rows)

    def tensor(values: Sequence[Sequence[Sequence[int]]], fill: int) -> Tensor:
        joined = [[number for part in row for number in part] for row in values]
        return torch.tensor([row + [fill] * (width - len(row)) for row in joined])

    batch: dict[str, Tensor] = {
        "input_ids": tensor([[document.token_ids for document in row] for row in rows], 0),
        "labels": tensor([[labels(document) for document in row] for row in rows], IGNORE),
    }
    if any(len(row) > 1 for row in rows):
        batch["position_ids"] = tensor([[range(len(document)) for document in row] for row in rows], 0)
    elif any(sum(map(len, row)) < width for row in rows):
        batch["attention_mask"] = tensor([[[1] * len(document) for document in row] for row in rows], 0)
    return batch


def labels(document: Example) -> list[int]:
    """A document's supervised tokens in their own places.

    >>> labels(Example([5, 6, 7], [False, False, True]))
    [-100, -100, 7]
    """
    return [IGNORE, *shifted_targets(document)[:-1]]


def gradient_norm(model: nn.Module) -> float:
    """‖g‖₂ over all parameters that have a gradient, in float32."""
    return nn.utils.get_total_norm([p.grad.float() for p in model.parameters() if p.grad is not None]).item()
