"""Run settings in TOML: a file is a partial override of the defaults, and every run saves the whole it resolved to.

An unknown table or key is an error that names the nearest known one; a value of the wrong type names both types.
"""

import dataclasses
import difflib
import json
import tomllib
import typing
from pathlib import Path
from typing import Any

from files import write_whole
from recipe.config import RunConfig


def read_config(path: Path, default: RunConfig | None = None) -> RunConfig:
    """The settings in `path` laid over `default` (the dataclasses' own defaults if None).

    Raises:
        ValueError: not TOML, an unknown key, or a value of the wrong type; the message names file and key.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such config file; the published recipes are in configs/") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid TOML: {error}") from error
    return _override(default or RunConfig(), tables, path, prefix="")


def write_config(config: RunConfig, path: Path) -> None:
    """Write every setting; `read_config` gives an equal config back."""
    lines = []
    for section in dataclasses.fields(config):
        lines.append(f"[{section.name}]")
        values = getattr(config, section.name)
        lines += [f"{field.name} = {_toml(getattr(values, field.name))}" for field in dataclasses.fields(values)]
        lines.append("")
    write_whole(path, "\n".join(lines).encode())


def _override(default: Any, values: dict[str, Any], path: Path, prefix: str) -> Any:
    """A copy of the dataclass `default` with `values` in place, nested tables included."""
    types = typing.get_type_hints(type(default))
    changes = {}
    for key, value in values.items():
        if key not in types:
            near = difflib.get_close_matches(key, types, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(types)}"
            raise ValueError(f"{path}: unknown key {prefix + key!r}: {hint}")
        current = getattr(default, key)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, dict):
                raise ValueError(f"{path}: {key} is a table: write [{key}]")
            changes[key] = _override(current, value, path, prefix=f"{key}.")
        else:
            changes[key] = _checked(value, types[key], f"{path}: {prefix}{key}")
    return dataclasses.replace(default, **changes)


def _checked(value: Any, expected: Any, where: str) -> Any:
    """The TOML value as the field's type: arrays become tuples, whole numbers may stand for floats."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin is typing.Literal:
        if value not in arguments:
            raise ValueError(f"{where} = {value!r} must be one of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        variadic = arguments[-1] is Ellipsis
        if not isinstance(value, list) or not (variadic or len(value) == len(arguments)):
            raise ValueError(f"{where} = {value!r} must be an array{'' if variadic else f' of {len(arguments)}'}")
        return tuple(_checked(item, arguments[0], where) for item in value)
    if expected is float and type(value) is int:
        return float(value)
    if type(value) is not expected:  # bool is an int to isinstance
        raise ValueError(f"{where} = {value!r} must be of type {expected.__name__}, not {type(value).__name__}")
    return value


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)  # strings, whole numbers and booleans look alike in JSON and TOML
