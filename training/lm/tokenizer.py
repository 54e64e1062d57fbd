"""The text vocabulary of the domain: a SentencePiece model in which every domain word is one piece."""

from __future__ import annotations

import io
import string
from pathlib import Path

import sentencepiece

from training import domain, orders, sentences

TOKENIZER = "tokenizer_spm_32k_3.model"  # its file, as published
VOCAB_SIZE = 600  # more would not leave 40 MB enough for the rest
SPACE = "\u2581"  # how SentencePiece writes the blank before a word


def _prompt_texts() -> list[str]:
    facts = (domain.FACTS_LABEL, *domain.PRICE_FACTS, *domain.HOUR_FACTS)
    return [*domain.PROMPTS, *domain.PROMPT_EXTRAS, *facts, *domain.TRADES, *domain.GOODS]


def _orders() -> list[str]:
    return [orders.repeated(order) for order in orders.covering()]


def symbols() -> list[str]:
    """Words that are one piece each: what the agent says, what prompts say, what a role fills in."""
    said = [text for _, text in sentences.agent_templates()] + _prompt_texts() + _orders()
    words = {token for text in said for token in sentences.text_tokens(text) if token[0].isalpha()}
    goods = {good.split()[0].capitalize() for good in domain.GOODS}  # they begin a sentence in prompts
    slots = {"trade", "good", "Good", "hour", "phrase"}
    return sorted((words - slots) | goods | domain.content_words())


def _corpus() -> list[str]:
    """Every sentence of the domain once, but for stories, with the agent's slots filled."""
    lines = [text for kind, text in sentences.user_sentences() if kind != sentences.STORY]
    templates = [text for _, text in sentences.agent_templates()] + _prompt_texts()
    for index, name in enumerate(domain.NAMES):
        place = domain.PLACES[index % len(domain.PLACES)]
        trade, goods = domain.trade_of(place)
        slots = dict(name=name, place=place, trade=trade, Good=goods[0].capitalize())
        slots |= dict(price=domain.PRICES[index], hour=domain.HOURS[index % len(domain.HOURS)])
        slots |= dict(phrase=domain.PHRASES[index % len(domain.PHRASES)])
        lines += [text.format(**slots) for text in templates]
    places = domain.SLOT_VALUES["place"]
    return list(dict.fromkeys(lines + _orders() + [domain.tagged(place) for place in places]))


def train_tokenizer(path: Path, vocab_size: int = VOCAB_SIZE) -> None:
    """Writes the SentencePiece model; unk, bos, eos and pad have ids 0, 1, 2 and 3.

    `symbols` are pieces; anything else is spelled.
    """
    spelled = [" ".join(string.ascii_letters + string.digits + string.punctuation)] * 20
    lines = _corpus() + spelled + [string.ascii_lowercase, string.ascii_uppercase] * 20
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
        user_defined_symbols=[domain.SYSTEM_TAG, *(SPACE + word for word in symbols())],
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
