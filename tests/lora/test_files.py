import builtins
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lora import files
from lora.files import difference, read_settings, read_tensors, write_adapter_files

OLD, NEW = (
    {"a": torch.tensor([1.0, 2.0]), "b": torch.zeros(2, 2)},
    {"a": torch.tensor([3.0, 4.0]), "b": torch.ones(2, 2)},
)


class PowerCut(BaseException):
    """Nothing that runs after it reaches the disk."""


@pytest.fixture
def cut_power(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[str]]:
    """cut_power(n): the n-th operation on the disk and all after it fail; a write that fails is half done."""

    def arm(n: int) -> list[str]:
        log: list[str] = []

        def step(name: str) -> None:
            log.append(name)
            if len(log) >= n:
                raise PowerCut

        def guarded(name: str, function: Callable) -> Callable:
            def call(*arguments, **options):
                step(name)
                return function(*arguments, **options)

            return call

        def opened(path, mode):
            step("open")
            file = builtins.open(path, mode)  # noqa: SIM115  (closed by Torn)
            write = file.write

            class Torn:
                def __enter__(self):
                    return self

                def __exit__(self, *_):
                    file.close()

                def write(self, content: bytes) -> None:
                    write(content[: len(content) // 2])
                    step("write")
                    write(content[len(content) // 2 :])

                flush, fileno = file.flush, file.fileno

            return Torn()

        monkeypatch.setattr(files, "open", opened, raising=False)
        for owner, name in ((os, "fsync"), (os, "replace"), (Path, "unlink"), (Path, "mkdir")):
            monkeypatch.setattr(owner, name, guarded(name, getattr(owner, name)))
        return log

    return arm


def test_order_of_operations(tmp_path: Path, cut_power: Callable) -> None:
    log = cut_power(1000)
    write_adapter_files(tmp_path, {"r": 1}, OLD)
    # Whole and on the disk before it gets its name; the folder last.
    assert log[:7] == ["mkdir", "open", "write", "fsync", "open", "write", "fsync"]
    assert log[7:] == ["replace", "replace", "fsync", "unlink", "unlink"]


@pytest.mark.parametrize("same_settings", [True, False])
@pytest.mark.parametrize("n", range(1, 14))
def test_a_power_cut_leaves_the_old_or_the_new_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut_power: Callable, n: int, same_settings: bool
) -> None:
    old, new = {"r": 1}, {"r": 1 if same_settings else 2}
    write_adapter_files(tmp_path, old, OLD)
    log = cut_power(n)
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


@given(place=st.integers(0, 10_000), value=st.integers(0, 255), cut=st.integers(0, 10_000) | st.none())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_safetensors_load_or_are_refused(tmp_path: Path, place: int, value: int, cut: int | None) -> None:
    path = tmp_path / files.WEIGHTS_FILE
    content = bytearray(safetensors.torch.save(OLD))
    content[place % len(content)] = value
    path.write_bytes(content[: cut if cut is None else cut % len(content)])
    try:
        tensors = read_tensors(tmp_path)[1]
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert all(isinstance(tensor, Tensor) for tensor in tensors.values())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        struct.pack("<Q", 2**63),
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 4) + b"\xff\xff\xff\xff",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 2) + b"{}trailing",
    ],
)
def test_malformed_safetensors_are_one_kind_of_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / files.WEIGHTS_FILE
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors"):
        read_tensors(tmp_path)


@pytest.mark.parametrize(
    "entry",
    [{"shape": [2]}, {"shape": [2**32, 2**32]}, {"data_offsets": [0, 2]}, {"data_offsets": [4, 0]}, {"dtype": "F31"}],
)
def test_inconsistent_safetensors_are_refused(tmp_path: Path, entry: dict) -> None:
    sound = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    for stated, refused in ((sound, False), (sound | entry, True)):
        header = json.dumps({"a": stated}).encode()
        (tmp_path / files.WEIGHTS_FILE).write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
        if not refused:
            assert read_tensors(tmp_path)[1]["a"].tolist() == [0]
            continue
        with pytest.raises(ValueError, match="not a sound safetensors file"):
            read_tensors(tmp_path)


class Canary:
    """Pickled, it asks whoever unpickles it to make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("legacy", [True, False])
def test_no_code_runs_from_a_file(tmp_path: Path, legacy: bool) -> None:
    canary, path = tmp_path / "canary", tmp_path / files.OLD_WEIGHTS_FILE
    if legacy:
        path.write_bytes(pickle.dumps({"a": Canary(canary)}, protocol=2))
    else:
        torch.save({"a": Canary(canary)}, path)
    with pytest.raises(ValueError, match="no code is run"):
        read_tensors(tmp_path)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "found list"),
        ({"a": 1}, "'a' is not such an entry"),
        ({1: torch.zeros(1)}, "1 is not such an entry"),
        ({"a": torch.eye(2).to_sparse()}, "'a' is not such an entry"),
        ({"a": {"b": torch.zeros(1)}}, "'a' is not such an entry"),
        ({}, "holds no tensors"),
    ],
)
def test_pickles_of_other_things_are_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / files.OLD_WEIGHTS_FILE)
    with pytest.raises(ValueError, match=message):
        read_tensors(tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
def test_both_formats_of_torch_save_are_read(tmp_path: Path, zipped: bool) -> None:
    torch.save(OLD, tmp_path / files.OLD_WEIGHTS_FILE, _use_new_zipfile_serialization=zipped)
    assert difference(read_tensors(tmp_path)[1], OLD) is None


@pytest.mark.parametrize("tensor", [torch.zeros(100_000), torch.randn(500)], ids=["bomb", "incompressible"])
def test_compressed_archives_are_refused_unopened(tmp_path: Path, tensor: Tensor) -> None:
    path = tmp_path / files.OLD_WEIGHTS_FILE
    torch.save({"a": tensor}, path)
    with zipfile.ZipFile(path) as plain:
        records = {name: plain.read(name) for name in plain.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        for name, record in records.items():
            bomb.writestr(name, record)
    assert path.stat().st_size < 10_000
    with pytest.raises(ValueError, match="is compressed"):
        read_tensors(tmp_path)


def test_records_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / files.OLD_WEIGHTS_FILE
    torch.save({"a": torch.zeros(1000)}, path)
    with zipfile.ZipFile(path, "a") as bomb:  # the directory lists the same record again and again
        bomb.filelist.extend(record for record in list(bomb.filelist) if record.filename.endswith("/0"))
        bomb.writestr("any", b"")
    with pytest.raises(ValueError, match=r"claim \d+ bytes in a file of \d+"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("keep", [0, 1, 50, 300, -1, -50])
def test_truncated_pickles_are_one_kind_of_error(tmp_path: Path, keep: int) -> None:
    path = tmp_path / files.OLD_WEIGHTS_FILE
    torch.save(OLD, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"adapter_model\.bin"):
        read_tensors(tmp_path)
