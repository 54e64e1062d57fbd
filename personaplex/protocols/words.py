"""The text stream as pieces that may be sent: whole characters, blanks for SentencePiece's marks."""

from __future__ import annotations

import codecs

from personaplex.config import END_OF_PADDING_ID
from personaplex.text.tokenizer import SPACE, TextTokenizer


class TextPieces:
    """Text tokens, one a frame → text. A character of several tokens comes with its last one."""

    def __init__(self, tokenizer: TextTokenizer, padding_id: int) -> None:
        self._tokenizer = tokenizer
        self._silent_ids = (padding_id, END_OF_PADDING_ID)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that a token completes, mostly a piece of a word; "" for none."""
        piece = None if token in self._silent_ids else self._tokenizer.piece(token)
        text = self._decoder.decode(piece or b"").replace(SPACE, " ").replace("\n", " ")
        # A terminal would take control characters for commands, and a model may say any byte.
        return "".join(character for character in text if character.isprintable())

    def is_speech(self, token: int) -> bool:
        """Whether a token belongs to speech rather than to silence."""
        return token not in self._silent_ids
