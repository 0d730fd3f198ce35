"""Adapters and merged models exchanged with peft and transformers at full size: do both sides compute the same logits?

    python benchmarks/make_checkpoint.py TinyLlama-1.1B DIR
    python benchmarks/interchange.py --base DIR

    merged         base + our adapter → convert.py merge → a checkpoint that transformers and we load
    summed         the same in float32: transformers loads the sum, we keep the adapter beside the base
    our adapter    saved by us, loaded by peft
    peft's adapter saved by peft, loaded by us

Weights are stored in bfloat16 and computed with in float32, so that nothing but the order of sums differs. Each model
has a process to itself, one after the other: one model in float32, and what loading it takes, is all that must fit.
"""

import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from harness import record
from peers import random_ids
from torch import nn

from llama import load_checkpoint, read_config
from lora import LoraConfig, add_lora, load_adapter, lora_layers, save_adapter
from recipe import plain_errors

CLAIM = "what convert.py merge and save_adapter write, transformers and peft load with equal logits, and the reverse"
CONVERT = Path(__file__).parent.parent / "convert.py"
RANK, ALPHA, TARGETS = 8, 16, ("q_proj", "k_proj", "v_proj", "o_proj")
B_STD = 0.02  # of a trained-looking B: its update moves the logits visibly
# Largest difference of two logits by the largest logit. Some 150 products lie one behind the other in 22 layers, each
# summed in another order: a few float32 roundings of 2^-24 each, in a random walk: √150 · 4 · 2^-24 = 3e-6.
BOUND = 1e-5
LEAST_EFFECT = 0.1  # in logits: an adapter that changes less would hide an error


@dataclass(frozen=True)
class Options:
    """Logits on both sides of an exchange."""

    base: Path
    """Checkpoint directory in Hugging Face's layout."""
    tokens: int = 16
    """Tokens whose logits are compared."""


def main() -> None:
    """Exchange, compare, record."""
    options = tyro.cli(Options, description=__doc__)
    with plain_errors(), tempfile.TemporaryDirectory(dir=options.base.parent) as scratch:
        run(options, Path(scratch))


def run(options: Options, scratch: Path) -> None:
    """The benchmark. scratch: room for 7 GB at 1.1B parameters."""
    base = options.base
    ids = random_ids(options.tokens, read_config(base).vocab_size)
    ours, theirs, merged, summed = (scratch / name for name in ("ours", "theirs", "merged", "summed"))
    apart(make_our_adapter, base, ours)
    apart(make_their_adapter, base, theirs)
    for out, dtype in ((merged, "stored"), (summed, "float32")):
        subprocess.run([sys.executable, CONVERT, "merge", base, ours, out, "--dtype", dtype], check=True)

    plain, _ = apart(our_logits, base, ids)
    beside, beside_gb = apart(our_logits, base, ids, ours)
    rows: list[dict[str, Any]] = []
    for what, left, right in (
        ("merged, in transformers", apart(our_logits, merged, ids), apart(their_logits, merged, ids)),
        ("summed, in transformers", (beside, beside_gb), apart(their_logits, summed, ids)),
        ("our adapter, in peft", (beside, beside_gb), apart(their_logits, base, ids, ours)),
        ("peft's adapter, in ours", apart(our_logits, base, ids, theirs), apart(their_logits, base, ids, theirs)),
    ):
        (our, our_gb), (their, their_gb) = left, right
        error = np.abs(our - their).max()
        rows.append(
            {
                "what": what,
                "worst difference": float(error),
                "of the largest logit": float(error / np.abs(their).max()),
                "bound": BOUND,
                "made by the adapter": float(np.abs(their - plain).max()),
                "peak GB, ours and theirs": f"{our_gb:.1f}, {their_gb:.1f}",
            }
        )
    notes = [f"{options.tokens} tokens; r {RANK}, alpha {ALPHA} on {', '.join(TARGETS)}; computed in float32"]
    record("interchange", rows, claim=CLAIM, notes=notes)
    if wrong := [row["what"] for row in rows if not is_right(row)]:
        raise ValueError(f"logits differ by more than {BOUND}, or the adapter does nothing: {', '.join(wrong)}")


def is_right(row: Mapping[str, Any]) -> bool:
    """Whether both sides agree, about an adapter that does something."""
    return row["of the largest logit"] <= BOUND and row["made by the adapter"] >= LEAST_EFFECT


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call the function in a process of its own, whose memory ends with it."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def make_our_adapter(base: Path, folder: Path) -> None:
    """A trained-looking adapter saved by this project."""
    model = load_checkpoint(base, progress=False)
    generator = torch.Generator().manual_seed(1)
    add_lora(model, LoraConfig(r=RANK, alpha=ALPHA, dropout=0.0, targets=TARGETS), generator=generator)
    for _, layer in lora_layers(model):
        nn.init.normal_(layer.lora_B, std=B_STD, generator=generator)
    save_adapter(model, folder, base_model=str(base), require_trained=True)


def make_their_adapter(base: Path, folder: Path) -> None:
    """One saved by peft."""
    import peft

    torch.manual_seed(2)  # peft draws A from the global generator
    settings = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS), task_type="CAUSAL_LM")
    model = peft.get_peft_model(transformers_model(base, torch.bfloat16), settings)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=B_STD)
    model.save_pretrained(str(folder))


@torch.no_grad()
def our_logits(folder: Path, ids: list[int], adapter: Path | None = None) -> tuple[np.ndarray, float]:
    """(T, V) float32 logits by this project, and the process's peak of resident memory in GB."""
    model = load_checkpoint(folder, dtype=torch.float32, progress=False)
    if adapter is not None:
        load_adapter(model, adapter)
    return model.eval()(torch.tensor([ids]))[0].numpy(), peak_gb()


@torch.no_grad()
def their_logits(folder: Path, ids: list[int], adapter: Path | None = None) -> tuple[np.ndarray, float]:
    """The same by transformers, with peft for the adapter."""
    model = transformers_model(folder, torch.float32)
    if adapter is not None:
        import peft

        model = peft.PeftModel.from_pretrained(model, adapter)
    return model.eval()(torch.tensor([ids])).logits[0].numpy(), peak_gb()


def transformers_model(folder: Path, dtype: torch.dtype) -> Any:
    """transformers' model, without its progress bar."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def peak_gb() -> float:
    """This process's highest resident memory so far, mapped files included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
