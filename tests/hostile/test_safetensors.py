"""Malformed safetensors, each given to every reader of such files: one typed error that names the file, no crash."""

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile.sound_files import KINDS

from files import (
    DamagedFileError,
    FileError,
    UnsafeFileError,
    UnsuitableFileError,
    open_tensor_file,
    read_safetensors,
    sha256_of,
)


def raw(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: object, start: object, end: object, dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


ONE = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
TWO = b'{"dtype":"F32","shape":[1],"data_offsets":[4,8]}'
DAMAGED = {
    "empty": b"",
    "a byte less than the length field": b"1234567",
    "header past the end": raw({}, length=1000),
    "header of an exabyte": raw({}, length=2**60),
    "header of 2^64 - 1 bytes": raw({}, length=2**64 - 1),
    "header not UTF-8": raw(b"\xff\xfe{}"),
    "header in UTF-16": raw("{}".encode("utf-16")),
    "header not JSON": raw(b"{nope"),
    "header cut": raw(b'{"a":{"dtype":"F32"'),
    "header with more behind it": raw(b"{} x"),
    "header a list": raw(b"[]"),
    "header null": raw(b"null"),
    "nested brackets": raw(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "nested braces": raw(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "a number of a million digits": raw(b'{"a":' + b"9" * 1_000_000 + b"}"),
    "not a number": raw(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', b"\0" * 4),
    "two bytes short": raw({"a": entry([2], 0, 8)}, b"\0" * 6),
    "trailing bytes": raw({"a": entry([2], 0, 8)}, b"\0" * 10),
    "nothing but trailing bytes": raw({}, b"trailing"),
    "overlapping": raw({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, b"\0" * 12),
    "the same bytes twice": raw({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, b"\0" * 8),
    "a gap": raw({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, b"\0" * 12),
    "a gap at the start": raw({"a": entry([1], 4, 8)}, b"\0" * 8),
    "size unlike shape": raw({"a": entry([3], 0, 8)}, b"\0" * 8),
    "size unlike dtype": raw({"a": entry([2], 0, 8, "F64")}, b"\0" * 8),
    "product overflows to 0": raw({"a": entry([2**62, 4], 0, 0, "U8")}),
    "product overflows to 8": raw({"a": entry([2**61 + 1, 8], 0, 8, "U8")}, b"\0" * 8),
    "product overflows with the dtype": raw({"a": entry([2**62 + 2], 0, 8)}, b"\0" * 8),
    "no bytes, but endless strides": raw({"a": entry([0, 2**62, 2**62], 0, 0)}),
    "size beyond int64": raw({"a": entry([2**63], 0, 0)}),
    "size beyond uint64": raw({"a": entry([2**64], 0, 0)}),
    "negative size": raw({"a": entry([-2], 0, 8)}, b"\0" * 8),
    "two negative sizes": raw({"a": entry([-2, -1], 0, 8)}, b"\0" * 8),
    "float size": raw({"a": entry([2.0], 0, 8)}, b"\0" * 8),
    "boolean size": raw({"a": entry([True], 0, 4)}, b"\0" * 4),
    "null size": raw({"a": entry([None], 0, 4)}, b"\0" * 4),
    "string size": raw({"a": entry(["1"], 0, 4)}, b"\0" * 4),
    "shape null": raw({"a": entry(None, 0, 4)}, b"\0" * 4),
    "shape an object": raw({"a": entry({"0": 1}, 0, 4)}, b"\0" * 4),
    "a thousand dimensions": raw({"a": entry([1] * 1000, 0, 4)}, b"\0" * 4),
    "backward offsets": raw({"a": entry([2], 8, 0)}, b"\0" * 8),
    "negative offsets": raw({"a": entry([2], -8, 0)}, b"\0" * 8),
    "float offsets": raw({"a": entry([1], 0.0, 4.0)}, b"\0" * 4),
    "offsets past the end": raw({"a": entry([2], 2**40, 2**40 + 8)}, b"\0" * 8),
    "one offset": raw({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4]}}, b"\0" * 4),
    "three offsets": raw({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, b"\0" * 4),
    "no offsets": raw({"a": {"dtype": "F32", "shape": [1]}}, b"\0" * 4),
    "no dtype": raw({"a": {"shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4),
    "entry a list": raw({"a": [1]}, b"\0" * 4),
    "entry null": raw({"a": None}),
    "two tensors of one name": raw(b'{"a":' + ONE + b',"a":' + TWO + b"}", b"\0" * 8),
    "one tensor named twice": raw(b'{"a":' + ONE + b',"a":' + ONE + b"}", b"\0" * 4),
    "a key named twice": raw(b'{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"\0" * 4),
    "metadata a list": raw({"__metadata__": [], "a": entry([1], 0, 4)}, b"\0" * 4),
    "metadata null": raw({"__metadata__": None, "a": entry([1], 0, 4)}, b"\0" * 4),
    "metadata of numbers": raw({"__metadata__": {"format": 1}, "a": entry([1], 0, 4)}, b"\0" * 4),
    "a lone surrogate in a name": raw({"\ud800": entry([1], 0, 4)}, b"\0" * 4),
}
UNSUITABLE = {
    "unknown dtype": raw({"a": entry([2], 0, 8, "F31")}, b"\0" * 8),
    "dtype a number": raw({"a": entry([2], 0, 8, 32)}, b"\0" * 8),
    "dtype a list": raw({"a": entry([2], 0, 8, ["F32"])}, b"\0" * 8),
    "half bytes": raw({"a": entry([2], 0, 1, "F4")}, b"\0"),
    "complex": raw({"a": entry([1], 0, 8, "C64")}, b"\0" * 8),
}
CORPUS = {name: (content, DamagedFileError) for name, content in DAMAGED.items()} | {
    name: (content, UnsuitableFileError) for name, content in UNSUITABLE.items()
}
DIRECTORY_READERS = [name for name in KINDS if name.endswith("model.safetensors")]


@pytest.mark.parametrize("case", CORPUS)
@pytest.mark.parametrize("read", [open_tensor_file, read_safetensors])
def test_a_malformed_file_is_one_typed_error(
    read: Callable, case: str, tmp_path: Path, survives: Callable, count_faults: Callable
) -> None:
    content, kind = CORPUS[case]
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    assert not survives(lambda: read(file), file)
    with pytest.raises(kind) as caught:
        read(file)
    assert caught.value.file == file and str(file) in str(caught.value) and caught.value.remedy
    count_faults("malformed safetensors")


@pytest.mark.parametrize("name", DIRECTORY_READERS)
def test_every_reader_of_a_directory_refuses_them(
    name: str, tmp_path: Path, survives: Callable, count_faults: Callable
) -> None:
    kind = KINDS[name]
    kind.make(tmp_path)
    kind.read(tmp_path)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    for content, _ in CORPUS.values():
        (tmp_path / kind.file).write_bytes(content)
        assert not survives(lambda: kind.read(tmp_path), tmp_path / kind.file)
        count_faults(f"malformed {name}")


def test_the_error_names_the_tensor(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(raw({"good": entry([1], 0, 4), "layers.3.bad": entry([3], 4, 8)}, b"\0" * 8))
    with pytest.raises(DamagedFileError, match=r"shape \[3\] of F32 is 12 bytes, but 4 are given") as caught:
        open_tensor_file(file)
    assert caught.value.place == "layers.3.bad"


def test_harmless_oddities_are_read(tmp_path: Path) -> None:
    """What the format allows is not refused: padding, extra keys, no tensors, no numbers, any order, any name."""
    file = tmp_path / "a.safetensors"
    for header, data in (
        (b"{}    ", b""),
        ({"a": entry([1], 0, 4) | {"note": 1}}, b"\0" * 4),
        ({"a": entry([0, 3], 0, 0), "b": entry([], 0, 4), "c": entry([0], 4, 4)}, b"\0" * 4),
        ({"b": entry([1], 4, 8), "a": entry([1], 0, 4)}, b"\0" * 8),
        ({"": entry([1], 0, 4), "a\0b\x1b[2J": entry([1], 4, 8)}, b"\0" * 8),
        ({"__metadata__": {"format": "pt"}, "a": entry([1], 0, 4)}, b"\0" * 4),
    ):
        file.write_bytes(raw(header, data))
        assert read_safetensors(file).keys() == open_tensor_file(file).keys()


def test_a_header_of_a_hundred_megabytes_is_refused_unread(tmp_path: Path, survives: Callable) -> None:
    file = tmp_path / "a.safetensors"
    with file.open("wb") as sparse:
        sparse.write(struct.pack("<Q", 100_000_001))
        sparse.truncate(100_000_009)
    with pytest.raises(UnsafeFileError, match="its header has 100000001 bytes, more than the 10000000 that are read"):
        open_tensor_file(file)


@pytest.mark.parametrize("name", [*(kind for kind in KINDS if kind != "index.json"), "sha256"])
def test_what_is_no_regular_file_is_refused_and_never_waited_for(
    name: str, tmp_path: Path, count_faults: Callable
) -> None:
    """A pipe without a writer would block its reader for good: the test would not end. (An index need not be there.)"""
    kind = KINDS.get(name, KINDS["config.json"])
    kind.make(tmp_path)
    file = tmp_path / kind.file
    for put in (os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path), lambda path: os.symlink("gone", path)):
        file.unlink() if not file.is_dir() else file.rmdir()
        put(file)
        with pytest.raises((FileError, OSError)) as caught:
            sha256_of(file) if name == "sha256" else kind.read(tmp_path)
        assert str(tmp_path) in str(caught.value)
        count_faults("not a regular file")


BOMB = """
import resource, sys
from pathlib import Path
from files import FileError, open_tensor_file

resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
for file in map(Path, sys.argv[1:]):
    try:
        open_tensor_file(file)
    except FileError:
        continue
    sys.exit(f"{file} was read")
"""


def test_a_hole_of_forty_gigabytes_is_refused_in_four(tmp_path: Path) -> None:
    """Files of 40 GB that take no room on the disk: one header claims it all, one leaves it behind the tensors."""
    for name, start in (("a", struct.pack("<Q", 40 * 10**9 - 8)), ("b", raw({"a": entry([1], 0, 4)}, b"\0" * 4))):
        with (tmp_path / f"{name}.safetensors").open("wb") as sparse:
            sparse.write(start)
            sparse.truncate(40 * 10**9)
    paths = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-c", BOMB, *map(str, sorted(tmp_path.glob("*.safetensors")))]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-1000:]
