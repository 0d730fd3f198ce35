"""The difference between a tuned model and its base: a tuned model can be published without giving the base away.

    make     D = bits(tuned) ⊕ bits(base)             apply     tuned = D ⊕ bits(base)

⊕ is the exclusive or of the numbers' bit patterns, read as whole numbers of the same width: a subtraction without
rounding or overflow that undoes itself. So the tuned weights come back bit for bit, infinities and −0 included, in as
many bytes as they had. No subtraction of the numbers themselves does that: for a base weight of 1 and a tuned one of
2⁻³⁰ even the float32 difference is −1, and base + difference 0.

The difference is written in Hugging Face's layout: integers under the tensors' names, and in config.json, under
`weight_diff`, the SHA-256 of each tensor of the base and of the tuned model. Applying checks the base's tensor before
and the tuned one after each ⊕, so another base and a damaged file are named, and nothing is left behind. A base of
another dtype is rounded to the tuned model's first; any layout will do. Where a vocabulary has grown, the new rows are
stored whole.

Alpaca (crfm.stanford.edu/2023/03/13/alpaca.html) published plain differences, tuned − base in floating point, and so
did others after it. `apply_diff` takes those too, by Alpaca's rule: the sum is computed in float32, and a row that the
base lacks (its [PAD]) stands against the mean of the base's rows. They carry no checksums but one number, the sum of
all recovered weights.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from files import SAFETENSORS_DTYPES, DamagedFileError, StoredTensor, UnsuitableFileError, read_json_object, shown
from files.writing import SAFETENSORS_NAMES, raw_bytes
from llama.checkpoint.configs import DIFFERENCE, config_from_hf, hf_config_dict
from llama.checkpoint.hf_files import hf_tensors
from llama.checkpoint.names import hf_name, parameter_shapes
from llama.checkpoint.read import Checkpoint, check_depth, open_checkpoint
from llama.checkpoint.save import MAX_SHARD_BYTES, as_hf, cast, check_float_dtype, write_hf_tensors
from llama.config import LlamaConfig

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
EMBEDDING, HEAD = hf_name("tok_embeddings.weight"), hf_name("output.weight")
METHOD = "xor"

Tensors = dict[str, StoredTensor]
Sums = dict[str, dict[str, str]]


@torch.no_grad()
def make_diff(
    base: str | Path,
    tuned: str | Path,
    diff: str | Path,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    *,
    progress: bool = True,
) -> None:
    """Write the difference between two checkpoints, tensor by tensor.

    Args:
        base, tuned: directories in any layout; `tuned` may have more rows in its embedding and head.
        diff: directory to make.
        max_shard_bytes: size at which the result is cut into several files, between tensors.
        progress: show a bar on a terminal and one closing line anywhere, on stderr.

    Raises:
        FileError: a checkpoint is damaged or incomplete, or they are not of one shape. Nothing was written.
    """
    originals, model = open_checkpoint(base), open_checkpoint(tuned)
    before, after = _base_tensors(originals), as_hf(model.tensors, model.config)
    _check_pairs(before, after, tuned, f"{base} and {tuned} are not a base and a model tuned from it")
    sums: Sums = {}
    tensors = {name: _difference(before[name], stored, sums, name) for name, stored in after.items()}
    content = hf_config_dict(model.config, after[EMBEDDING].dtype)
    write_hf_tensors(
        tensors,
        Path(diff),
        max_shard_bytes,
        lambda: content | {DIFFERENCE: {"method": METHOD, "tensors": sums}},
        kind="difference of bit patterns",
        progress=progress,
    )


@torch.no_grad()
def apply_diff(
    base: str | Path,
    diff: str | Path,
    out: str | Path,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    *,
    dtype: torch.dtype | None = None,
    progress: bool = True,
) -> float | None:
    """Recover a tuned checkpoint from its base and the difference, tensor by tensor.

    Args:
        base: directory in any layout.
        diff: directory written by `make_diff`, or a plain difference in any layout.
        out: directory to make, in Hugging Face's layout.
        max_shard_bytes, progress: as for `make_diff`.
        dtype: of the result, rounded to after the checks; None is the tuned model's (of a plain difference, its own).

    Returns:
        None if every tensor was verified. Of a plain difference, which cannot be, the sum of all recovered weights.

    Raises:
        FileError: the base is not the one that the difference was made with, a file is damaged, or the shapes differ.
            Nothing is left in `out`.
    """
    check_float_dtype(dtype)
    before = _base_tensors(open_checkpoint(base))
    partial_sums: list[float] = []
    if verified := is_weight_diff(diff):
        config, stored, sums = _open_diff(Path(diff))
        _check_pairs(before, stored, diff, f"{diff} was not made with {base}")
        tensors = {name: _recovered(before[name], d, sums[name], base, diff, name) for name, d in stored.items()}
    else:
        model = open_checkpoint(diff)
        config, stored = model.config, as_hf(model.tensors, model.config)
        _check_pairs(before, stored, diff, f"{diff} was not made with {base}")
        tensors = {name: _sum(before[name], d, partial_sums) for name, d in stored.items()}
    tensors = {name: cast(tensor, dtype or tensor.dtype) for name, tensor in tensors.items()}
    content = hf_config_dict(config, tensors[EMBEDDING].dtype)
    write_hf_tensors(tensors, Path(out), max_shard_bytes, lambda: content, progress=progress)
    return None if verified else sum(partial_sums)


def is_weight_diff(path: str | Path) -> bool:
    """Whether a directory holds what `make_diff` writes.

    Raises:
        DamagedFileError: its config.json is.
    """
    file = Path(path) / "config.json"
    return file.is_file() and DIFFERENCE in read_json_object(file)


def _base_tensors(checkpoint: Checkpoint) -> Tensors:
    """The base's tensors under Hugging Face's names; its head, too, if that is its embedding."""
    tensors = as_hf(checkpoint.tensors, checkpoint.config)
    return {HEAD: tensors[EMBEDDING]} | tensors


def _check_pairs(base: Tensors, tuned: Tensors, path: str | Path, complaint: str) -> None:
    """Both have the same tensors of the same shapes, but for a tied head and more rows of the vocabulary."""
    problems = [f"{name} is missing from one" for name in sorted((base.keys() ^ tuned.keys()) - {HEAD})]
    for name in tuned.keys() & base.keys():
        (rows, *width), (base_rows, *base_width) = tuned[name].shape, base[name].shape
        grown = name in (EMBEDDING, HEAD) and rows > base_rows
        if width != base_width or (rows != base_rows and not grown):
            problems.append(f"{name} is {base[name].shape} in the base, {tuned[name].shape} in the other")
    if problems:
        more = f", and {len(problems) - 1} more" if problems[1:] else ""
        raise UnsuitableFileError(
            f"{complaint}: {problems[0]}{more}", file=path, remedy="name two that belong together"
        )


def _difference(base: StoredTensor, tuned: StoredTensor, sums: Sums, name: str) -> StoredTensor:
    """Bits of the difference; reading it enters both checksums."""

    def read() -> Tensor:
        before, after = base.read().to(tuned.dtype), tuned.read()
        sums[name] = {"dtype": SAFETENSORS_NAMES[tuned.dtype], "base": _sha256(before), "tuned": _sha256(after)}
        return _xor(after, before)

    return StoredTensor(tuned.shape, INTEGERS[tuned.dtype.itemsize], read)


def _recovered(
    base: StoredTensor,
    diff: StoredTensor,
    sums: Mapping[str, str],
    base_path: str | Path,
    diff_path: str | Path,
    name: str,
) -> StoredTensor:
    """The tuned tensor; reading it checks the base before and the result after."""
    dtype = SAFETENSORS_DTYPES[sums["dtype"]]

    def read() -> Tensor:
        before = base.read().to(dtype)
        if _sha256(before) != sums["base"]:
            raise UnsuitableFileError(
                f"{name} has other values than the base that {diff_path} was made with",
                file=base_path,
                remedy="give that base",
            )
        after = _xor(diff.read(), before).view(dtype)
        if _sha256(after) != sums["tuned"]:
            raise DamagedFileError(
                f"{name} is damaged, its sum does not fit", file=diff_path, remedy="download or make it again"
            )
        return after

    return StoredTensor(diff.shape, dtype, read)


def _sum(base: StoredTensor, diff: StoredTensor, sums: list[float]) -> StoredTensor:
    """base + difference in floating point; reading it enters the result's sum."""

    def read() -> Tensor:
        before = base.read().float()
        total = diff.read().to(torch.float32, copy=True)
        total[: len(before)] += before
        if len(total) > len(before):
            total[len(before) :] += before.mean(dim=0)
        sums.append(total.sum(dtype=torch.float64).item())
        return total.to(diff.dtype)

    return StoredTensor(diff.shape, diff.dtype, read)


