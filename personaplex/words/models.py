"""The recognisers by name."""

from __future__ import annotations

from personaplex.words.recogniser import MOONSHINE, Recogniser


def load(kind: str) -> Recogniser:
    """The recogniser of a kind; loading takes seconds."""
    if kind == MOONSHINE:
        from personaplex.words.moonshine import Moonshine

        return Moonshine()
    from personaplex.words.whisper import Whisper

    return Whisper()
