"""Strict reading of data from outside: dataclasses from parsed JSON, numbers in a range, the nearest known names."""

from __future__ import annotations

import dataclasses
import difflib
import json
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from personaplex.errors import ConfigError, InputError

Entry = TypeVar("Entry")

EQUALLY_NEAR = 0.05
"""Names whose likeness (``difflib`` ratio, 0 to 1) is that close to the best one's are suggested beside it."""


def nearest_names(given: str, names: Iterable[str]) -> str:
    """The end of an error about an unknown name: "; did you mean a or b?", or "; there are a, b, c" if none is near."""
    by_lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(given.lower(), by_lower, n=3)
    if near:
        likeness = {name: difflib.SequenceMatcher(None, name, given.lower()).ratio() for name in near}
        best = [by_lower[name] for name in near if likeness[name] >= max(likeness.values()) - EQUALLY_NEAR]
        return f"; did you mean {' or '.join(best)}?"
    return f"; there are {', '.join(by_lower.values())}" if by_lower else ""


def check_range(
    name: str,
    value: float,
    least: float,
    most: float | None = None,
    *,
    error: type[InputError] = ConfigError,
    advice: str = "",
) -> None:
    """Raise ``error`` unless ``least`` ≤ ``value`` ≤ ``most``; NaN never is. ``advice`` ends the sentence."""
    if value >= least and (most is None or value <= most):
        return
    allowed = f"{_plain(least)} or more is needed" if most is None else f"{_plain(least)} to {_plain(most)} are allowed"
    raise error(f"{name} is {value}; {allowed}{advice}")


def _plain(number: float) -> str:
    """65536 and 0.01, not 65536.0 or 6.6e+04."""
    return str(int(number)) if float(number).is_integer() else f"{number:g}"


def strict_dataclass(cls: type[Entry], data: object, where: str = "") -> Entry:
    """Fill a dataclass from parsed JSON.

    ``where`` is put before a key's name in errors: ``"lm."``. Raises ConfigError for an unknown key (with the
    nearest known), a missing one, or a value of the wrong type.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{where.rstrip('.') or 'config'} is {data!r}; an object with named values is needed")
    hints = typing.get_type_hints(cls)
    for key in data:
        if key not in hints:
            raise ConfigError(f"unknown key {where}{key}{nearest_names(str(key), sorted(hints))}")
    missing = [name for name in _required(cls) if name not in data]
    if missing:
        raise ConfigError(f"{where.rstrip('.') or 'config'} has no {' and no '.join(missing)}")
    return cls(**{key: _convert(hints[key], value, f"{where}{key}") for key, value in data.items()})


def _required(cls: type) -> list[str]:
    missing = dataclasses.MISSING
    return [f.name for f in dataclasses.fields(cls) if f.default is missing and f.default_factory is missing]


def _convert(hint: Any, value: Any, where: str) -> Any:
    if typing.get_origin(hint) is not None and type(None) in typing.get_args(hint):
        if value is None:
            return None
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    if dataclasses.is_dataclass(hint):
        return strict_dataclass(typing.cast(type, hint), value, f"{where}.")
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where} is {value!r}; a list is needed")
        return tuple(_convert(item, v, f"{where}[{i}]") for i, v in enumerate(value))
    if hint is float and type(value) in (int, float):
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{where} is {value!r}; {hint.__name__} is needed")
    return value


def read_entries(path: Path, key: str, kind: type[Entry]) -> tuple[Entry, ...]:
    """The list under ``key`` of a JSON file as dataclasses ``kind`` with unique ``name``s; ConfigError if it is not."""
    try:
        items = json.loads(path.read_text(encoding="utf-8"))[key]
        entries = tuple(strict_dataclass(kind, item, f"{key}[{i}].") for i, item in enumerate(items))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read as a list of {key}: {error!r}") from error
    names = [str(getattr(entry, "name", "")).lower() for entry in entries]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ConfigError(f"{path} names {', '.join(sorted(twice))} twice")
    return entries
