"""Files as untrusted input: no code runs, nothing is unpacked, damage is a FileError that names the file."""

import ast
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from files import (
    DamagedFileError,
    FileError,
    UnsafeFileError,
    UnsuitableFileError,
    open_tensor_file,
    read_json_object,
    read_pickle,
    read_pickled_tensors,
    read_safetensors,
    sha256_of,
    shown,
)

ROOT = Path(__file__).parents[2]
FUZZED = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)

# --- JSON ---


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[" * 100_000, b"\xff\xfe{}", b"\xff\xfe{\0}\0", b"[]", b"null", b'"LORA"', b'{"r": 1', b"nul"],
    ids=["empty", "brace", "nested", "not utf-8", "utf-16", "list", "null", "string", "cut", "word"],
)
def test_bad_json_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json"):
        read_json_object(tmp_path / "a.json")


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_json_objects_are_read(tmp_path: Path, mark: str) -> None:
    (tmp_path / "a.json").write_text(mark + '{"é": [1, null]}', encoding="utf-8")
    assert read_json_object(tmp_path / "a.json") == {"é": [1, None]}


def test_missing_files_are_the_systems_error(tmp_path: Path) -> None:
    for read in (read_json_object, read_safetensors, read_pickle, sha256_of):
        with pytest.raises(FileNotFoundError, match="none"):
            read(tmp_path / "none")


