"""Module lists with the class of what they hold, which PyTorch's own type does not tell."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

Held = TypeVar("Held", bound=nn.Module)


def of_class(modules: nn.ModuleList, held: type[Held]) -> list[Held]:
    """The modules of a list; TypeError where one is of another class."""
    found = [module for module in modules if isinstance(module, held)]
    if len(found) != len(modules):
        raise TypeError(f"a module of the list is no {held.__name__}")
    return found
