"""Tensors whose rows lie on several processes: to files and back at any number of processes, and whole to one of them.

    output/checkpoints/step-00000120/
        shard-00001-model-00001-of-00002.safetensors    rows of rank 0, the first half of the names
        shard-00002-model-00001-of-00002.safetensors    rows of rank 1, the same names

`torch.distributed.checkpoint` cuts and joins, in Hugging Face's storage format: safetensors, where a file's metadata
says at which row of the whole tensor its part begins. (Its default format has an index that is unpickled, and a pickle
can run code.) Each rank writes its own files; a file is serialised in memory before it is written, so files are small.

What is read is checked before anything changes: every name there, in its shape and dtype, every row exactly once.

A model's weights come from, and at the end go to, files that know nothing of processes: there a tensor at a time is
whole, on each rank that picks its rows from it (`put_rows`), or on rank 0 alone, which writes it (`export`).
"""

import json
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.tensor import DTensor

from files import StoredTensor, open_tensor_file
from files.errors import DamagedFileError, UnsuitableFileError
from optim8bit.sharding import is_sharded, local_part, own_rows
from training.team import LostProcessError, Team

Result = TypeVar("Result")

SHARD_BYTES = 2**28
"""What one rank puts into one file; serialising takes two or three times that in memory for a moment."""


def save_shards(
    folder: Path, tensors: Mapping[str, Tensor], team: Team, *, shard_bytes: int = SHARD_BYTES
) -> list[Path]:
    """Write tensors into a directory, each rank its own rows, and return this rank's files (forced to the disk).

    Args:
        folder: there already, the same directory for all ranks.
        tensors: the same names on every rank; a DTensor's rows are written where they lie, any other tensor, which
            all ranks hold alike, by one of them.
        shard_bytes: a rank's files are about that large; a single tensor may be larger.

    Raises:
        OSError: the system refuses, on the rank where it does.
        LostProcessError: it refused another rank.
    """
    writer = HuggingFaceStorageWriter(str(folder), _files_of(tensors, team, shard_bytes), save_distributed=True)
    _on_all_ranks(folder, team, lambda: dcp.save(dict(tensors), storage_writer=writer, no_dist=team.size == 1))
    return sorted(folder.glob(f"shard-{team.rank + 1:05d}-*.safetensors"))  # the format counts ranks from 1


def load_shards(folder: Path, tensors: Mapping[str, Tensor], team: Team) -> None:
    """Fill tensors, in place, from the safetensors files of a directory; each rank reads the rows it needs.

    Args:
        folder: written by `save_shards` at any number of ranks, or plain safetensors files of whole tensors. It may
            hold more tensors than asked for.
        tensors: the same names on every rank; DTensors, or plain ones, which get all rows.

    Raises:
        DamagedFileError: a file is not whole, rows are missing or there twice.
        UnsuitableFileError: a tensor is not there, or has another shape or dtype. Nothing has changed then.
        OSError: the system refuses to read.
        LostProcessError: one of these happened on another rank alone.
    """
    with team.together():
        _check_parts(folder, tensors)
    reader = _Reader(str(folder))
    _on_all_ranks(folder, team, lambda: dcp.load(dict(tensors), storage_reader=reader, no_dist=team.size == 1))


def put_rows(parameter: Tensor, whole: Tensor) -> None:
    """Copy into a parameter the rows that it has on this rank."""
    local_part(parameter.detach()).copy_(own_rows(whole, parameter))


def export(model: nn.Module, team: Team, write: Callable[[Callable[[str], Tensor]], Result]) -> Result:
    """Run `write` on rank 0 with a function that fetches a parameter by name; the others send their rows when asked.

    Args:
        model: the same on every rank, of DTensors or plain.
        write: what it fetches is on the CPU, whole, and its own: the others keep nothing.

    Returns:
        What `write` returned, on every rank.

    Raises:
        Exception: what `write` raised, on rank 0.
        LostProcessError: it raised, on the others.
    """
    parameters = dict(model.named_parameters())
    if not team.leads:
        while True:
            kind, content = team.leaders(cast(tuple[str, Any], None))
            if kind == "failed":
                raise LostProcessError(f"rank 0 of {team.size} failed: {content}")
            if kind == "done":
                return content
            _send_rows(parameters[content])

    def fetch(name: str) -> Tensor:
        team.leaders(("rows of", name))
        return _receive_rows(parameters[name])

    try:
        result = write(fetch)
    except Exception as error:
        with suppress(RuntimeError):  # if a rank is gone, that is the error, and nobody listens
            team.leaders(("failed", f"{type(error).__name__}: {error}"))
        raise
    team.leaders(("done", result))
    return result


# --- Parts ---


def _send_rows(parameter: Tensor) -> None:
    if is_sharded(parameter) and (part := local_part(parameter.detach())).numel():
        dist.send(part.cpu().contiguous(), dst=0)


def _receive_rows(parameter: Tensor) -> Tensor:
    """All rows, on rank 0's CPU. Parts go through the CPUs' memory: a GPU need not hold a whole tensor besides."""
    part = local_part(parameter.detach())
    if not is_sharded(parameter):
        return part
    whole = torch.empty(parameter.shape, dtype=parameter.dtype)
    for rank, rows in enumerate(whole.split(max(1, len(part)))):  # rank 0 has as many as any
        if rank == 0:
            rows.copy_(part)
        else:
            dist.recv(rows, src=rank)
    return whole


