"""Text in and out of the model: the tokenizer, the role prompt, the transcript."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sentencepiece

from personaplex.config import END_OF_PADDING_ID, LMConfig, MimiConfig, PromptConfig
from personaplex.errors import PromptError, WeightsError

SYSTEM_TAG = "<system>"
SPACE = "\u2581"
"""How SentencePiece writes the blank that begins a word."""

MAX_PROMPT_CHARACTERS = 100_000
MAX_SEC_PER_LETTER = 0.12
MIN_WORD_SEC = 0.24


# ---------------------------------------------------------------------------------- tokenizer


class TextTokenizer:
    """A model's SentencePiece vocabulary."""

    def __init__(self, path: str | Path) -> None:
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise WeightsError(f"{path} is no SentencePiece model: fetch the model again ({error})") from error

    def __len__(self) -> int:
        return self._processor.get_piece_size()

    @property
    def unknown_id(self) -> int:
        return self._processor.unk_id()

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def decode(self, tokens: list[int]) -> str:
        return self._processor.decode(tokens)

    def piece(self, token: int) -> bytes | None:
        """What a token adds to the text, UTF-8 with ``▁`` for a blank; None for tokens that are no text.

        Bytes, because a piece may be one byte of a character.
        """
        processor = self._processor
        if not 0 <= token < len(self) or processor.is_unknown(token):
            return None
        if processor.is_control(token) or processor.is_unused(token):
            return None
        piece = processor.id_to_piece(token)
        return bytes([int(piece[3:-1], 16)]) if processor.is_byte(token) else piece.encode()


# ---------------------------------------------------------------------------------- prompt


@dataclass(frozen=True)
class TextPrompt:
    """A role, ready to be forced into the text stream one token a frame."""

    tokens: tuple[int, ...] = ()  # empty: no text segment
    text: str = ""  # with its tags, as encoded
    truncated: bool = False
    unreadable: int = 0  # tokens that stand for characters the vocabulary lacks


def wrap_system_tags(text: str) -> str:
    """``<system> … <system>``, one space inside each tag.

    What has both tags already is taken as it is, as the model's authors do: to the vocabulary a tag is text, and a
    space beside it counts. A single tag is not added again. Text of nothing but blanks and tags gives "".
    """
    given = text.strip()
    inner = given.removeprefix(SYSTEM_TAG).removesuffix(SYSTEM_TAG).strip()
    if not inner:
        return ""
    has_both = given.startswith(SYSTEM_TAG) and given.endswith(SYSTEM_TAG)
    return given if has_both else f"{SYSTEM_TAG} {inner} {SYSTEM_TAG}"


def clean_prompt(text: str) -> str:
    """The prompt without characters that cannot be seen; raises PromptError for control characters.

    Line ends and tabs are allowed. Zero-width and direction marks, which copying leaves behind, are
    dropped. Other control characters and bytes that are no text come from a wrong file or a broken
    terminal, so they are refused and not guessed at.
    """
    kept = []
    for place, character in enumerate(text.replace("\r\n", "\n"), start=1):
        category = unicodedata.category(character)
        if category == "Cs" or (category == "Cc" and character not in "\n\r\t"):
            raise PromptError(
                f"the prompt's character {place} is U+{ord(character):04X}, a control character or broken text; "
                "remove it and try again"
            )
        if category != "Cf":
            kept.append(character)
    return "".join(kept)


def count_prompt_tokens(text: str, tokenizer: TextTokenizer) -> int:
    """Tokens of a role as typed, its tags included: what the limit counts."""
    wrapped = wrap_system_tags(clean_prompt(text))
    return len(tokenizer.encode(wrapped)) if wrapped else 0


