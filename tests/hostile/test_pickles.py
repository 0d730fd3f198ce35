"""Hostile pickles in each place where one is read: no code runs, nothing unpacks to more than it is, nothing hangs."""

import _codecs
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hostile.pickle_parts import PLACES, REBUILD, Call, Storage, pickled, tensor, write_archive

from files import FileError, read_pickled_tensors

# --- Code ---


def canaries(canary: Path) -> dict[str, bytes]:
    """data.pkls that would create a directory if they were run."""
    call = Call(os.mkdir, str(canary))
    nested = Call(torch._utils._rebuild_parameter, call, False, OrderedDict())
    ordered = OrderedDict([("a", call)])
    return {
        "a value": pickled({"a": call}),
        "a key": pickled({Call(os.system, f"mkdir {canary}"): 1}),
        "an argument": pickled({"a": nested}),
        "in an OrderedDict": pickled(ordered),
        "behind eval": pickled({"a": Call(eval, f"__import__('os').mkdir({str(canary)!r})")}),
        "protocol 4": pickle.dumps({"a": call}, protocol=4),
        "by INST": b"(S'mkdir " + str(canary).encode() + b"'\nios\nsystem\n.",
        "by extension": b"\x80\x02\x82\x01.",
        "getattr": b"\x80\x02cbuiltins\ngetattr\n(cos\npath\nX\x05\0\0\0mkdirtR.",
    }


@pytest.mark.parametrize("place", PLACES)
def test_no_code_runs_in_any_place(place: str, tmp_path: Path, count_faults: Callable) -> None:
    file, make, read = PLACES[place]
    canary = tmp_path / "canary"
    make(tmp_path / "model")
    (tmp_path / "model").mkdir(exist_ok=True)
    for name, content in canaries(canary).items():
        for whole in (False, True):  # as the structure of an archive; and as the whole file, as before torch 1.6
            target = tmp_path / "model" / file
            target.write_bytes(content) if whole else write_archive(target, content)
            with pytest.raises(FileError) as caught:
                read(tmp_path / "model")
            assert str(target) in str(caught.value), name
            assert not canary.exists(), name
            count_faults("pickles with side effects")


def test_the_canary_is_a_real_one(tmp_path: Path) -> None:
    file = write_archive(tmp_path / "a.pt", canaries(tmp_path / "canary")["a value"])
    torch.load(file, weights_only=False)
    assert (tmp_path / "canary").exists()


# --- Bombs ---


def doubling_tuple(levels: int) -> bytes:
    """t₁ = (t₀, t₀), t₂ = (t₁, t₁), …: as a dictionary's key it would be hashed in 2^levels steps."""
    return b"\x80\x02}q\0)q\x01" + b"".join(b"h\x01h\x01\x86q\x01" for _ in range(levels)) + b"K\x01s."


def doubling_list(levels: int, *, call: bool) -> bytes:
    """The same of lists, given to `REDUCE` as its function: an error that quotes it would not end."""
    built = b"\x80\x02]q\x01" + b"".join(b"](h\x01h\x01eq\x01" for _ in range(levels))
    return built + (b")R." if call else b".")


def hex_of_hex(levels: int) -> bytes:
    content: object = b"ab"
    for _ in range(levels):
        content = Call(_codecs.encode, content, "hex")
    return pickled({"a": content})


SHADOW = b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\0\0\0itemsccollections\nOrderedDict\nsb."
STRUCTURES = {
    "a view of 2^40 numbers": pickled({"a": tensor((2**40,), (0,))}),
    "a view of 2^62 numbers": pickled({"a": tensor((2**31, 2**31), (0, 0))}),
    "a size past the storage": pickled({"a": tensor((10**9,), (1,))}),
    "a negative size": pickled({"a": tensor((-4,), (1,))}),
    "a negative offset": pickled({"a": tensor((4,), (1,), offset=-4)}),
    "a negative stride": pickled({"a": tensor((4,), (-1,), offset=3)}),
    "a storage past the end": pickled({"a": tensor((2**20,), (1,), Storage(2**20))}),
    "a storage of no record": pickled({"a": tensor((4,), (1,), Storage(key="7"))}),
    "a storage that climbs": pickled({"a": tensor((4,), (1,), Storage(key="../../../etc/passwd"))}),
    "a storage of half a number": pickled({"a": tensor((4,), (1,), Storage(1.5))}),
    "a storage of a text": pickled({"a": tensor((4,), (1,), Storage("x" * 100))}),
    "a storage alone": pickled({"a": Storage()}),
    "a tensor without a file": pickled({"a": Call(torch.Tensor, 10**12)}),
    "a storage without a file": pickled({"a": Call(torch.storage.UntypedStorage, 10**12)}),
    "a meta tensor": pickled(
        {"a": Call(torch._utils._rebuild_meta_tensor_no_storage, torch.float32, (2**40,), (1,), False)}
    ),
    "a bytearray": pickled({"a": Call(bytearray, 10**12)}),
    "hex of hex": hex_of_hex(45),
    "a doubling tuple as a key": doubling_tuple(60),
    "a doubling list": doubling_list(60, call=False),
    "a doubling list as a function": doubling_list(60, call=True),
    "deep tuples as a key": b"\x80\x02}q\0)" + b"\x85" * 1_000_000 + b"K\x01s.",
    "deep lists": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "a list within itself": b"\x80\x02]q\0h\0a.",
    "a key that is a tensor": pickled({Call(REBUILD, Storage(), 0, (4,), (1,), False, OrderedDict()): 1}),
    "a memo without an entry": b"\x80\x02h\x07.",
    "an empty stack": b"\x80\x02.",
    "nothing": b"",
    "no end": b"\x80\x02}q\0",
    "a string of 4 GB": b"\x80\x02X\xff\xff\xff\xffab.",
    "a number of 4 GB": b"\x80\x02\x8b\xff\xff\xff\x7f\x01.",
    "noise": bytes(range(256)),
}


@pytest.fixture(scope="module", params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Callable]:
    """A directory, the pickle in it, and how the directory is read."""
    file, make, read = PLACES[request.param]
    folder = tmp_path_factory.mktemp("model")
    make(folder)
    return folder, folder / file, read


def test_a_structure_that_unpacks_to_more_is_refused_in_every_place(
    place: tuple[Path, Path, Callable], survives: Callable, count_faults: Callable
) -> None:
    folder, file, read = place
    for bomb, structure in STRUCTURES.items():
        write_archive(file, structure)
        assert not survives(lambda: read(folder), file), bomb
        count_faults("pickle bombs")


def test_an_ordered_dict_is_read_by_its_own_items(tmp_path: Path) -> None:
    """Its pickle gives it an attribute `items`, which is not its method."""
    assert read_pickled_tensors(write_archive(tmp_path / "a.pt", SHADOW)) == {}


def test_the_view_is_a_real_trap(tmp_path: Path) -> None:
    """Torch alone builds 2⁴⁰ numbers from 16 bytes, and whoever copies them needs 4 TB."""
    file = write_archive(tmp_path / "a.pt", STRUCTURES["a view of 2^40 numbers"])
    assert torch.load(file, weights_only=True)["a"].nbytes == 4 * 2**40


def test_tensors_with_attributes_come_without_them(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    torch.save(OrderedDict(a=weight), tmp_path / "a.pt")
    read = read_pickled_tensors(tmp_path / "a.pt")["a"]
    assert type(read) is torch.Tensor and not read.requires_grad
