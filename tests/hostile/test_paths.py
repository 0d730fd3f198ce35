"""Index files that would lead out of their directory, for every kind of checkpoint that has one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile.pickle_parts import make_bin_shard
from hostile.sound_files import make_indexed, make_int8, read_checkpoint

from files import DamagedFileError, FileError, UnsafeFileError
from recipe.int8_checkpoint import load_int8_checkpoint

ESCAPES = (
    *("../secret.safetensors", "../../secret", "/etc/passwd", "a/b.safetensors", "./model.safetensors", "..", ".", ""),
    *("a\\b", "C:\\x", "a\0b", "model.safetensors/", "\0", "//", None, 3, 1.5, True, ["x"], {"x": 1}),
)
MISSING = ("gone.safetensors", "~", "~root", "%2e%2e%2fx", "a\nb", "\x1b[2J", "\ud800", "x" * 5000, " ", "...")


def make_int8_index(folder: Path) -> None:
    make_int8(folder)
    for file in (folder / "int8").iterdir():
        shutil.move(file, folder / file.name)
    shutil.rmtree(folder / "base")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"model.norm.weight": "model.safetensors"}})
    )


def read_int8(folder: Path) -> None:
    load_int8_checkpoint(folder, progress=False)


INDEXED = {
    "safetensors": ("model.safetensors.index.json", make_indexed, read_checkpoint),
    "bin": ("pytorch_model.bin.index.json", make_bin_shard, read_checkpoint),
    "int8": ("model.safetensors.index.json", make_int8_index, read_int8),
}


def put(index: Path, entry: object) -> None:
    content = json.loads(index.read_text())
    content["weight_map"]["model.norm.weight"] = entry
    index.write_text(json.dumps(content))


@pytest.mark.parametrize("kind", INDEXED)
def test_no_entry_leads_out_of_the_directory(kind: str, tmp_path: Path, count_faults: Callable) -> None:
    name, make, read = INDEXED[kind]
    folder = tmp_path / "model"
    make(folder)
    read(folder)
    for secret in ("secret", "secret.safetensors"):
        shutil.copy(next(folder.glob("*model*[sn]")), tmp_path / secret)
    for entries, error in ((ESCAPES, UnsafeFileError), (MISSING, FileError)):
        for entry in entries:
            put(folder / name, entry)
            try:
                with pytest.raises(error, match=name) as caught:
                    read(folder)
                assert str(caught.value).isprintable(), entry
            except OSError as refused:  # a name longer than the system takes
                assert len(str(entry)) > 255 and refused.filename
            count_faults("path escapes")


@pytest.mark.parametrize("kind", INDEXED)
def test_no_link_leads_out_of_the_directory(kind: str, tmp_path: Path, count_faults: Callable) -> None:
    name, make, read = INDEXED[kind]
    folder = tmp_path / "model"
    make(folder)
    secret = tmp_path / "secret.safetensors"
    shutil.copy(next(folder.glob("*model*[sn]")), secret)
    (tmp_path / "model-evil").mkdir()
    shutil.copy(secret, tmp_path / "model-evil" / "secret.safetensors")
    for target in (
        secret,
        Path("../secret.safetensors"),
        Path("/etc/passwd"),
        Path("../model-evil/secret.safetensors"),
    ):
        (folder / "link.safetensors").symlink_to(target)
        put(folder / name, "link.safetensors")
        with pytest.raises(UnsafeFileError, match=r"link\.safetensors, a link out of the directory"):
            read(folder)
        (folder / "link.safetensors").unlink()
        count_faults("path escapes by link")


def test_a_link_in_a_circle_is_not_there(tmp_path: Path) -> None:
    make_indexed(tmp_path)
    (tmp_path / "a.safetensors").symlink_to("b.safetensors")
    (tmp_path / "b.safetensors").symlink_to("a.safetensors")
    put(tmp_path / "model.safetensors.index.json", "a.safetensors")
    with pytest.raises(DamagedFileError, match=r"a\.safetensors, which is not there"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": "x"}'])
def test_an_index_without_a_map_is_damaged(content: str, tmp_path: Path, count_faults: Callable) -> None:
    make_indexed(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(DamagedFileError, match=r"model\.safetensors\.index\.json: it must hold a"):
        read_checkpoint(tmp_path)
    count_faults("index without a map")
