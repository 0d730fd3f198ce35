"""Archives that are one thing to zipfile and another to torch, or that claim to hold more than they are."""

import os
import shutil
import struct
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hostile.pickle_parts import PLACES, Storage, pickled, tensor, write_archive

from files import FileError, UnsafeFileError, read_pickle, read_pickled_tensors


def archives(folder: Path) -> dict[str, Path]:
    """Archives that are one thing to zipfile and another to torch, or larger inside than outside."""
    sound = pickled({"a": tensor((4,), (1,))})
    plain = write_archive(folder / "plain.pt", sound).read_bytes()
    found = {name: folder / f"{name}.pt" for name in ("behind", "before", "comment", "twice", "case", "locked", "none")}
    found["behind"].write_bytes(b"#!/bin/sh\n" + plain)
    found["before"].write_bytes(plain + b"\0")
    found["comment"].write_bytes(plain[:-2] + struct.pack("<H", 4) + b"text")
    for name, other in (("twice", "plain/data.pkl"), ("case", "plain/DATA.pkl")):
        shutil.copy(folder / "plain.pt", found[name])
        with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(found[name], "a") as more:
            more.writestr(other, sound)
    locked = bytearray(plain)
    central = locked.index(b"PK\x01\x02")
    locked[central + 8] |= 1  # "encrypted"
    found["locked"].write_bytes(locked)
    with zipfile.ZipFile(found["none"], "w") as empty:
        empty.writestr("plain/version", "3")
    # The structure that zipfile's user would look through is another than the one that torch would run.
    for name, real in (("decoy", b"plain/DATA.PKL"), ("zero", b"plain/dat\0.pkl")):
        found[name] = folder / f"{name}.pt"
        found[name].write_bytes(plain.replace(b"plain/data.pkl", real))
        with zipfile.ZipFile(found[name], "a") as more:
            more.writestr("plain/no-data.pkl", sound)
    found["compressed"] = write_archive(folder / "compressed.pt", sound, compression=zipfile.ZIP_DEFLATED)
    # A second list of records, where torch would look: zipfile takes the one that ends where it should.
    start = plain.index(b"PK\x01\x02")
    moved = bytearray(plain[:start] + plain[start:-22] + plain[start:])
    struct.pack_into("<I", moved, len(moved) - 6, start)
    found["two lists"] = folder / "two.pt"
    found["two lists"].write_bytes(moved)
    return found


def test_archives_that_are_not_plainly_one_are_refused(tmp_path: Path, count_faults: Callable) -> None:
    for name, file in archives(tmp_path).items():
        for mmap in (False, True):
            with pytest.raises(FileError, match=rf"{file.name}"):
                read_pickle(file, mmap=mmap)
                pytest.fail(name)
            count_faults("odd archives")
    assert read_pickle(tmp_path / "plain.pt")["a"].shape == (4,)


FORTY_GB = """
import resource, sys
from pathlib import Path
from files import FileError
from hostile.pickle_parts import PLACES

resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))
for number, (file, make, read) in enumerate(PLACES.values()):
    folder = Path(sys.argv[1]) / str(number)
    make(folder)
    folder.mkdir(exist_ok=True)
    for bomb in sorted(Path(sys.argv[1]).glob("*.bomb")):
        (folder / file).unlink(missing_ok=True)
        (folder / file).hardlink_to(bomb)
        try:
            read(folder)
        except FileError as error:
            assert str(folder / file) in str(error)
            print("refused")
        else:
            sys.exit(f"{bomb} was read as {file}")
"""


def test_forty_gigabytes_from_forty_kilobytes_are_refused_in_six(tmp_path: Path, count_faults: Callable) -> None:
    """Records that claim 40 GB: compressed zeros of a gigabyte each share their bytes, or plain ones overstate."""
    deflated = tmp_path / "deflated.bomb"
    with zipfile.ZipFile(deflated, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickled({"a": tensor((4,), (1,))}))
        archive.writestr("a/data/0", bytes(10**7))
    content = bytearray(deflated.read_bytes())
    for at in (at for at in range(len(content)) if content[at : at + 4] == b"PK\x01\x02"):
        struct.pack_into("<I", content, at + 24, 2**32 - 2)  # the size it says it unpacks to
    deflated.write_bytes(content)
    stored = write_archive(tmp_path / "stored.bomb", pickled({"a": tensor((10**10,), (1,), Storage(10**10))}))
    content = bytearray(stored.read_bytes())
    for at in (at for at in range(len(content)) if content[at : at + 4] == b"PK\x01\x02"):
        struct.pack_into("<II", content, at + 20, 2**32 - 2, 2**32 - 2)
    stored.write_bytes(content)
    assert deflated.stat().st_size + stored.stat().st_size < 40_000
    paths = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-c", FORTY_GB, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1500:]
    assert done.stdout.count("refused") == 2 * len(PLACES)
    count_faults("zip bombs of 40 GB", 2 * len(PLACES))


def test_a_tied_head_may_share_its_bytes(tmp_path: Path) -> None:
    table = torch.randn(500, 8)
    torch.save({"embedding": table, "head": table}, tmp_path / "a.bin")
    assert torch.equal(read_pickled_tensors(tmp_path / "a.bin")["head"], table)
    torch.save({str(n): table for n in range(4)}, tmp_path / "b.bin")
    with pytest.raises(UnsafeFileError, match=r"its tensors claim 64000 bytes, but the file has \d{5};"):
        read_pickled_tensors(tmp_path / "b.bin")
