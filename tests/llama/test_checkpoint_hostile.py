"""Checkpoints as untrusted input: no code runs, no path escapes. Damage to one file: tests/files/test_reading.py."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from oracles.checkpoint_files import random_state, write_hf, write_meta

from llama.checkpoint import open_checkpoint


def with_index_entry(folder: Path, entry: object) -> Path:
    """A checkpoint of two files in whose index one tensor points elsewhere."""
    write_hf(folder, random_state(), suffix="safetensors", n_files=2, index=True)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["lm_head.weight"] = entry
    index.write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    "entry",
    ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", "a\\b", "a\0b", None, 3, ["x"], {"x": 1}],
)
def test_index_entries_must_be_bare_names(entry: object, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"secret")
    with pytest.raises(ValueError, match=r"index\.json.*not a bare file name"):
        open_checkpoint(with_index_entry(tmp_path / "model", entry))


def test_index_entries_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"names gone\.safetensors, which is not there"):
        open_checkpoint(with_index_entry(tmp_path, "gone.safetensors"))


def test_links_out_of_the_directory_are_refused(tmp_path: Path) -> None:
    folder = with_index_entry(tmp_path / "model", "link.safetensors")
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes((folder / "model-00001-of-00002.safetensors").read_bytes())
    (folder / "link.safetensors").symlink_to(outside)
    with pytest.raises(ValueError, match=r"link\.safetensors, a link out of the directory"):
        open_checkpoint(folder)


def test_links_of_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "snapshots/abc", random_state(), suffix="safetensors", n_files=2, index=True)
    (tmp_path / "blobs").mkdir()
    for number, file in enumerate(folder.glob("*.safetensors")):
        file.rename(tmp_path / "blobs" / str(number))
        file.symlink_to(Path("../../blobs") / str(number))
    assert len(open_checkpoint(folder).tensors) == len(random_state())


@pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', '{"weight_map": {}}', "[]", "{"])
def test_broken_index_is_named(content: str, tmp_path: Path) -> None:
    folder = write_hf(tmp_path, random_state(), suffix="safetensors", n_files=2, index=True)
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json"):
        open_checkpoint(folder)


def test_index_and_files_must_agree(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lm_head\.weight is said to be in model-00002.*, but is in model-00001"):
        open_checkpoint(with_index_entry(tmp_path, "model-00002-of-00002.safetensors"))


class Canary:
    """Its pickle, once loaded without care, creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth"])
@pytest.mark.parametrize("archived", [True, False])
def test_no_code_runs_from_a_pickle(name: str, archived: bool, tmp_path: Path) -> None:
    write_hf(tmp_path, random_state(), suffix="bin")
    write_meta(tmp_path, random_state())
    if name.endswith(".pth"):
        (tmp_path / "config.json").unlink()
    file, canary = tmp_path / name, tmp_path / "canary"
    if archived:
        torch.save({"lm_head.weight": torch.zeros(1), "x": Canary(canary)}, file)
    else:
        file.write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(ValueError, match=rf"{name}.*(is refused|not a whole zip archive)"):
        open_checkpoint(tmp_path)
    assert not canary.exists()
    if archived:  # the trap is a real one
        torch.load(file, weights_only=False)
        assert canary.exists()
