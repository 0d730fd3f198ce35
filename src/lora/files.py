"""An adapter's pair of files: settings and weights, replaced together, and read back before they are.

`files` has the rules of writing and reading; here is what they come to for a directory in PEFT's format.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from files import (
    DamagedFileError,
    StoredTensor,
    UnsuitableFileError,
    json_text,
    read_json_object,
    read_pickled_tensors,
    read_safetensors,
    staged_files,
    write_safetensors,
)

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
OLD_WEIGHTS_FILE = "adapter_model.bin"


def write_adapter_files(folder: Path, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write settings and tensors as a pair that replaces the folder's earlier one.

    Weights get their place after they were read back and found equal bit by bit. Under unchanged settings that one
    rename is the whole change. Under other settings the old ones are removed first, so that an interruption leaves a
    folder that is refused, never old settings beside new weights.

    Raises:
        DamagedFileError: what was read back is not what was written; the earlier files are still there.
        OSError: the system's reason, such as a full disk; likewise.
    """
    with staged_files(folder, last=CONFIG_FILE) as staging:
        write_safetensors(staging / WEIGHTS_FILE, {name: StoredTensor.of(tensor) for name, tensor in tensors.items()})
        (staging / CONFIG_FILE).write_bytes(json_text(settings))
        if (changed := difference(tensors, read_safetensors(staging / WEIGHTS_FILE))) is not None:
            raise DamagedFileError(
                f"{changed} did not survive being written", file=folder / WEIGHTS_FILE, remedy="check the disk"
            )


def difference(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> str | None:
    """The first name under which the two differ in presence, shape, dtype or any bit; None if they are the same.

    >>> difference({"a": torch.tensor([0.0])}, {"a": torch.tensor([-0.0])})
    'a'
    """
    for name in [*left, *(name for name in right if name not in left)]:
        a, b = left.get(name), right.get(name)
        if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
            return name
        if not torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)):
            return name
    return None


def read_settings(folder: Path) -> dict[str, Any]:
    """The folder's `adapter_config.json`.

    Raises:
        UnsuitableFileError: it is missing.
        DamagedFileError: it is not a JSON object.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        found = ", ".join(sorted(entry.name for entry in folder.iterdir())) if folder.is_dir() else "no such directory"
        raise UnsuitableFileError(
            f"{path} is missing ({found or 'an empty directory'})",
            file=folder,
            remedy="name a directory written by save_adapter",
        )
    return read_json_object(path)


def read_tensors(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """The file that holds the folder's weights, and what is in it. safetensors wins over the older `.bin`.

    Raises:
        FileError: no such file; it is damaged, or holds something other than named dense tensors, or none at all.
    """
    readers = {folder / WEIGHTS_FILE: read_safetensors, folder / OLD_WEIGHTS_FILE: read_pickled_tensors}
    path = next((path for path in readers if path.is_file()), None)
    if path is None:
        raise UnsuitableFileError(
            f"it has no {WEIGHTS_FILE} or {OLD_WEIGHTS_FILE}: the adapter's weights are missing",
            file=folder,
            remedy="copy them there",
        )
    tensors = readers[path](path)
    if not tensors:
        raise UnsuitableFileError(
            f"it holds no tensors ({path.stat().st_size} bytes): nothing that was trained is in it. Files of 443 "
            "bytes came from training scripts that overrode model.state_dict(): PEFT then looked for full names in a "
            "dictionary that had shortened ones, found none, and saved an empty one",
            file=path,
            remedy="look for weights in that run's checkpoint directories, or train again",
        )
    return path, tensors
