"""Replacing parts of other libraries, checked against the versions that they were written for."""

from __future__ import annotations

import builtins
from typing import Any


def replace(owner: Any, **parts: Any) -> None:
    """Give a module or class other parts; raises AttributeError for one that it no longer has.

    A built-in function, as ``print``, is replaced in that module alone.
    """
    for name, part in parts.items():
        if not hasattr(owner, name) and not hasattr(builtins, name):
            raise AttributeError(f"{owner} has no {name} any more: is its version the one that this repair is for?")
        setattr(owner, name, part)
