"""Checkpoints as untrusted input: no code runs, no path escapes, damage is a ValueError that names the file."""

import ast
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles.checkpoint_files import random_state, write_hf, write_meta

from llama.checkpoint import open_checkpoint
from llama.checkpoint.tensor_files import open_tensor_file

ROOT = Path(__file__).parents[2]


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


def safetensors_bytes(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


MALFORMED = {
    "empty": b"",
    "shorter than its length field": b"\x01\x02",
    "header past the end": safetensors_bytes({}, length=1000),
    "header of an exabyte": safetensors_bytes({}, length=2**60),
    "header not UTF-8": safetensors_bytes(b"\xff\xfe{}"),
    "header not JSON": safetensors_bytes(b"{nope"),
    "header not an object": safetensors_bytes(b"[]"),
    "two bytes short": safetensors_bytes({"a": entry([2], 0, 8)}, b"\0" * 6),
    "trailing bytes": safetensors_bytes({"a": entry([2], 0, 8)}, b"\0" * 10),
    "overlapping": safetensors_bytes({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, b"\0" * 12),
    "a hole": safetensors_bytes({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, b"\0" * 12),
    "size unlike shape": safetensors_bytes({"a": entry([3], 0, 8)}, b"\0" * 8),
    "product overflows": safetensors_bytes({"a": entry([2**40, 2**40], 0, 8)}, b"\0" * 8),
    "negative size": safetensors_bytes({"a": entry([-2], 0, 8)}, b"\0" * 8),
    "backward offsets": safetensors_bytes({"a": entry([2], 8, 0)}, b"\0" * 8),
    "unknown dtype": safetensors_bytes({"a": entry([2], 0, 8, "F31")}, b"\0" * 8),
}


@pytest.mark.parametrize("damage", MALFORMED)
def test_malformed_safetensors_are_named(damage: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(MALFORMED[damage])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        open_tensor_file(file)


WHOLE = safetensors_bytes({"a": entry([2, 2], 0, 16), "b": entry([3], 16, 22, "BF16")}, bytes(range(22)))


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(position=st.integers(0, len(WHOLE) - 1), byte=st.integers(0, 255), cut=st.booleans())
def test_fuzzed_safetensors_are_read_or_refused(position: int, byte: int, cut: bool, tmp_path: Path) -> None:
    damaged = WHOLE[:position] if cut else WHOLE[:position] + bytes([byte]) + WHOLE[position + 1 :]
    file = tmp_path / "model.safetensors"
    file.write_bytes(damaged)
    try:
        tensors = open_tensor_file(file)
    except ValueError as error:
        assert "model.safetensors" in str(error)
    else:
        for stored in tensors.values():
            tensor = stored.read()
            assert (tuple(tensor.shape), tensor.dtype) == (stored.shape, stored.dtype)


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


@pytest.mark.parametrize(
    "content", [[torch.zeros(1)], torch.zeros(1), {"a": 1}, {1: torch.zeros(1)}, {"a": {"b": torch.zeros(1)}}]
)
def test_pickles_must_hold_named_tensors(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin must hold"):
        open_tensor_file(tmp_path / "pytorch_model.bin")


def test_sparse_tensors_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.eye(3).to_sparse()}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth"):
        open_tensor_file(tmp_path / "a.pth")


def test_old_style_pickles_are_refused_with_a_remedy(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"a\.pth.*save it anew with a later one"):
        open_tensor_file(tmp_path / "a.pth")


def test_compressed_archives_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(300_000)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as plain, zipfile.ZipFile(tmp_path / "bomb.pth", "w") as bomb:
        for record in plain.infolist():
            bomb.writestr(record.filename, plain.read(record), compress_type=zipfile.ZIP_DEFLATED)
    assert (tmp_path / "bomb.pth").stat().st_size < 10_000
    with pytest.raises(ValueError, match=r"bomb\.pth is refused: its records are compressed"):
        open_tensor_file(tmp_path / "bomb.pth")


def test_records_that_overstate_their_size_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    torch.save({"a": torch.zeros(1000)}, file)
    content = bytearray(file.read_bytes())
    central = content.index(b"PK\x01\x02")  # first record of the directory; its sizes are at 20 and 24
    content[central + 20 : central + 28] = struct.pack("<II", 2**31, 2**31)
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.pth is refused: its records claim to be larger"):
        open_tensor_file(file)


@pytest.mark.parametrize("sixteenths", range(16))
def test_truncated_pickles_are_named(sixteenths: int, tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    torch.save({"a": torch.zeros(1000), "b": torch.zeros(3)}, file)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * sixteenths // 16])
    with pytest.raises(ValueError, match=r"a\.pth"):
        open_tensor_file(file)


def test_torch_load_is_always_restricted() -> None:
    calls = 0
    for file in (*ROOT.glob("src/**/*.py"), *ROOT.glob("*.py"), *ROOT.glob("benchmarks/**/*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                calls += 1
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert keywords.get("weights_only") == "True", f"{file}:{node.lineno}"
    assert calls
