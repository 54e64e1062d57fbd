"""Whose turn it is, from frames of persona and user: p speaks, u speaks, b both, . neither, t text without sound."""

from __future__ import annotations

import numpy as np
import pytest
from fake_session import FRAME_SAMPLES

from personaplex.protocols.turns import Turn, Turns

LOUD, QUIET = np.full(FRAME_SAMPLES, 0.1, np.float32), np.zeros(FRAME_SAMPLES, np.float32)
NAMES = {
    Turn.PERSONA_BEGAN: "P", Turn.PERSONA_PAUSED: "p", Turn.PERSONA_GAVE_WAY: "x", Turn.USER_BEGAN: "U",
    Turn.USER_ENDED: "u",
}  # fmt: skip


def turns_of(frames: str) -> str:
    turns = Turns()
    found = ""
    for each in frames:
        says, persona, user = each in "t", each in "pb", each in "ub"
        changes = turns.frame(says, LOUD if persona else QUIET, LOUD if user else QUIET)
        found += "".join(NAMES[change] for change in changes)
    return found


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ("..........", ""),
        ("pppp....pp.........", "Pp"),
        ("tttpp........", "Pp"),
        ("u..........", ""),
        ("uuuuuu......", "Uu"),
        ("uuu...uuu......", "Uu"),
        ("uuuuu....pppp", "UuP"),
        ("uuuuuuppp", "UuP"),
        ("ppppppbbbpppppp........", "Pp"),
        ("ppppbbbbuuuu......", "PUxu"),
        ("ppppbbb.........", "PUxu"),
        ("pppp..uuuuu......", "PpUu"),
        ("pppp.uuuuuu......", "PpUu"),
        ("ppppbbuuupppp........", "PUxuPp"),
        ("ppbb..pp.........", "Pp"),
        ("pbppppppppppppp.........", "Pp"),
    ],
    ids=[
        "silence", "a pause inside a turn", "text before sound", "a click", "the user alone", "the user pauses",
        "question and answer", "the persona takes the turn", "mm-hm", "an interruption", "one that ends at once",
        "the user speaks in the pause", "a little earlier", "interrupted, then on", "a short overlap",
        "one frame over the persona",
    ],
)  # fmt: skip
def test_turns_are_those_that_the_model_took(frames, expected):
    assert turns_of(frames) == expected
