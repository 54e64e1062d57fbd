"""Turns, as the model took them: who speaks, who gave way. It reports what happened and commands nothing."""

from __future__ import annotations

import math
from enum import Enum

import numpy as np

from personaplex.audio.activity import is_loud
from personaplex.protocols.feeder import FRAME_SEC


def _frames(seconds: float) -> int:
    return math.ceil(seconds / FRAME_SEC - 1e-9)


PAUSE_FRAMES = _frames(0.64)
"""The persona's turn is over after so much silence."""
GAVE_WAY_FRAMES = _frames(0.24)
"""A persona that was spoken to and is silent for so long has given way."""
BEGIN_FRAMES = _frames(0.16)
END_FRAMES = _frames(0.48)


class Turn(str, Enum):
    """A change of turns. An interruption is USER_BEGAN, then PERSONA_GAVE_WAY."""

    PERSONA_BEGAN = "persona began"
    PERSONA_PAUSED = "persona paused"
    PERSONA_GAVE_WAY = "persona gave way"
    USER_BEGAN = "user began"
    USER_ENDED = "user ended"


class Turns:
    """Frames in, changes of turns out.

    A user who speaks while the persona goes on speaking has no turn: most such words are an "mm-hm", and clients throw
    away the persona's sound when they are told that the user began.
    """

    def __init__(self) -> None:
        self.persona_speaks = False  # its turn: also in a short silence of its own
        self.user_speaks = False
        self._persona_quiet = 0
        self._user_loud = self._user_quiet = 0
        self._overlapped = False

    def frame(self, says: bool, pcm: np.ndarray, heard: np.ndarray) -> list[Turn]:
        """``says``: whether the text token is speech; pcm, heard: [frame_samples] float32, of persona and user."""
        active, hot = says or is_loud(pcm), is_loud(heard)
        self._persona_quiet = 0 if active else self._persona_quiet + 1
        self._user_loud = self._user_loud + 1 if hot else 0
        self._user_quiet = 0 if hot else self._user_quiet + 1
        if self._user_quiet > END_FRAMES:
            self._overlapped = False
        elif self._user_loud >= BEGIN_FRAMES and self.persona_speaks and active:
            self._overlapped = True
        return [*self._persona_begins(active), *self._user_turns(), *self._persona_pauses()]

    def _persona_begins(self, active: bool) -> list[Turn]:
        if not active or self.persona_speaks:
            return []
        self.persona_speaks = True
        return [*self._end_user(), Turn.PERSONA_BEGAN]

    def _user_turns(self) -> list[Turn]:
        if self.user_speaks:
            return self._end_user() if self._user_quiet >= END_FRAMES else []
        if self.persona_speaks and self._persona_quiet < GAVE_WAY_FRAMES:
            return []
        if self.persona_speaks and self._overlapped:
            self.persona_speaks, self.user_speaks, self._overlapped = False, True, False
            return [Turn.USER_BEGAN, Turn.PERSONA_GAVE_WAY]
        if self._user_loud < BEGIN_FRAMES:
            return []
        self.user_speaks = True
        paused = [Turn.PERSONA_PAUSED] if self.persona_speaks else []
        self.persona_speaks = False
        return [*paused, Turn.USER_BEGAN]

    def _persona_pauses(self) -> list[Turn]:
        if not self.persona_speaks or self._persona_quiet < PAUSE_FRAMES:
            return []
        self.persona_speaks = False
        return [Turn.PERSONA_PAUSED]

    def _end_user(self) -> list[Turn]:
        if not self.user_speaks:
            return []
        self.user_speaks = False
        return [Turn.USER_ENDED]
