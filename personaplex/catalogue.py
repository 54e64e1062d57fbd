"""Catalogues: lists of named things in a JSON file, read strictly."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from personaplex.errors import ConfigError

Entry = TypeVar("Entry")


def read_entries(path: Path, key: str, kind: type[Entry]) -> tuple[Entry, ...]:
    """The objects under ``key`` as dataclasses ``kind``; raises ConfigError on anything amiss."""
    try:
        items = json.loads(path.read_text(encoding="utf-8"))[key]
        entries = tuple(_entry(item, kind, path) for item in items)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} cannot be read as a list of {key}: {error!r}") from error
    names = [entry.name.lower() for entry in entries]  # type: ignore[attr-defined]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ConfigError(f"{path} names {', '.join(sorted(twice))} twice")
    return entries


def _entry(item: dict[str, Any], kind: type[Entry], path: Path) -> Entry:
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(item.keys() - fields)
    required = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    missing = sorted(required - item.keys())
    if unknown or missing:
        raise ConfigError(f"{path}: {item.get('name', item)} has unknown keys {unknown}, missing keys {missing}")
    wrong = sorted(name for name, value in item.items() if type(value).__name__ != fields[name].type)
    if wrong:
        raise ConfigError(f"{path}: {item['name']} has values of the wrong type in {wrong}")
    return kind(**item)


def nearest_names(given: str, names: Iterable[str]) -> str:
    """The end of a sentence that says what else there is: "; did you mean …?" or "; there are …"."""
    by_lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(given.lower(), by_lower, n=3)
    if near:
        return f"; did you mean {' or '.join(by_lower[name] for name in near)}?"
    return f"; there are {', '.join(by_lower.values())}" if by_lower else ""
