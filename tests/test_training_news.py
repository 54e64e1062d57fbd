"""The recipe's dialogues in which the agent is told another price or hour while it talks."""

import random

import numpy as np
import pytest
from lm_recipe import clip_bank, text_ids, tiny_config, user_clip

from personaplex.config import AGENT, TEXT, USER
from training import dialogues, domain, turn_taking
from training.draft import PAD_ID
from training.lm.clips import UserSession
from training.lm.data import NOTHING, BatchMaker, BatchOptions
from training.turns import TURNS

FRAMES = 500


@pytest.fixture(scope="module")
def ids(tmp_path_factory):
    return text_ids(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def bank(ids):
    return clip_bank(ids)


@pytest.fixture
def always(monkeypatch):
    """Each conversation brings news at once, the user asks for it next and lets the agent finish."""
    for name, value in (
        ("NEWS_SHARE", 1.0),
        ("NEWS_NOW_SHARE", 1.0),
        ("ASKED_NEXT_SHARE", 1.0),
        ("INTERRUPTED_SHARE", 0.0),
    ):
        monkeypatch.setattr(turn_taking, name, value)


def spans(told):
    """(first, end) of each stretch of told frames."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], told.astype(int), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def words(ids, text):
    return ids.decode([int(i) for i in text if i not in (PAD_ID, 0)])


def test_another_price_or_hour_and_the_rest_as_before():
    rng = random.Random(0)
    kinds = set()
    for _ in range(300):
        role = domain.random_role(rng)
        new, told = domain.changed(rng, role)
        kind = "hour" if new.hour != role.hour else "price"
        kinds.add(kind)
        assert new.value(kind) in told and new.value(kind) != role.value(kind)
        assert new.price not in domain.HELD_OUT_PRICES and (new.name, new.place) == (role.name, role.place)
        if kind == "price":
            assert new.hour == role.hour and new.good in domain.trade_of(role.place)[1]
            assert role.good in ("", new.good) and told.startswith(new.good.capitalize())
        else:
            assert (new.good, new.price) == (role.good, role.price)
    assert kinds == {"price", "hour"}


def test_one_of_several_questions_of_a_kind_is_taken_out(bank):
    """Recordings have no equality: their codes are arrays of any length."""
    first, second = user_clip("hours", 1), user_clip("hours", 2)
    second.codes = second.codes[:, 1:]
    left = [first, second]
    left.remove(second)
    assert left == [first] != [second]
    sessions = [UserSession([clip], None, np.zeros((8, 3), int)) for clip in (first, second)]
    clips = next(iter(bank.agent.values()))
    assert sessions.index(sessions[1]) == 1 and clips.index(clips[-1]) == len(clips) - 1


def test_what_is_told_is_as_in_a_prompt_and_nobody_says_it(bank, ids, always):
    maker, found = dialogues.DialogueMaker(bank, ids, seed=1), 0
    for _ in range(20):
        made = maker.make(FRAMES)
        assert not made.told[: made.prompt_frames].any()
        for first, end in spans(made.told):
            found += 1
            text = ids.decode(made.text[first:end].tolist())
            assert text.startswith(f"{domain.SYSTEM_TAG} ") and text.endswith(f" {domain.SYSTEM_TAG}")
        assert (made.agent[:, made.told] == bank.silence[:, None]).all()
        assert (made.user[:, made.told] == bank.sine[:, None]).all()
        assert (made.user_words[made.told] == -1).all()
        for said in (made.speaking, made.stopped, made.held, made.content, made.text_content, made.text_first):
            assert not said[made.told].any()
    assert found > 15


def values(text, answer, slot):
    """What fills ``slot`` wherever the answer is said in this text."""
    before, after = answer.split(f"{{{slot}}}")
    return {found for found in domain.SLOT_VALUES[slot] if f"{before}{found}{after}" in text}


@pytest.mark.parametrize(("kind", "slot"), [("price", "price"), ("hours", "hour")])
def test_a_later_question_gets_the_new_one_and_never_the_old(bank, ids, always, kind, slot):
    maker, (answer,), answered, other = dialogues.DialogueMaker(bank, ids, seed=2), TURNS[kind].answers, 0, 0
    for _ in range(40):
        made = maker.make(FRAMES)
        known = words(ids, made.text[: made.prompt_frames])
        for (first, end), (until, _) in zip(spans(made.told), [*spans(made.told)[1:], (FRAMES, FRAMES)], strict=True):
            news, said = words(ids, made.text[first:end]), values(words(ids, made.text[end:until]), answer, slot)
            marks = {"price": (" dollars",), "hour": (" in the evening", ".")}[slot]
            told = {found for found in domain.SLOT_VALUES[slot] for mark in marks if f" {found}{mark}" in news}
            if (" dollars" in news) is (slot == "price"):
                assert said <= {max(told, key=len)}, "one value, the new one"
                answered += bool(said)
                other += bool(said) and max(told, key=len) not in known
    assert answered > 8 and other > 8


def test_nothing_of_it_is_learned_and_nothing_hidden(bank, ids, always):
    maker = dialogues.DialogueMaker(bank, ids, seed=3)
    kept = []
    make = maker.make

    def remember(frames):
        kept.append(make(frames))
        return kept[-1]

    maker.make = remember
    options = BatchOptions(
        dialogues=6, frames=FRAMES, long_share=0, vigil_share=0, hidden_share_max=1.0, depth_frames_max=10**6,
        quiet_frames=10**5, skip_share=0,
    )  # fmt: skip
    config = tiny_config(ids)
    batch = BatchMaker(maker, config, options).make()
    told = np.stack([dialogue.told for dialogue in kept])
    assert told.sum() > 50
    learned = batch.text_weight.numpy() > 0
    assert not learned[told[:, 1:]].any() and learned[~told[:, 1:]].any()
    inputs = batch.inputs.numpy()
    assert (inputs[told[:, :-1]][:, AGENT] != NOTHING).all() and (inputs[..., AGENT] == NOTHING).any()
    depth = np.zeros(told[:, 1:].size, bool)
    depth[batch.depth_frames.numpy()] = True
    forced = told[:, 1:] | told[:, :-1]  # codes 1 to 7 of a frame are a column late
    assert not depth[forced.reshape(-1)].any() and depth.any()
    assert (inputs[told[:, :-1]][:, TEXT] != PAD_ID).any() and inputs[..., USER].shape[-1] == 8


def test_most_conversations_bring_no_news(bank, ids):
    maker = dialogues.DialogueMaker(bank, ids, seed=4)
    share = np.mean([maker.make(FRAMES).told.any() for _ in range(150)])
    assert 0.03 < share < 0.3
