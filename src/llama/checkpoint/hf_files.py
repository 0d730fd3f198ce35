"""Hugging Face's weight files: one, or several with an index that says which tensor is where.

The index is a file like any other, and may be hostile: what it names must be bare names of files beside it, and links
must not lead out of the directory (but for the hub's cache, which keeps all files under links).
"""

import re
from collections.abc import Sequence
from pathlib import Path

from files import (
    DamagedFileError,
    StoredTensor,
    UnsafeFileError,
    UnsuitableFileError,
    open_tensor_file,
    read_json_object,
    shown,
)
from llama.checkpoint.names import is_ignored


def hf_tensors(folder: Path, weights: Sequence[Path]) -> dict[str, StoredTensor]:
    """All tensors of all weight files, or of those the index names, by their stored names."""
    single = "model.safetensors" if weights[0].suffix == ".safetensors" else "pytorch_model.bin"
    index = folder / f"{single}.index.json"
    weight_map = None
    if index.is_file():
        weight_map = read_weight_map(index)
        if (folder / single).is_file() and single not in weight_map.values():
            raise UnsuitableFileError(
                f"it holds both {single} and {index.name}, which does not name it",
                file=folder,
                remedy="remove the stale one",
            )
        weights = sorted({folder / file for file in weight_map.values()})
    tensors: dict[str, StoredTensor] = {}
    for file in weights:
        for name, tensor in open_tensor_file(file).items():
            if is_ignored(name):
                continue
            if name in tensors:
                raise UnsuitableFileError(
                    f"{name} is stored twice, the second time in {file.name}", file=folder, remedy="remove stale files"
                )
            if weight_map is not None and weight_map.get(name, file.name) != file.name:
                raise DamagedFileError(
                    f"{name} is said to be in {weight_map[name]}, but is in {file.name}",
                    file=index,
                    remedy="download index and weights again",
                )
            tensors[name] = tensor
    return tensors


def read_weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> file name from an index file.

    Raises:
        UnsafeFileError: an entry is not the bare name of a file in the index's own directory.
        DamagedFileError: there is no such map, or a file that it names is not there.
    """
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise DamagedFileError(
            "it must hold a weight_map from tensor names to file names", file=index, remedy="download it again"
        )
    for file_name in {repr(entry): entry for entry in weight_map.values()}.values():
        _check_bare_file_name(index, file_name)
    return weight_map


def _check_bare_file_name(index: Path, name: object) -> None:
    folder = index.parent
    if not isinstance(name, str) or not re.fullmatch(r"[^/\\\0]+", name) or name in (".", ".."):
        raise UnsafeFileError(
            f"weight_map names {shown(name)}, which is not a bare file name",
            file=index,
            remedy="the index is refused; download the model from its own source",
        )
    if not (folder / name).is_file():
        raise DamagedFileError(
            f"weight_map names {name}, which is not there", file=index, remedy="download it, or save the model anew"
        )
    target_folder, home = (folder / name).resolve().parent, folder.resolve()
    # The hub's cache keeps the files of snapshots/<revision> in blobs/ beside it, under links.
    cached = home.parent.name == "snapshots" and target_folder == home.parent.parent / "blobs"
    if target_folder != home and not cached:
        raise UnsafeFileError(
            f"weight_map names {name}, a link out of the directory", file=index, remedy="copy the file itself here"
        )
