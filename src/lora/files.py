"""Adapter files on disk: written so that none is ever half there, read as untrusted input.

The writer makes a temporary file beside the target, forces it to the disk, reads it back, and renames it last. The
reader runs no code from a file, allocates nothing before a file's own sizes are known to be consistent, and turns every
kind of damage into a ValueError that names the file.
"""

import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
OLD_WEIGHTS_FILE = "adapter_model.bin"


def write_adapter_files(folder: Path, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write settings and tensors as a pair that replaces the folder's earlier one.

    Weights are renamed into place after they were read back and found equal bit by bit. Under unchanged settings that
    one rename is the whole change. Under other settings the old ones are removed first, so that an interruption leaves
    a folder that is refused, never old settings beside new weights.

    Raises:
        ValueError: what was read back is not what was written (a failing disk); the earlier files are still there.
        OSError: the system's reason, such as a full disk; likewise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config_text = (json.dumps(settings, indent=2) + "\n").encode()
    config, weights = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    new_config, new_weights = folder / f".{CONFIG_FILE}.tmp", folder / f".{WEIGHTS_FILE}.tmp"
    try:
        # The metadata is what transformers and peft look for: the framework that wrote the tensors.
        _write_durably(new_weights, safetensors.torch.save(dict(tensors), metadata={"format": "pt"}))
        _write_durably(new_config, config_text)
        if (changed := difference(tensors, read_safetensors(new_weights))) is not None:
            raise ValueError(f"{new_weights}: {changed} did not survive being written; check the disk")
        if config.exists() and config.read_bytes() != config_text:
            config.unlink()
        os.replace(new_weights, weights)
        os.replace(new_config, config)
        _sync(folder)
    finally:
        new_weights.unlink(missing_ok=True)
        new_config.unlink(missing_ok=True)


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
        ValueError: it is missing, or not a JSON object.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        found = ", ".join(sorted(entry.name for entry in folder.iterdir())) if folder.is_dir() else "no such directory"
        raise ValueError(
            f"{path} is missing ({found or 'an empty directory'}): name a directory written by save_adapter"
        )
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # bad UTF-8, bad JSON, brackets nested without end
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold a JSON object, found {type(settings).__name__}")
    return settings


def read_tensors(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """The file that holds the folder's weights, and what is in it. safetensors wins over the older `.bin`.

    Raises:
        ValueError: no such file; it is damaged, or holds something other than named dense tensors, or none at all.
    """
    readers = {folder / WEIGHTS_FILE: read_safetensors, folder / OLD_WEIGHTS_FILE: read_pickle}
    path = next((path for path in readers if path.is_file()), None)
    if path is None:
        raise ValueError(f"{folder} has no {WEIGHTS_FILE} or {OLD_WEIGHTS_FILE}: the adapter's weights are missing")
    tensors = readers[path](path)
    if not tensors:
        raise ValueError(
            f"{path} holds no tensors ({path.stat().st_size} bytes): nothing that was trained is in it. Files of 443 "
            "bytes came from training scripts that overrode model.state_dict(): PEFT then looked for full names in a "
            "dictionary that had shortened ones, found none, and saved an empty one. Look for weights in that run's "
            "checkpoint directories, or train again"
        )
    return path, tensors


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file."""
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is not a sound safetensors file: {error}") from error


def read_pickle(path: Path) -> dict[str, Tensor]:
    """All tensors of a file written by `torch.save`. Only tensors and plain containers are unpickled."""
    _check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile pickle can make the restricted unpickler raise anything
        raise ValueError(f"{path} cannot be read as plain tensors (no code is run from it): {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a dictionary of tensors, found {type(content).__name__}")
    for name, value in content.items():
        if not (isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided):
            raise ValueError(f"{path} must map names to dense tensors; {name!r} is not such an entry")
    return dict(content)


def _check_archive(path: Path) -> None:
    """Refuse a zip whose records are compressed or together larger than the file: torch.save makes neither, a zip bomb
    one or the other (records may share their bytes)."""
    if not zipfile.is_zipfile(path):
        return  # the format before torch 1.6: a bare pickle, no larger in memory than on disk
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise ValueError(f"{path} is a damaged archive: {error}") from error
    if compressed := [record.filename for record in records if record.compress_type != zipfile.ZIP_STORED]:
        raise ValueError(f"{path}: record {compressed[0]!r} is compressed, as torch.save never does")
    if (claimed := sum(record.file_size for record in records)) > size:
        raise ValueError(f"{path}: its records claim {claimed} bytes in a file of {size}")


def _write_durably(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Make the renames in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
