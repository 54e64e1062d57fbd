"""A model's text tokenizer."""

from __future__ import annotations

from pathlib import Path

import sentencepiece

from personaplex.errors import WeightsError

SPACE = "\u2581"
"""SentencePiece's mark of the space before a word."""


class TextTokenizer:
    """A model's SentencePiece vocabulary."""

    def __init__(self, path: str | Path, text_card: int | None = None) -> None:
        """Read a ``.model`` file; raises WeightsError if it is damaged or has more than ``text_card`` pieces.

        ``text_card``: how many text tokens the language model has.
        """
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            # Its bytes, not its path: the C++ library opens no path beyond ASCII where the locale is C.
            self._processor.LoadFromSerializedProto(Path(path).read_bytes())
        except (OSError, RuntimeError) as error:
            raise WeightsError(f"{path} is no SentencePiece model: fetch the model again ({error})") from error
        if text_card is not None and len(self) > text_card:
            raise WeightsError(
                f"{path} has {len(self)} pieces, but the model's lm.text_card is {text_card}: it belongs to another "
                "model; fetch the model again"
            )

    @classmethod
    def from_bytes(cls, model: bytes) -> TextTokenizer:
        """A tokenizer from what ``bytes`` made of another."""
        made = cls.__new__(cls)
        made._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        return made

    def __bytes__(self) -> bytes:
        return self._processor.serialized_model_proto()

    def __len__(self) -> int:
        return self._processor.get_piece_size()

    @property
    def unknown_id(self) -> int:
        return self._processor.unk_id()

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def unknown_characters(self, text: str) -> str:
        """The characters of ``text`` that the vocabulary lacks, in order; a token of unknown text may hold several."""
        pieces = zip(self._processor.encode(text), self._processor.encode(text, out_type=str), strict=True)
        lacking = "".join(piece for token, piece in pieces if token == self.unknown_id)
        return lacking.replace(SPACE, "")

    def decode(self, tokens: list[int]) -> str:
        return self._processor.decode(tokens)

    def piece(self, token: int) -> bytes | None:
        """The bytes that a token adds to the text, UTF-8 with ``▁`` for a blank; None for control tokens.

        Bytes, because a piece may be one byte of a character.
        """
        processor = self._processor
        if not 0 <= token < len(self) or processor.is_unknown(token):
            return None
        if processor.is_control(token) or processor.is_unused(token):
            return None
        piece = processor.id_to_piece(token)
        return bytes([int(piece[3:-1], 16)]) if processor.is_byte(token) else piece.encode()
