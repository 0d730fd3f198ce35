import os
from pathlib import Path

import pytest
import torch
from power_cut import PowerCut, cut_power
from torch import Tensor

from lora import files
from lora.files import difference, read_settings, read_tensors, write_adapter_files

OLD, NEW = (
    {"a": torch.tensor([1.0, 2.0]), "b": torch.zeros(2, 2)},
    {"a": torch.tensor([3.0, 4.0]), "b": torch.ones(2, 2)},
)


@pytest.mark.parametrize("same_settings", [True, False])
@pytest.mark.parametrize("n", range(1, 22))
def test_a_power_cut_leaves_the_old_or_the_new_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int, same_settings: bool
) -> None:
    old, new = {"r": 1}, {"r": 1 if same_settings else 2}
    write_adapter_files(tmp_path, old, OLD)
    log = cut_power(monkeypatch, n)
    try:
        write_adapter_files(tmp_path, new, NEW)
    except PowerCut:
        assert len(log) >= n
    monkeypatch.undo()
    try:
        found = read_settings(tmp_path)
    except ValueError as error:
        assert not same_settings and "adapter_config.json is missing" in str(error)
    else:
        tensors = read_tensors(tmp_path)[1]
        states = [(old, OLD), (new, NEW)]
        assert any(found == state and difference(tensors, expected) is None for state, expected in states)
    write_adapter_files(tmp_path, new, NEW)  # what was left behind is no obstacle
    assert difference(read_tensors(tmp_path)[1], NEW) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_a_full_disk_leaves_the_old_adapter_and_no_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_adapter_files(tmp_path, {"r": 1}, OLD)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_adapter_files(tmp_path, {"r": 2}, NEW)
    assert read_settings(tmp_path) == {"r": 1} and difference(read_tensors(tmp_path)[1], OLD) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


@pytest.mark.parametrize("damage", ["value", "dtype", "shape", "missing", "extra"])
def test_what_comes_back_changed_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    write_adapter_files(tmp_path, {"r": 1}, OLD)
    changed: dict[str, Tensor] = {
        "value": NEW | {"a": torch.tensor([3.0, 4.0000005])},
        "dtype": NEW | {"a": NEW["a"].double()},
        "shape": NEW | {"b": torch.ones(4)},
        "missing": {"a": NEW["a"]},
        "extra": NEW | {"c": torch.ones(1)},
    }[damage]
    monkeypatch.setattr(files, "read_safetensors", lambda path: changed)
    with pytest.raises(ValueError, match="did not survive being written"):
        write_adapter_files(tmp_path, {"r": 1}, NEW)
    monkeypatch.undo()
    assert difference(read_tensors(tmp_path)[1], OLD) is None


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[" * 100_000, b"\xff\xfe{}", b"[]", b"null", b'"LORA"', b'{"r": 1'],
    ids=["empty", "brace", "nested", "not utf-8", "list", "null", "string", "cut"],
)
def test_bad_settings_are_one_kind_of_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "adapter_config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"adapter_config\.json"):
        read_settings(tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such directory"):
        read_settings(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="an empty directory"):
        read_settings(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ValueError, match=r"adapter_config\.json is missing \(pytorch_model\.bin\)"):
        read_settings(tmp_path)
    with pytest.raises(ValueError, match=r"no adapter_model\.safetensors or adapter_model\.bin"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("file", [files.WEIGHTS_FILE, files.OLD_WEIGHTS_FILE])
def test_damaged_weights_are_named(tmp_path: Path, file: str) -> None:
    """Every kind of damage: tests/files/test_reading.py."""
    (tmp_path / file).write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(ValueError, match=file):
        read_tensors(tmp_path)


def test_an_empty_adapter_is_refused(tmp_path: Path) -> None:
    torch.save({}, tmp_path / files.OLD_WEIGHTS_FILE)
    with pytest.raises(ValueError, match="holds no tensors"):
        read_tensors(tmp_path)


def test_an_older_pickle_is_read(tmp_path: Path) -> None:
    torch.save(OLD, tmp_path / files.OLD_WEIGHTS_FILE)
    assert difference(read_tensors(tmp_path)[1], OLD) is None
