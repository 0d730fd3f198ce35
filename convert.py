"""Change a checkpoint, never in place: the result goes to a new directory, with tokenizer and prompt template if any.

    python convert.py layout SRC DST --layout meta --dtype bfloat16    Hugging Face's layout <-> Meta's, another dtype
    python convert.py layout SRC DST --max-shard-size 2GB              the same weights in other pieces
    python convert.py int8 SRC DST                                     8-bit blocks: half the disk, loaded in seconds
    python convert.py merge BASE ADAPTER OUT                           base + (α/r) B A: a model that needs no adapter
    python convert.py diff make BASE TUNED DIFF                        tuned less base: to publish without the base
    python convert.py diff apply BASE DIFF OUT                         base plus that: the tuned model, bit for bit

Checkpoints to read may be in any layout; it is found out. All goes tensor by tensor. See each command's --help.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from int8 import THRESHOLD
from llama import TOKENIZER_FILE
from llama.checkpoint import apply_diff, convert_checkpoint, make_diff
from recipe import copy_companions, plain_errors
from recipe.int8_checkpoint import write_int8_checkpoint
from recipe.merge import merge_checkpoint

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}

LayoutName = Literal["hf", "meta"]
DtypeName = Literal["bfloat16", "float16", "float32", "stored"]
ShardSize = Annotated[str, tyro.conf.arg(help="size at which hf's weights are cut into several files: 5GB, 500MiB, …")]

app = tyro.extras.SubcommandApp()


@app.command
def layout(
    src: Annotated[Path, tyro.conf.arg(metavar="SRC")],
    dst: Annotated[Path, tyro.conf.arg(metavar="DST")],
    /,
    layout: LayoutName = "hf",
    dtype: DtypeName = "stored",
    max_shard_size: ShardSize = "5GB",
    model_parallel: int = 1,
) -> None:
    """Rewrite a checkpoint in another layout or dtype, tensor by tensor: memory for one tensor is enough (layout meta:
    for one file).

    Args:
        src: directory of the checkpoint.
        dst: directory to make.
        layout: hf (config.json, safetensors) or meta (params.json, consolidated.*.pth).
        dtype: of the weights written; "stored" keeps each as it is.
        model_parallel: number of consolidated.*.pth files in layout meta.
    """
    require_new(dst)
    convert_checkpoint(
        src, dst, layout, parse_size(max_shard_size), dtype=dtype_of(dtype), model_parallel=model_parallel
    )
    take_along(dst, tokenizer=src, prompts=[src])


@app.command(name="int8")
def quantize(
    src: Annotated[Path, tyro.conf.arg(metavar="SRC")],
    dst: Annotated[Path, tyro.conf.arg(metavar="DST")],
    /,
    threshold: float = THRESHOLD,
    max_shard_size: ShardSize = "5GB",
) -> None:
    """Write a checkpoint with its blocks in int8: half of 16 bits' disk, and loaded by a memory map.

    Answers are those of SRC loaded with --int8. Adapters can be trained on DST and used with it; keep SRC to merge one,
    to make a difference or to change the layout. transformers with bitsandbytes loads DST too.

    Args:
        src: directory of the checkpoint, in 16 or 32 bits.
        dst: directory to make.
        threshold: stored with it: features that reach it are multiplied in 16 bits; 0 is none.
    """
    require_new(dst)
    write_int8_checkpoint(src, dst, parse_size(max_shard_size), threshold=threshold)
    take_along(dst, tokenizer=src, prompts=[src])


@app.command
def merge(
    base: Annotated[Path, tyro.conf.arg(metavar="BASE")],
    adapter: Annotated[Path, tyro.conf.arg(metavar="ADAPTER")],
    out: Annotated[Path, tyro.conf.arg(metavar="OUT")],
    /,
    layout: LayoutName = "hf",
    dtype: DtypeName = "stored",
    max_shard_size: ShardSize = "5GB",
) -> None:
    """Add an adapter's update to its base and write the sum as a plain checkpoint.

    Args:
        base: directory of the checkpoint that the adapter was trained on, in 16 or 32 bits.
        adapter: directory with adapter_config.json.
        out: directory to make.
        layout: hf (config.json, safetensors) or meta (params.json, consolidated.*.pth).
        dtype: in which the base is read and the sum rounded and written; "stored" is the base's.
    """
    require_new(out)
    merge_checkpoint(base, adapter, out, layout, parse_size(max_shard_size), dtype=dtype_of(dtype))
    take_along(out, tokenizer=base, prompts=[adapter, base])


differences = tyro.extras.SubcommandApp()
app.command(differences, name="diff", help="Publish a tuned model as its difference from the base, and undo that.")


@differences.command
def make(
    base: Annotated[Path, tyro.conf.arg(metavar="BASE")],
    tuned: Annotated[Path, tyro.conf.arg(metavar="TUNED")],
    diff: Annotated[Path, tyro.conf.arg(metavar="DIFF")],
    /,
    max_shard_size: ShardSize = "5GB",
) -> None:
    """Write the difference between a tuned model and its base, from which the tuned one comes back bit for bit.

    Args:
        base: directory of the checkpoint that was tuned.
        tuned: directory of the tuned one; its vocabulary may have grown.
        diff: directory to make, as large as TUNED. It is of no use without BASE.
    """
    require_new(diff)
    make_diff(base, tuned, diff, parse_size(max_shard_size))
    take_along(diff, tokenizer=tuned, prompts=[tuned])


@differences.command(name="apply")
def recover(
    base: Annotated[Path, tyro.conf.arg(metavar="BASE")],
    diff: Annotated[Path, tyro.conf.arg(metavar="DIFF")],
    out: Annotated[Path, tyro.conf.arg(metavar="OUT")],
    /,
    dtype: DtypeName = "stored",
    max_shard_size: ShardSize = "5GB",
) -> None:
    """Recover the tuned model from its base and the difference; every tensor's checksum is verified.

    Plain differences in floating point, as Alpaca's was published, are added too. They have no checksums: the sum of
    all weights is printed, to be compared with the publisher's. (Some publishers counted rotary tables as weights.)

    Args:
        base: directory of the very checkpoint that was tuned, in any layout.
        diff: directory of the difference.
        out: directory to make.
        dtype: of the weights written, after the check; "stored" is the tuned model's.
    """
    require_new(out)
    total = apply_diff(base, diff, out, parse_size(max_shard_size), dtype=dtype_of(dtype))
    if total is not None:
        print(f"note: {diff} has no checksums to verify; the sum of all weights is {total:.2f}", file=sys.stderr)
    take_along(out, tokenizer=diff if (diff / TOKENIZER_FILE).is_file() else base, prompts=[diff])


def require_new(folder: Path) -> None:
    """Refuse to write where something is."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not an empty directory: name a new one")


def take_along(to: Path, *, tokenizer: Path, prompts: Sequence[Path]) -> None:
    """Copy what belongs to the weights, and say so if there was no tokenizer. Templates come with tuned models only."""
    if TOKENIZER_FILE in copy_companions(to, tokenizer=tokenizer, prompts=prompts):
        print(f"note: {tokenizer} holds no {TOKENIZER_FILE}; copy the model's own into {to}", file=sys.stderr)


def dtype_of(name: DtypeName) -> torch.dtype | None:
    """The dtype of that name; None for "stored"."""
    return None if name == "stored" else getattr(torch, name)


def parse_size(text: str) -> int:
    """Bytes in a size such as "5GB" (10⁹ each) or "500 MiB" (2²⁰ each).

    >>> parse_size("5GB"), parse_size("1.5 KiB"), parse_size("42")
    (5000000000, 1536, 42)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if match is None or (unit := match[2].upper()) not in UNITS:
        raise ValueError(f"size {text!r} must be a number with one of the units KB, MB, GB, KiB, MiB, GiB, or none")
    return int(float(match[1]) * UNITS[unit])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the arguments name."""
    with plain_errors():
        app.cli(args=arguments, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,))


if __name__ == "__main__":
    main()
