"""Both sides of a conversation in words: lines in the order in which they began, and as text, JSON and WebVTT."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from personaplex.text.transcript import Transcript, Word, cue_text, group_into_cues, in_chunks

AGENT, USER = "Persona", "You"


@dataclass(frozen=True)
class Line:
    """What one side said in one go."""

    speaker: str  # AGENT or USER
    words: tuple[Word, ...]

    @property
    def start_sec(self) -> float:
        return self.words[0].start_sec

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)


def lines_of(agent: Sequence[Word], user: Sequence[Word], max_words: int = 14) -> list[Line]:
    """Both sides' words in lines, by the time at which each begins."""
    lines = [
        Line(speaker, tuple(cue))
        for speaker, words in ((AGENT, agent), (USER, user))
        for cue in group_into_cues(words, max_words)
    ]
    return sorted(lines, key=lambda line: line.start_sec)


@dataclass(frozen=True)
class Dialogue:
    """A persona's transcript and, where somebody wrote them down, the user's words."""

    agent: Transcript
    user: tuple[Word, ...] | None = None  # None: nobody did

    @property
    def lines(self) -> list[Line]:
        return lines_of(self.agent.words, self.user or ())

    def to_text(self) -> str:
        """The persona's words alone, or a line for each turn with its speaker."""
        if self.user is None:
            return self.agent.text + "\n"
        return "".join(f"{line.speaker}: {line.text}\n" for line in self.lines)

    def to_dict(self) -> dict[str, Any]:
        """The persona's words in the layout that Full-Duplex-Bench reads; the user's in the same under ``user``."""
        told = self.agent.to_dict()
        return told if self.user is None else {**told, "user": in_chunks(self.user)}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=1) + "\n"

    def to_webvtt(self) -> str:
        """Subtitles; with the user's words every cue names its voice."""
        if self.user is None:
            return self.agent.to_webvtt()
        cues = [cue_text(line.words, voice=line.speaker) for line in lines_of(self.agent.words, self.user, 10)]
        return "\n".join(["WEBVTT\n", *cues])