class _Reader(HuggingFaceStorageReader):
    """As torch's; but its errors travel to the other ranks in pickles, which safetensors' own cannot."""

    def read_data(self, plan: Any, planner: Any) -> Any:
        try:
            return super().read_data(plan, planner)
        except SafetensorError as error:
            raise OSError(f"{self.path}: {error}") from None


def _files_of(tensors: Mapping[str, Tensor], team: Team, shard_bytes: int) -> dict[str, int]:
    """Number of the file, from 1, for each name: the same on all ranks, by the bytes of the largest share."""
    files: dict[str, int] = {}
    number, size = 1, 0
    for name, tensor in tensors.items():
        share = -(-tensor.nbytes // team.size) if isinstance(tensor, DTensor) else tensor.nbytes
        if size and size + share > shard_bytes:
            number, size = number + 1, 0
        files[name] = number
        size += share
    return files


def _on_all_ranks(folder: Path, team: Team, action: Callable[[], object]) -> None:
    """Run a collective operation of torch's checkpoints; what fails on one rank is told to all by its own error."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # alone, as is meant
            action()
    except CheckpointException as failed:
        failures = {rank: error for rank, (error, _) in failed.failures.items()}
        if own := failures.get(team.rank):
            if isinstance(own, OSError) and own.errno is not None and own.filename is None:
                own = OSError(own.errno, own.strerror, str(folder))
            raise own from None
        rank, error = min(failures.items())
        raise LostProcessError(f"rank {rank} of {team.size} failed: {type(error).__name__}: {error}") from None


def _check_parts(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Every wanted tensor is there in its shape and dtype, and its parts cover each element exactly once."""
    parts: dict[str, list[tuple[Path, list[int], StoredTensor]]] = defaultdict(list)
    for file in sorted(folder.glob("*.safetensors")):
        offsets = _offsets(file)
        for name, stored in open_tensor_file(file).items():
            if name in tensors:
                parts[name].append((file, _offset(file, name, stored, offsets), stored))
    for name, tensor in tensors.items():
        if name not in parts:
            raise UnsuitableFileError(
                "not there", file=folder, place=name, remedy="resume with the model and the optimizer that were saved"
            )
        _check_tensor(folder, name, tensor, parts[name])


def _check_tensor(folder: Path, name: str, tensor: Tensor, parts: list[tuple[Path, list[int], StoredTensor]]) -> None:
    wanted = tuple(tensor.shape)
    for file, _, stored in parts:
        if stored.dtype != tensor.dtype or len(stored.shape) != len(wanted):
            raise UnsuitableFileError(
                f"{stored.dtype} of shape {stored.shape}, but {tensor.dtype} of shape {wanted} is needed",
                file=file,
                place=name,
                remedy="resume with the settings of the run that wrote it",
            )
    ends = [[start + size for start, size in zip(offset, part.shape, strict=True)] for _, offset, part in parts]
    found = tuple(map(max, zip(*ends, strict=True)))
    if found != wanted:
        raise UnsuitableFileError(
            f"the parts in {len(parts)} files make shape {found}, but {wanted} is needed",
            file=folder,
            place=name,
            remedy="another model's, or a file is missing: resume from an earlier checkpoint",
        )
    end = 0
    # Rows are all that is ever cut: a part has every column, and begins at the row where the one before it ended.
    for file, offset, part in sorted(parts, key=lambda each: (each[1], prod(each[2].shape))):
        rows = part.shape[0] if part.shape else 1
        if 0 in part.shape and 0 not in wanted:
            continue
        if part.shape[1:] != wanted[1:] or any(offset[1:]) or (offset and offset[0] != end):
            raise DamagedFileError(
                f"has rows {offset[0] if offset else 0} to {(offset[0] if offset else 0) + rows}, "
                f"but row {end} comes next: a part is missing or there twice",
                file=file,
                place=name,
                remedy="resume from an earlier checkpoint",
            )
        end += rows


def _offsets(file: Path) -> dict[str, Any] | None:
    """Where the parts in a file begin, as its metadata says; None: it holds whole tensors."""
    try:
        with safe_open(file, framework="pt") as opened:
            text = (opened.metadata() or {}).get("DCP_SHARDING_INFO")
        content = None if text is None else json.loads(text)
    except (SafetensorError, ValueError, RecursionError) as error:
        raise DamagedFileError(
            f"not a whole safetensors file ({error})", file=file, remedy="resume from an earlier checkpoint"
        ) from error
    if content is not None and not isinstance(content, dict):
        raise DamagedFileError("DCP_SHARDING_INFO is no object", file=file, remedy="resume from an earlier checkpoint")
    return content


def _offset(file: Path, name: str, stored: StoredTensor, offsets: dict[str, Any] | None) -> list[int]:
    """Where a part begins in each dimension."""
    if offsets is None:
        return [0] * len(stored.shape)
    entry = offsets.get(name)
    found = entry.get("saved_offsets") if isinstance(entry, dict) else None
    if (
        not isinstance(found, list)
        or len(found) != len(stored.shape)
        or not all(type(start) is int and start >= 0 for start in found)
    ):
        raise DamagedFileError(
            f"its place in the whole tensor is {found!r}: not one number for each of {len(stored.shape)} dimensions",
            file=file,
            place=name,
            remedy="resume from an earlier checkpoint",
        )
    return found
