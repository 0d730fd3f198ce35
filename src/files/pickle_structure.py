"""What a torch pickle would build, found out by following its opcodes without building anything.

A pickle is a program for a stack machine. Here the machine runs with a `_Value` (a kind, a number of values, a depth)
in the place of every value, and stops at the first opcode that plain tensors in plain containers have no use for: a
name that is not on the list, a call of anything but torch's functions that put a tensor together, a key that is no
string or number, a container that holds itself, or more values in all than the pickle has bytes. The last is what
sharing can do: t₁ = (t₀, t₀), t₂ = (t₁, t₁), … holds 2ⁿ values after n steps, and whoever hashes or prints it visits
them all.
"""

import pickletools
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from files.errors import DamagedFileError, FileError, UnsafeFileError, shown

AGAIN = "download or save it again"
DEEPEST = 64
"""Levels of containers in each other; an optimizer's state has 5."""

ORDERED = "collections OrderedDict"
FUNCTIONS = {
    *("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3", "torch._utils _rebuild_parameter"),
    "torch Size",
}
NAMES = re.compile(
    r"torch (\w+Storage|bfloat16|bool|(float|u?int|complex)\d+|float8_\w+)|torch\.storage (Unt|T)ypedStorage"
)
"""Of storages and dtypes: arguments, never called."""

LEAVES = {"NONE", "NEWTRUE", "NEWFALSE", "BINFLOAT"}
KEYS = {"BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINSTRING"}
CONTAINERS = {"EMPTY_TUPLE": "tuple", "EMPTY_LIST": "list", "EMPTY_DICT": "dict"}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
PUTS, GETS = {"BINPUT", "LONG_BINPUT"}, {"BINGET", "LONG_BINGET"}


@dataclass
class _Value:
    """What stands for a value while data.pkl is looked through: its kind, and how many values are within it.

    A container that is in another, or was fetched a second time, must not grow: its weight is counted in already.
    """

    kind: str
    weight: int = 1
    depth: int = 0
    grows: bool = True


def check_structure(path: Path, content: bytes) -> None:
    """Follow the opcodes of data.pkl.

    Raises:
        UnsafeFileError: it names or shares what plain tensors do not.
        DamagedFileError: it is not a pickle.
    """
    try:
        _Reader(path, len(content)).follow(content)
    except FileError:
        raise
    except (ValueError, IndexError, KeyError, AttributeError, OverflowError, struct.error) as error:
        reason = str(error) or type(error).__name__
        raise DamagedFileError(
            f"its data.pkl is not a whole pickle of torch's ({reason})", file=path, remedy=AGAIN
        ) from error


class _Reader:
    """The unpickler's stack, marks and memo, with `_Value` in the place of values."""

    def __init__(self, path: Path, n_bytes: int) -> None:
        self.path, self.n_bytes = path, n_bytes
        self.stack: list[_Value] = []
        self.below: list[list[_Value]] = []
        self.memo: dict[int, _Value] = {}

    def follow(self, content: bytes) -> None:
        for opcode, argument, _ in pickletools.genops(content):
            name = opcode.name
            if name in LEAVES:
                self.stack.append(_Value("leaf"))
            elif name in KEYS:
                self.stack.append(_Value("key"))
            elif name in CONTAINERS:
                self.stack.append(_Value(CONTAINERS[name]))
            elif name in PUTS:
                self.memo[int(str(argument))] = self.stack[-1]
            elif name in GETS:
                value = self.memo[int(str(argument))]
                value.grows = False
                self.stack.append(value)
            elif name in TUPLES:
                self._make("tuple", self._pop(TUPLES[name]))
            elif name == "TUPLE":
                self._make("tuple", self._pop_mark())
            elif name == "MARK":
                self.below.append(self.stack)
                self.stack = []
            elif name == "GLOBAL":
                self._global(str(argument))
            elif name == "REDUCE":
                self._reduce(*self._pop(2))
            elif name == "BINPERSID":
                self._make("storage", self._pop(1))
            elif name in ("APPEND", "APPENDS"):
                self._grow("list", self._pop(1) if name == "APPEND" else self._pop_mark())
            elif name in ("SETITEM", "SETITEMS"):
                self._set_items(self._pop(2) if name == "SETITEM" else self._pop_mark())
            elif name == "BUILD":
                self._grow("ordered", self._pop(1))
            elif name not in ("PROTO", "STOP"):
                raise self._unsafe(f"it is more than plain tensors (opcode {name})")

    def _global(self, name: str) -> None:
        kind = "ordered type" if name == ORDERED else "function" if name in FUNCTIONS else "name"
        if kind == "name" and not NAMES.fullmatch(name):
            raise self._unsafe(f"it is more than plain tensors ({shown(name.replace(' ', '.', 1))})")
        self.stack.append(_Value(kind))

    def _reduce(self, function: _Value, arguments: _Value) -> None:
        if arguments.kind != "tuple" or function.kind not in ("function", "ordered type"):
            raise self._unsafe("it calls what puts no tensor together")
        if function.kind == "ordered type" and arguments.weight > 1:
            raise self._unsafe("it calls OrderedDict with arguments")
        self._make("ordered" if function.kind == "ordered type" else "tensor", [arguments])

    def _set_items(self, items: Sequence[_Value]) -> None:
        if any(key.kind != "key" for key in items[::2]):
            raise self._unsafe("its dictionaries have other keys than strings and whole numbers")
        self._grow("dict", items)

    def _make(self, kind: str, parts: Sequence[_Value]) -> None:
        self.stack.append(_Value(kind))
        self._add(self.stack[-1], parts)

    def _grow(self, kind: str, parts: Sequence[_Value]) -> None:
        container = self.stack[-1]
        if container.kind != kind and (kind, container.kind) != ("dict", "ordered"):
            raise self._unsafe(f"it fills a {container.kind} as if it were a {kind}")
        if not container.grows:
            raise self._unsafe("it fills a container that is within another")
        self._add(container, parts)

    def _add(self, container: _Value, parts: Sequence[_Value]) -> None:
        for part in parts:
            part.grows = False
            container.weight += part.weight
            container.depth = max(container.depth, part.depth + 1)
        if container.weight > self.n_bytes:
            raise self._unsafe(f"it unpacks to more values ({container.weight}) than it has bytes ({self.n_bytes})")
        if container.depth > DEEPEST:
            raise self._unsafe(f"its containers are nested more than {DEEPEST} levels deep")

    def _pop(self, n: int) -> list[_Value]:
        if len(self.stack) < n:
            raise IndexError("it takes more values than it holds")
        values = self.stack[-n:]
        del self.stack[-n:]
        return values

    def _pop_mark(self) -> list[_Value]:
        values, self.stack = self.stack, self.below.pop()
        return values

    def _unsafe(self, problem: str) -> UnsafeFileError:
        return UnsafeFileError(
            f"it is refused: {problem}, and no code is run from it", file=self.path, place="data.pkl", remedy=AGAIN
        )
