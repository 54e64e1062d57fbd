"""A list of modules of one class, as a type checker sees it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Generic, TypeVar, overload

from torch import nn

M = TypeVar("M", bound=nn.Module)


class ModuleList(nn.ModuleList, Generic[M]):
    """``torch.nn.ModuleList`` whose elements have a type."""

    if TYPE_CHECKING:

        def __iter__(self) -> Iterator[M]: ...

        @overload
        def __getitem__(self, index: slice) -> ModuleList[M]: ...

        @overload
        def __getitem__(self, index: int) -> M: ...

        def __getitem__(self, index: int | slice) -> M | ModuleList[M]: ...