def _xor(tensor: Tensor, base: Tensor) -> Tensor:
    """Bits of `tensor` with those of `base` flipped, as integers; rows that the base lacks stay as they are.

    >>> _xor(torch.tensor([1.0, -2.0, 0.5]), torch.tensor([1.0, 2.0])).tolist()  # 0.5 is 3f000000
    [0, -2147483648, 1056964608]
    """
    bits = tensor.contiguous().view(INTEGERS[tensor.dtype.itemsize]).clone()
    bits[: len(base)] ^= base.contiguous().view(bits.dtype)
    return bits


def _sha256(tensor: Tensor) -> str:
    return hashlib.sha256(raw_bytes(tensor)).hexdigest()


def _open_diff(folder: Path) -> tuple[LlamaConfig, Tensors, Sums]:
    """Shape, integers and checksums of a difference, found to belong together."""
    file = folder / "config.json"
    raw = read_json_object(file)
    config = config_from_hf(raw, str(file), mark=DIFFERENCE)
    settings = raw[DIFFERENCE]
    if (
        not isinstance(settings, dict)
        or settings.get("method") != METHOD
        or not isinstance(settings.get("tensors"), dict)
    ):
        raise DamagedFileError(
            f"{DIFFERENCE} must hold method = {METHOD!r} and tensors", file=file, remedy="make the difference anew"
        )
    weights = sorted(folder.glob("model*.safetensors"))
    if not weights:
        raise UnsuitableFileError(
            "it holds no model*.safetensors beside its config.json", file=folder, remedy="download the difference whole"
        )
    stored, sums = hf_tensors(folder, weights), settings["tensors"]
    check_depth(file, config, stored)
    shapes = {hf_name(name): shape for name, shape in parameter_shapes(config).items()}
    if config.tie_embeddings:
        del shapes[HEAD]
    for name in shapes | stored | sums:
        if name not in shapes or name not in stored or not _fits(stored[name], shapes[name], sums.get(name)):
            raise DamagedFileError(
                f"{name} does not fit what config.json says of it (shape {shapes.get(name)}, {shown(sums.get(name))})",
                file=folder,
                remedy="download or make the difference again",
            )
    return config, {name: stored[name] for name in shapes}, sums


def _fits(stored: StoredTensor, shape: tuple[int, ...], entry: object) -> bool:
    """Whether an entry of config.json is one, and speaks of such integers."""
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("dtype", "base", "tuned")):
        return False
    dtype = SAFETENSORS_DTYPES.get(entry["dtype"])
    if dtype is None or not dtype.is_floating_point:
        return False
    return (stored.shape, stored.dtype) == (shape, INTEGERS[dtype.itemsize])
