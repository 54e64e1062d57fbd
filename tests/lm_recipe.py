"""Made-up material in the shape of the language model's recipe: recordings as codes, a tiny model."""

from pathlib import Path

import numpy as np

from personaplex.config import LMConfig
from training import domain, orders, sentences
from training.lm import clips
from training.lm.clips import AgentClip, ClipBank, UserClip, UserSession
from training.lm.tokenizer import TOKENIZER, TextIds, train_tokenizer

CARD = 32


def text_ids(folder: Path) -> TextIds:
    """The recipe's tokenizer, trained into this folder."""
    train_tokenizer(folder / TOKENIZER)
    return TextIds(folder / TOKENIZER)


def clip_bank(ids: TextIds) -> ClipBank:
    """Made-up codes in the shape of recordings: every sentence with every value, per voice."""
    rng = np.random.default_rng(0)
    values = domain.SLOT_VALUES | {"price": domain.TRAINED_PRICES}
    agent: dict = {}
    for voice in ("slt", "rms"):
        for kind, template in sentences.agent_templates():
            for index in range(max(map(len, values.values()))):
                filled = {slot: words[index % len(words)] for slot, words in values.items() if slot in template}
                agent.setdefault((voice, kind), []).append(agent_clip(rng, ids, template, filled))
        for order in (*orders.covering(), *orders.covering()):
            agent.setdefault((voice, orders.ORDER), []).append(order_clip(rng, ids, order))
    users = [user_session(rng, index) for index in range(40)]
    voices = {voice: [rng.integers(CARD, size=(8, 20))] for voice in ("slt", "rms")}
    return ClipBank(agent, users, voices, np.full(8, 1), np.full(8, 2))


def agent_clip(rng, ids, template, values) -> AgentClip:
    values = {slot: value for slot, value in values.items() if f"{{{slot}}}" in template}
    words = template.format(**values).split()
    bare = [word.strip(".,?!") for word in words]
    slots = {slot: bare.index(value.split()[0]) for slot, value in values.items()}
    placed = [(1 + 3 * i, ids.word(word)) for i, word in enumerate(words)]
    codes = rng.integers(CARD, size=(8, 3 * len(words) + 5))
    return AgentClip(codes, placed, slots, values)


def order_clip(rng, ids, order) -> AgentClip:
    words = orders.repeated(order).split()
    slots = clips._first_words([word.strip(".,?!") for word in words], order)
    codes = rng.integers(CARD, size=(8, 3 * len(words) + 5))
    return AgentClip(codes, [(1 + 3 * i, ids.word(word)) for i, word in enumerate(words)], slots, dict(order))


def user_clip(kind: str, codes: int | np.ndarray, good: str = "") -> UserClip:
    """Nine frames of sound, three of its tail, five of silence. `codes`: [8, 12], or one for all."""
    words = np.append(np.arange(9), [-1, -1, -1])
    return UserClip(kind, np.full((8, 12), codes), 3, words, np.full((8, 5), 3), good)


def user_session(rng, index) -> UserSession:
    kinds = rng.permutation([*sentences.TURNS, sentences.HELLO, *[sentences.STORY] * (3 * (index % 3 == 0))])
    said = [user_clip(str(kind), rng.integers(CARD, size=(8, 12))) for kind in kinds]
    return UserSession(said, rng.integers(CARD, size=(8, 9)) if index % 2 else None, rng.integers(CARD, size=(8, 15)))


def tiny_config(ids: TextIds) -> LMConfig:
    return LMConfig(
        dim=32, num_heads=2, num_layers=2, hidden_scale=4.0, context=400, text_card=len(ids), card=CARD, dep_q=8,
        depformer_dim=16, depformer_num_heads=2, depformer_num_layers=2, depformer_dim_feedforward=48,
    )  # fmt: skip
