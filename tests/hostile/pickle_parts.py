"""Pickles put together by hand, the archives around them, and every place where one is read."""

import io
import json
import pickle
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hostile.sound_files import make_bin, make_meta, make_meta_shards, make_old_adapter, tiny_model

from files import read_pickle, read_pickled_tensors
from llama import load_checkpoint
from llama.checkpoint import apply_diff, read_config
from lora import load_adapter
from recipe.int8_checkpoint import write_int8_checkpoint

REBUILD = torch._utils._rebuild_tensor_v2


class Storage:
    """Pickled as torch pickles a reference to the record data/<key>."""

    def __init__(self, numel: Any = 4, key: Any = "0", dtype: Any = torch.FloatStorage) -> None:
        self.reference = ("storage", dtype, key, "cpu", numel)


class Call:
    """Pickled as a call of `function`."""

    def __init__(self, function: Callable, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def tensor(shape: tuple[int, ...], stride: tuple[int, ...], storage: Storage | None = None, offset: int = 0) -> Call:
    return Call(REBUILD, storage or Storage(), offset, shape, stride, False, OrderedDict())


class Pickler(pickle.Pickler):
    def persistent_id(self, value: object) -> Any:
        return value.reference if isinstance(value, Storage) else None


def pickled(content: object) -> bytes:
    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump(content)
    return buffer.getvalue()


def write_archive(file: Path, data_pkl: bytes, **options: Any) -> Path:
    """An archive as torch writes it, of four floats, with another data.pkl."""
    torch.save({"a": torch.zeros(4)}, file)
    with zipfile.ZipFile(file) as archive:
        records = {record.filename: archive.read(record) for record in archive.infolist()}
    with zipfile.ZipFile(file, "w", **options) as archive:
        for name, content in records.items():
            archive.writestr(name, data_pkl if name.endswith("data.pkl") else content)
    return file


# --- Places: each directory holds one pickle, to be replaced ---


def remove(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).unlink()


def make_bin_shard(folder: Path) -> None:
    make_bin(folder)
    content = read_pickled_tensors(folder / "pytorch_model.bin")
    names = list(content)
    remove(folder, "pytorch_model.bin")
    files = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    for file, part in zip(files, (names[:3], names[3:]), strict=True):
        torch.save({name: content[name].clone() for name in part}, folder / file)
    weight_map = {name: files[name not in names[:3]] for name in names}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


def make_plain_difference(folder: Path) -> None:
    """As Alpaca published one: a checkpoint like any other, in .bin."""
    make_bin(folder / "base")
    make_bin(folder / "diff")


def read_plain_difference(folder: Path) -> None:
    apply_diff(folder / "base", folder / "diff", folder / "out", progress=False)


def make_index_of_a_pickle(folder: Path) -> None:
    """An index of safetensors may name files of any suffix."""
    make_bin(folder)
    content = read_pickled_tensors(folder / "pytorch_model.bin")
    (folder / "pytorch_model.bin").rename(folder / "evil.pt")
    shutil.copy(folder / "evil.pt", folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(content, "evil.pt")}))


PLACES: dict[str, tuple[str, Callable[[Path], None], Callable[[Path], object]]] = {
    "pytorch_model.bin": ("pytorch_model.bin", make_bin, load_checkpoint),
    "a shard of pytorch_model.bin": ("pytorch_model-00002-of-00002.bin", make_bin_shard, load_checkpoint),
    "a file that a safetensors index names": ("evil.pt", make_index_of_a_pickle, load_checkpoint),
    "consolidated.00.pth": ("consolidated.00.pth", make_meta, load_checkpoint),
    "consolidated.01.pth": ("consolidated.01.pth", make_meta_shards, load_checkpoint),
    "consolidated.00.pth, for its shape": ("consolidated.00.pth", make_meta, read_config),
    "adapter_model.bin": ("adapter_model.bin", make_old_adapter, lambda folder: load_adapter(tiny_model(), folder)),
    "a plain difference": ("diff/pytorch_model.bin", make_plain_difference, read_plain_difference),
    "the base of a difference": ("base/pytorch_model.bin", make_plain_difference, read_plain_difference),
    "the source of int8": (
        "pytorch_model.bin",
        make_bin,
        lambda folder: write_int8_checkpoint(folder, folder / "int8", progress=False),
    ),
    "any pickle": ("a.pt", lambda folder: None, lambda folder: read_pickle(folder / "a.pt")),
    "any pickle, mapped": ("a.pt", lambda folder: None, lambda folder: read_pickle(folder / "a.pt", mmap=True)),
    "tensors": ("a.pt", lambda folder: None, lambda folder: read_pickled_tensors(folder / "a.pt")),
}
