"""What a user may ask in nano's world and what the agent answers, read from ``turns.toml``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from personaplex.strict import strict_dataclass

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = Path(__file__).with_name("turns.toml")


@dataclass(frozen=True)
class Turn:
    """One thing a user may want, in all its wordings.

    ``questions`` are only ever spoken, with ``{good}`` for anything that is sold. ``answers`` carry ``{name}``,
    ``{place}``, ``{price}`` and ``{hour}``; the text stream has them exactly as written.
    """

    questions: tuple[str, ...]
    answers: tuple[str, ...]
    weight: float  # share of the turns with which users open a conversation
    needs: str = ""  # the slot without which the agent cannot answer
    clauses: tuple[str, ...] = ()  # may follow "I wanted to ask"


def read_turns(path: Path = FILE) -> dict[str, Turn]:
    """Kind → turn, in the file's order. Raises ConfigError for an unknown key or a value of the wrong type."""
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    return {kind: strict_dataclass(Turn, turn, f"{kind}.") for kind, turn in data.items()}


TURNS = read_turns()
FACT_KINDS = tuple(kind for kind, turn in TURNS.items() if turn.needs)  # only a prompt can tell these
