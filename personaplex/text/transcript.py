"""Transcript: words with times, from the text stream."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from personaplex.config import END_OF_PADDING_ID, LMConfig, MimiConfig
from personaplex.text.tokenizer import SPACE, TextTokenizer

MAX_SEC_PER_LETTER = 0.12
MIN_WORD_SEC = 0.24


_CONTRACTED = re.compile(r"(s|re|ve|ll|d|m|t)\W*", re.IGNORECASE)
_APOSTROPHES = ("'", "\u2019")


@dataclass
class _OpenWord:
    start_frame: int
    last_frame: int
    content: bytearray = field(default_factory=bytearray)

    @property
    def text(self) -> str:
        """Without the characters that a terminal would take for commands: a model may say any byte."""
        decoded = self.content.decode("utf-8", errors="replace")
        return "".join(character for character in decoded if character.isprintable()).strip()

    def contracted_with(self, later: _OpenWord) -> _OpenWord | None:
        """One word of two that a blank cut at an apostrophe, as "you" and "'re" or "I'" and "m"; None for others."""
        before, after = self.text, later.text
        at_start, at_end = after.startswith(_APOSTROPHES), before.endswith(_APOSTROPHES)
        stem, rest = before.rstrip("".join(_APOSTROPHES)), after.lstrip("".join(_APOSTROPHES))
        if at_start == at_end or not stem[-1:].isalpha() or not _CONTRACTED.fullmatch(rest):
            return None
        return _OpenWord(self.start_frame, later.last_frame, bytearray((before + after).encode()))


@dataclass(frozen=True)
class Word:
    """A word as spoken, with its time in the recording."""

    text: str
    start_sec: float
    end_sec: float


class _Words(NamedTuple):
    """Replaced as a whole, so that a reader in another thread sees each word once."""

    settled: list[Word]  # only ever added to
    num_settled: int  # of those
    open: list[_OpenWord]


class Transcript:
    """Words and times from the text stream, one token per frame; may be read at any time.

    The stream says when a word starts: the frame of its first piece. It does not say when a word
    ends: that is taken as the time its letters are likely to need, cut where the next word starts
    or the stream has got to.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        padding_id: int = LMConfig.existing_text_padding_id,
        frame_sec: float = MimiConfig().frame_sec,
    ) -> None:
        self._tokenizer = tokenizer
        self._silent_ids = (padding_id, END_OF_PADDING_ID)
        self._frame_sec = frame_sec
        self._words = _Words([], 0, [])
        self._word_from_frame: int | None = None  # a blank came here: what follows is a new word
        self._num_frames = 0

    def push(self, token: int, frame_index: int) -> bool:
        """Take the text token of a frame; frames come in order. True if the text changed."""
        self._num_frames = frame_index + 1
        piece = None if token in self._silent_ids else self._tokenizer.piece(token)
        if piece is None:
            return False
        parts = piece.replace(b"\n", SPACE.encode()).split(SPACE.encode())
        for number, part in enumerate(parts):
            if number > 0:
                self._word_from_frame = frame_index
            if part:
                self._append(part, frame_index)
        return any(parts)

    def _append(self, part: bytes, frame_index: int) -> None:
        if self._word_from_frame is not None or not self._words.open:
            start_frame = frame_index if self._word_from_frame is None else self._word_from_frame
            self._begin(_OpenWord(start_frame, frame_index))
            self._word_from_frame = None
        self._words.open[-1].content.extend(part)
        self._words.open[-1].last_frame = frame_index

    def _begin(self, word: _OpenWord) -> None:
        """A word after those before it, of which the last alone can still change, by a contraction's other half."""
        settled, spoken = self._words.settled, self._spoken(self._words.open)
        settled += [self._timed(one, after.start_frame) for one, after in zip(spoken, spoken[1:], strict=False)]
        self._words = _Words(settled, len(settled), [*spoken[-1:], word])

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)

    @property
    def words(self) -> list[Word]:
        settled, num_settled, opened = self._words
        spoken = self._spoken(opened)
        next_starts = [word.start_frame for word in spoken[1:]] + [self._num_frames]
        return settled[:num_settled] + [self._timed(word, at) for word, at in zip(spoken, next_starts, strict=False)]

    @staticmethod
    def _spoken(opened: Sequence[_OpenWord]) -> list[_OpenWord]:
        """The words that say something, contractions whole."""
        spoken: list[_OpenWord] = []
        for word in opened:
            if not word.text:
                continue
            whole = spoken[-1].contracted_with(word) if spoken else None
            if whole is not None:
                spoken[-1] = whole
            else:
                spoken.append(word)
        return spoken

    def _timed(self, word: _OpenWord, limit_frame: int) -> Word:
        start_sec = word.start_frame * self._frame_sec
        end_sec = start_sec + max(MIN_WORD_SEC, MAX_SEC_PER_LETTER * len(word.text))
        end_sec = max(end_sec, (word.last_frame + 1) * self._frame_sec)
        end_sec = min(end_sec, limit_frame * self._frame_sec)
        return Word(word.text, round(start_sec, 3), round(end_sec, 3))

    def to_dict(self) -> dict[str, Any]:
        """The layout that Full-Duplex-Bench reads."""
        return in_chunks(self.words)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=1) + "\n"

    def to_webvtt(self) -> str:
        """Subtitles: a cue ends with a sentence, before a pause, or when it is full."""
        cues = [cue_text(cue) for cue in group_into_cues(self.words)]
        return "\n".join(["WEBVTT\n", *cues])


def in_chunks(words: Sequence[Word]) -> dict[str, Any]:
    """Words in the layout that Full-Duplex-Bench reads."""
    chunks = [{"text": word.text, "timestamp": [word.start_sec, word.end_sec]} for word in words]
    return {"text": " ".join(word.text for word in words), "chunks": chunks}


def cue_text(words: Sequence[Word], voice: str = "") -> str:
    """One WebVTT cue; ``voice`` names who speaks."""
    text = _vtt_escape(" ".join(word.text for word in words))
    said = f"<v {voice}>{text}" if voice else text
    return f"{_vtt_clock(words[0].start_sec)} --> {_vtt_clock(words[-1].end_sec)}\n{said}\n"


def group_into_cues(words: Iterable[Word], max_words: int = 10, pause_sec: float = 1.0) -> list[list[Word]]:
    """Words in the pieces in which one reads them: up to a sentence, a pause, or as many as fit."""
    cues: list[list[Word]] = []
    for word in words:
        previous = cues[-1][-1] if cues else None
        if (
            previous is None
            or len(cues[-1]) == max_words
            or previous.text[-1] in ".!?"
            or word.start_sec - previous.end_sec >= pause_sec
        ):
            cues.append([])
        cues[-1].append(word)
    return cues


def _vtt_clock(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{milliseconds // 1000:02d}.{milliseconds % 1000:03d}"


def _vtt_escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
