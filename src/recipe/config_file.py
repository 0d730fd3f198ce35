"""Run settings in TOML: a file is a partial override of the defaults, and every run saves the whole it resolved to.

An unknown table or key is an error that names the nearest known one; a value of the wrong type names both types.
Numbers are finite, and whole numbers fit into 64 bits: nothing that reads them could do with others.
"""

import dataclasses
import difflib
import json
import math
import tomllib
import typing
from pathlib import Path
from typing import Any

from files import FileError, shown, write_whole
from files.fields import Place, check_text
from files.rows import read_text, reason
from recipe.config import RunConfig

LARGEST_FILE = 2**15  # bytes: ten times a whole config; the time of Python's parser grows with a key's square


def read_config(path: Path, default: RunConfig | None = None) -> RunConfig:
    """The settings in `path` laid over `default` (the dataclasses' own defaults if None).

    Raises:
        FileError: not TOML, an unknown key, or a value of the wrong type or out of range; file and key are named.
        OSError: it is there and cannot be read.
    """
    place = Place(path)
    try:
        tables = tomllib.loads(read_text(path, limit=LARGEST_FILE))
    except FileNotFoundError:
        raise place.unsuitable("no such config file", "the published recipes are in configs/") from None
    except FileError:
        raise
    except (ValueError, RecursionError) as error:  # ValueError: not TOML, or a number of thousands of digits
        raise place.damaged(f"not valid TOML: {reason(error)}", "correct it, or begin from one in configs/") from None
    try:
        return _override(default or RunConfig(), tables, place, prefix="")
    except FileError:
        raise
    except ValueError as error:  # settings that are each fine and do not go together
        raise place.unsuitable(str(error)) from None


def write_config(config: RunConfig, path: Path) -> None:
    """Write every setting; `read_config` gives an equal config back."""
    write_whole(path, config_text(config).encode())


def config_text(config: RunConfig) -> str:
    """Every setting, as a TOML file has it."""
    lines = []
    for section in dataclasses.fields(config):
        lines.append(f"[{section.name}]")
        values = getattr(config, section.name)
        lines += [f"{field.name} = {_toml(getattr(values, field.name))}" for field in dataclasses.fields(values)]
        lines.append("")
    return "\n".join(lines)


def _override(default: Any, values: dict[str, Any], place: Place, prefix: str) -> Any:
    """A copy of the dataclass `default` with `values` in place, nested tables included."""
    types = typing.get_type_hints(type(default))
    changes = {}
    for key, value in values.items():
        if key not in types:
            near = difflib.get_close_matches(key, types, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(types)}"
            raise place.unsuitable(f"unknown key {shown(prefix + key)}: {hint}")
        current = getattr(default, key)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, dict):
                raise place.unsuitable(f"{key} is a table, not {shown(value)}", f"write [{key}]")
            changes[key] = _override(current, value, place, prefix=f"{key}.")
        else:
            changes[key] = _checked(value, types[key], place.at(prefix + key))
    return dataclasses.replace(default, **changes)


def _checked(value: Any, expected: Any, place: Place) -> Any:
    """The TOML value as the field's type: arrays become tuples, whole numbers may stand for floats."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if type(value) is int and value.bit_length() > 63:  # not shown either: Python refuses to print the largest
        raise place.unsuitable(f"a whole number of {value.bit_length()} bits, at most 63 fit", "write a smaller one")
    if isinstance(value, float) and not math.isfinite(value):
        raise place.unsuitable(f"{value} is no finite number", "write one, such as 1e-4")
    if isinstance(value, str):
        check_text(value, "the text", place)
    if origin is typing.Literal:
        if value not in arguments:
            raise place.unsuitable(f"{shown(value)} must be one of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        variadic = arguments[-1] is Ellipsis
        if not isinstance(value, list) or not (variadic or len(value) == len(arguments)):
            raise place.unsuitable(f"{shown(value)} must be an array{'' if variadic else f' of {len(arguments)}'}")
        return tuple(_checked(item, arguments[0], place) for item in value)
    if expected is float and type(value) is int:
        return float(value)
    if type(value) is not expected:  # bool is an int to isinstance
        raise place.unsuitable(f"{shown(value)} must be of type {expected.__name__}, not {type(value).__name__}")
    return value


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)  # strings, whole numbers and booleans look alike in JSON and TOML