def prepare_prompt(
    text: str,
    tokenizer: TextTokenizer,
    max_tokens: int = PromptConfig.max_text_tokens,
    truncate: bool = False,
) -> TextPrompt:
    """Clean, tag and encode a role. ``max_tokens`` counts the tags too.

    A longer one is cut at a word's end when ``truncate`` is set, and raises PromptError otherwise.
    """
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise PromptError(f"the prompt has {len(text)} characters; at most {max_tokens} tokens are allowed: shorten it")
    wrapped = wrap_system_tags(clean_prompt(text))
    if not wrapped:
        return TextPrompt()
    tokens = tokenizer.encode(wrapped)
    truncated = len(tokens) > max_tokens
    if truncated and not truncate:
        raise PromptError(
            f"the prompt has {len(tokens)} tokens; this model takes at most {max_tokens}: "
            "shorten it, or ask for it to be truncated"
        )
    if truncated:
        wrapped = _cut_to(wrapped, tokenizer, max_tokens)
        tokens = tokenizer.encode(wrapped)
    return TextPrompt(tuple(tokens), wrapped, truncated, tokens.count(tokenizer.unknown_id))


def _cut_to(wrapped: str, tokenizer: TextTokenizer, max_tokens: int) -> str:
    """The longest beginning, in whole words where one fits, that keeps both tags within the limit."""

    def fits(beginning: str) -> bool:
        return len(tokenizer.encode(wrap_system_tags(beginning))) <= max_tokens

    words = wrapped[len(SYSTEM_TAG) : -len(SYSTEM_TAG)].split()
    count = _largest(len(words), lambda count: fits(" ".join(words[:count])))
    if count:
        return wrap_system_tags(" ".join(words[:count]))
    count = _largest(len(words[0]), lambda count: fits(words[0][:count]))
    if count:
        return wrap_system_tags(words[0][:count])
    raise PromptError(f"a prompt of at most {max_tokens} tokens has no room for text between its tags")


def _largest(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest of 1 … limit that fits, 0 if none; nearly monotonic, as tokens of a longer text are."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    while low and not fits(low):
        low -= 1
    return low


# ---------------------------------------------------------------------------------- transcript


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


@dataclass(frozen=True)
class Word:
    """A word as spoken, with its time in the recording."""

    text: str
    start_sec: float
    end_sec: float


class Transcript:
    """Words and times from the text stream, one token a frame; may be read at any time.

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
        self._words: list[_OpenWord] = []
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
        if self._word_from_frame is not None or not self._words:
            start_frame = frame_index if self._word_from_frame is None else self._word_from_frame
            self._words.append(_OpenWord(start_frame, frame_index))
            self._word_from_frame = None
        self._words[-1].content.extend(part)
        self._words[-1].last_frame = frame_index

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self._words if word.text)

    @property
    def words(self) -> list[Word]:
        spoken = [word for word in self._words if word.text]
        next_starts = [word.start_frame for word in spoken[1:]] + [self._num_frames]
        return [self._timed(word, next_start) for word, next_start in zip(spoken, next_starts, strict=False)]

    def _timed(self, word: _OpenWord, limit_frame: int) -> Word:
        start_sec = word.start_frame * self._frame_sec
        end_sec = start_sec + max(MIN_WORD_SEC, MAX_SEC_PER_LETTER * len(word.text))
        end_sec = max(end_sec, (word.last_frame + 1) * self._frame_sec)
        end_sec = min(end_sec, limit_frame * self._frame_sec)
        return Word(word.text, round(start_sec, 3), round(end_sec, 3))

    def to_dict(self) -> dict[str, Any]:
        """The layout that Full-Duplex-Bench reads."""
        chunks = [{"text": word.text, "timestamp": [word.start_sec, word.end_sec]} for word in self.words]
        return {"text": self.text, "chunks": chunks}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=1) + "\n"

    def to_webvtt(self) -> str:
        """Subtitles: a cue ends with a sentence, before a pause, or when it is full."""
        cues = [
            f"{_vtt_clock(cue[0].start_sec)} --> {_vtt_clock(cue[-1].end_sec)}\n"
            f"{_vtt_escape(' '.join(word.text for word in cue))}\n"
            for cue in group_into_cues(self.words)
        ]
        return "\n".join(["WEBVTT\n", *cues])


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
