"""The text vocabulary of the domain: a SentencePiece model in which every domain word is one piece."""

from __future__ import annotations

import io
import string
from pathlib import Path

import sentencepiece

from training import domain

TOKENIZER = "tokenizer_spm_32k_3.model"  # its file, as published
VOCAB_SIZE = 600
SPACE = "\u2581"  # how SentencePiece writes the blank before a word


def train_tokenizer(path: Path, vocab_size: int = VOCAB_SIZE) -> None:
    """Writes the SentencePiece model; unk, bos, eos and pad have ids 0, 1, 2 and 3.

    Words the agent says and prompt words are symbols of their own; anything else is spelled.
    """
    said = [text for _, text in domain.agent_templates()] + [*domain.PROMPTS, *domain.PROMPT_EXTRAS]
    words = {token for text in said for token in domain.text_tokens(text) if token[0].isalpha()}
    words = sorted((words - {"name", "place"}) | {"name", "place"} | domain.content_words())
    spelled = [" ".join(string.ascii_letters + string.digits + string.punctuation)] * 20
    lines = domain.tokenizer_corpus() + spelled + [string.ascii_lowercase, string.ascii_uppercase] * 20
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        model_type="unigram",
        character_coverage=1.0,
        normalization_rule_name="identity",
        split_by_unicode_script=False,
        user_defined_symbols=[domain.SYSTEM_TAG, *(SPACE + word for word in words)],
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())


class TextIds:
    """Token ids of words and prompts."""

    def __init__(self, path: Path) -> None:
        self.processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self._cache: dict[str, tuple[int, ...]] = {}

    def __len__(self) -> int:
        return self.processor.get_piece_size()

    def word(self, text: str) -> tuple[int, ...]:
        """Ids of one word as it stands inside a sentence, punctuation included."""
        if text not in self._cache:
            self._cache[text] = tuple(self.processor.encode(text))
        return self._cache[text]

    def text(self, text: str) -> list[int]:
        return self.processor.encode(text)

    def decode(self, ids: list[int]) -> str:
        return self.processor.decode(ids)
