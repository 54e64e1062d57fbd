"""The option ``--tell SECONDS TEXT`` of ``reply``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from personaplex.errors import InputError


class TellCommand(TyperCommand):
    """A command whose option ``--tell`` takes two values and may be repeated, for which typer has no type."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        next(parameter for parameter in self.params if parameter.name == "tell").nargs = 2


def _as_it_is(value: str) -> str:
    return value  # without a parser typer would make one string of both values


Tells = Annotated[
    list[str],
    typer.Option(
        "--tell",
        metavar="SECONDS TEXT",
        parser=_as_it_is,
        show_default=False,
        help='Tell it something while it listens, as 12.5 "The pool is closed today."; may be given several times.',
    ),
]


def read_tells(given: Sequence[Any]) -> tuple[tuple[float, str], ...]:
    """The values of ``--tell``, (seconds, text) each, in the order of their times."""
    tells = []
    for when, text in given:
        try:
            seconds = float(when)
        except ValueError:
            seconds = math.nan
        if not math.isfinite(seconds):
            raise InputError(f'--tell needs a time in seconds and a text, as 12.5 "The pool is closed.", not {when!r}')
        tells.append((seconds, text))
    return tuple(sorted(tells, key=lambda tell: tell[0]))