def test_sha256_of_a_known_text(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert sha256_of(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# --- safetensors ---


def safetensors_bytes(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


MALFORMED = {
    "empty": b"",
    "shorter than its length field": b"\x01\x02",
    "a byte less than its length field": b"1234567",
    "header past the end": safetensors_bytes({}, length=1000),
    "header of an exabyte": safetensors_bytes({}, length=2**60),
    "header of a negative length": safetensors_bytes({}, length=2**63),
    "header not UTF-8": safetensors_bytes(b"\xff\xfe{}"),
    "header not JSON": safetensors_bytes(b"{nope"),
    "header not an object": safetensors_bytes(b"[]"),
    "two bytes short": safetensors_bytes({"a": entry([2], 0, 8)}, b"\0" * 6),
    "trailing bytes": safetensors_bytes({"a": entry([2], 0, 8)}, b"\0" * 10),
    "nothing but trailing bytes": safetensors_bytes({}, b"trailing"),
    "overlapping": safetensors_bytes({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, b"\0" * 12),
    "a hole": safetensors_bytes({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, b"\0" * 12),
    "size unlike shape": safetensors_bytes({"a": entry([3], 0, 8)}, b"\0" * 8),
    "offsets unlike shape": safetensors_bytes({"a": entry([1], 0, 2)}, b"\0" * 4),
    "product overflows": safetensors_bytes({"a": entry([2**40, 2**40], 0, 8)}, b"\0" * 8),
    "negative size": safetensors_bytes({"a": entry([-2], 0, 8)}, b"\0" * 8),
    "backward offsets": safetensors_bytes({"a": entry([2], 8, 0)}, b"\0" * 8),
    "unknown dtype": safetensors_bytes({"a": entry([2], 0, 8, "F31")}, b"\0" * 8),
}


@pytest.mark.parametrize("damage", MALFORMED)
@pytest.mark.parametrize("read", [open_tensor_file, read_safetensors])
def test_malformed_safetensors_are_named(read, damage: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(MALFORMED[damage])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        read(file)


def test_sound_safetensors_are_read(tmp_path: Path) -> None:
    """The cases above fail for what is wrong with them alone."""
    (tmp_path / "a.safetensors").write_bytes(safetensors_bytes({"a": entry([1], 0, 4)}, b"\0" * 4))
    assert read_safetensors(tmp_path / "a.safetensors")["a"].tolist() == [0]


WHOLE = safetensors_bytes({"a": entry([2, 2], 0, 16), "b": entry([3], 16, 22, "BF16")}, bytes(range(22)))


@FUZZED
@given(position=st.integers(0, len(WHOLE) - 1), byte=st.integers(0, 255), cut=st.booleans())
def test_fuzzed_safetensors_are_read_or_refused(position: int, byte: int, cut: bool, tmp_path: Path) -> None:
    damaged = WHOLE[:position] if cut else WHOLE[:position] + bytes([byte]) + WHOLE[position + 1 :]
    file = tmp_path / "model.safetensors"
    file.write_bytes(damaged)
    try:
        tensors = open_tensor_file(file)
    except ValueError as error:
        assert str(file) in str(error)
    else:
        whole = read_safetensors(file)
        assert whole.keys() == tensors.keys()
        for name, stored in tensors.items():
            for tensor in (stored.read(), whole[name]):
                assert (tuple(tensor.shape), tensor.dtype) == (stored.shape, stored.dtype)


def test_every_dtype_comes_back(tmp_path: Path) -> None:
    tensors = {"a": torch.tensor([True]), "b": torch.tensor(2.5), "c": torch.zeros(0, 3, dtype=torch.bfloat16)}
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors")
    for name, tensor in read_safetensors(tmp_path / "a.safetensors").items():
        assert torch.equal(tensor, tensors[name]) and tensor.dtype == tensors[name].dtype


# --- Pickles ---


class Canary:
    """Its pickle, once loaded without care, creates a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("read", [read_pickle, read_pickled_tensors, open_tensor_file])
@pytest.mark.parametrize("archived", [True, False])
def test_no_code_runs_from_a_pickle(read, archived: bool, tmp_path: Path) -> None:
    file, canary = tmp_path / "a.bin", tmp_path / "canary"
    if archived:
        torch.save({"a": Canary(canary)}, file)
    else:
        file.write_bytes(pickle.dumps({"a": Canary(canary)}, protocol=2))
    with pytest.raises(ValueError, match=r"a\.bin.*(no code is run|not a whole zip archive)"):
        read(file)
    assert not canary.exists()
    torch.load(file, weights_only=False) if archived else pickle.loads(file.read_bytes())
    assert canary.exists()  # the trap is a real one


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "must hold a dictionary of named tensors, not a list"),
        (torch.zeros(1), "must hold a dictionary of named tensors, not a Tensor"),
        ({"a": 1}, "must hold .*but 'a' is a int"),
        ({1: torch.zeros(1)}, "must hold .*but 1 is a Tensor"),
        ({"a": {"b": torch.zeros(1)}}, "must hold .*but 'a' is a dict"),
        ({"a": torch.eye(2).to_sparse()}, r"more than plain tensors \('torch\._utils\._rebuild_sparse_tensor'\)"),
    ],
)
def test_pickles_of_other_things_are_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=rf"pytorch_model\.bin.*{message}"):
        read_pickled_tensors(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin"):
        open_tensor_file(tmp_path / "pytorch_model.bin")


def test_plain_containers_are_read(tmp_path: Path) -> None:
    torch.save({"state": {0: {"step": 3, "m": torch.ones(2)}}, "lr": [0.1, None]}, tmp_path / "a.pt")
    content = read_pickle(tmp_path / "a.pt")
    assert content["lr"] == [0.1, None] and torch.equal(content["state"][0]["m"], torch.ones(2))


@pytest.mark.parametrize("read", [read_pickle, read_pickled_tensors, open_tensor_file])
def test_old_style_pickles_are_refused_with_a_remedy(read, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"a\.pth.*save it anew with a later one"):
        read(tmp_path / "a.pth")


def test_an_old_style_pickle_before_an_archive_is_refused(tmp_path: Path) -> None:
    """zipfile finds an archive at a file's end, torch at its start: nothing may be an archive to one of them only."""
    torch.save({"a": torch.zeros(3)}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    torch.save({"a": torch.zeros(3)}, tmp_path / "b.pth")
    (tmp_path / "both.pth").write_bytes((tmp_path / "a.pth").read_bytes() + (tmp_path / "b.pth").read_bytes())
    assert zipfile.is_zipfile(tmp_path / "both.pth") and torch.load(tmp_path / "both.pth", weights_only=True)
    with pytest.raises(ValueError, match=r"both\.pth: it is not a whole zip archive"):
        read_pickle(tmp_path / "both.pth")


@pytest.mark.parametrize("tensor", [torch.zeros(100_000), torch.randn(500)], ids=["bomb", "incompressible"])
@pytest.mark.parametrize("read", [read_pickled_tensors, open_tensor_file])
def test_compressed_archives_are_refused_unopened(read, tmp_path: Path, tensor: Tensor) -> None:
    torch.save({"a": tensor}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as plain, zipfile.ZipFile(tmp_path / "bomb.pth", "w") as bomb:
        for record in plain.infolist():
            bomb.writestr(record.filename, plain.read(record), compress_type=zipfile.ZIP_DEFLATED)
    assert (tmp_path / "bomb.pth").stat().st_size < 10_000
    with pytest.raises(ValueError, match=r"bomb\.pth: it is refused: its records are compressed"):
        read(tmp_path / "bomb.pth")


def test_records_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    torch.save({"a": torch.zeros(1000)}, path)
    with zipfile.ZipFile(path, "a") as bomb:  # the directory lists the same record again and again
        bomb.filelist.extend(record for record in list(bomb.filelist) if record.filename.endswith("/0"))
        bomb.writestr("any", b"")
    with pytest.raises(ValueError, match=r"claim to be larger \(\d+ bytes\) than the file \(\d+\)"):
        read_pickle(path)


def test_records_that_overstate_their_size_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    torch.save({"a": torch.zeros(1000)}, file)
    content = bytearray(file.read_bytes())
    central = content.index(b"PK\x01\x02")  # first record of the directory; its sizes are at 20 and 24
    content[central + 20 : central + 28] = struct.pack("<II", 2**31, 2**31)
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.pth: it is refused: its records claim to be larger"):
        open_tensor_file(file)


@pytest.mark.parametrize("read", [read_pickled_tensors, open_tensor_file])
@pytest.mark.parametrize("cut", [*(f"{n}/16" for n in range(16)), "1", "50", "300", "-1", "-50"])
def test_truncated_pickles_are_named(read, cut: str, tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    torch.save({"a": torch.zeros(1000), "b": torch.zeros(3)}, file)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * int(cut[:-3]) // 16 if cut.endswith("/16") else int(cut)])
    with pytest.raises(ValueError, match=r"a\.pth"):
        read(file)


@FUZZED
@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255), from_end=st.booleans())
def test_fuzzed_pickles_are_read_or_refused(place: float, byte: int, from_end: bool, tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    torch.save({"a": torch.arange(6.0)}, file)
    content = bytearray(file.read_bytes())
    span = min(len(content), 400)  # the directory is at the end: half of the tries go there
    position = len(content) - 1 - int(place * span) if from_end else int(place * len(content))
    content[position] = byte
    file.write_bytes(content)
    try:
        tensors = read_pickled_tensors(file)
    except ValueError as error:
        assert str(file) in str(error)
    else:
        assert all(isinstance(tensor, Tensor) for tensor in tensors.values())


def test_torch_load_is_always_restricted() -> None:
    calls = 0
    for file in (*ROOT.glob("src/**/*.py"), *ROOT.glob("*.py"), *ROOT.glob("benchmarks/**/*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                calls += 1
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert keywords.get("weights_only") == "True", f"{file}:{node.lineno}"
    assert calls == 1  # one place reads pickles


# --- The errors ---


def test_an_error_says_where_what_and_what_to_do() -> None:
    error = DamagedFileError("ends early", file="a.json", place="line 3", remedy="copy it", details=["one", "two"])
    assert str(error) == "a.json, line 3: ends early\n  one\n  two; copy it"
    assert (error.file, error.place, error.problem, error.remedy) == (Path("a.json"), "line 3", "ends early", "copy it")
    assert str(UnsafeFileError("runs code", file="b")) == "b: runs code"
    assert isinstance(error, FileError) and isinstance(error, ValueError) and not isinstance(error, UnsafeFileError)


def test_an_error_survives_the_way_between_processes() -> None:
    error = UnsuitableFileError("is too wide", file="a", place="wq", remedy="narrow it", details=["by 3"])
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error) and str(copy) == str(error) and copy.remedy == "narrow it"


@pytest.mark.parametrize("hostile", ["\x1b[2J", "\ud800", "\nerror: none", "\r", "\u202e", "\0", "\x9b"])
def test_what_a_file_says_cannot_steer_the_terminal(hostile: str) -> None:
    for part in ({"problem": hostile}, {"place": hostile}, {"remedy": hostile}, {"details": [hostile]}):
        message = str(FileError(**({"problem": "x", "file": "a"} | part)))
        assert message.replace("\n  ", "").isprintable() and message.encode()


def test_a_long_message_is_cut() -> None:
    for part in ({"problem": "x" * 10**6}, {"details": ["x"] * 10**6}, {"place": "x" * 10**6}):
        assert len(str(FileError(**({"problem": "x", "file": "a"} | part)))) < 25_000
    assert len(shown("x" * 10**6)) < 200 and len(shown({n: [n] * 1000 for n in range(1000)})) < 2000
