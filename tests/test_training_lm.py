"""The language model's recipe, in small: dialogues, batches, a falling loss, the published layout."""

import dataclasses
import json
import logging
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import soundfile
import torch
from safetensors.torch import save_file
from scipy import signal

from personaplex.config import AGENT, END_OF_PADDING_ID, USER, LMConfig
from personaplex.engine.engine import Engine
from personaplex.messages import SamplingOptions
from personaplex.models.language_model import LanguageModel as PublishedModel
from personaplex.weights.load import load_model
from training import dialogues, domain, listen, sentences, speech, tts
from training.domain import Role
from training.lm import clips, export
from training.lm.clips import AgentClip, ClipBank, UserClip, UserSession, splice
from training.lm.data import NOTHING, BatchMaker, BatchOptions, columns_of
from training.lm.lessons import Curriculum, Lessons
from training.lm.model import LanguageModel, Listener
from training.lm.play import UNKNOWN, live_frames, play_greedy
from training.lm.tokenizer import TOKENIZER, TextIds, train_tokenizer
from training.lm.train import Trainer, TrainOptions, nano_config
from training.lm.warm_start import listen_from, start_from
from training.tts_engines import FestivalEngine

CARD = 32


@pytest.fixture(scope="module")
def ids(tmp_path_factory) -> TextIds:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer(path)
    return TextIds(path)


@pytest.fixture(scope="module")
def bank(ids) -> ClipBank:
    """Made-up codes in the shape of recordings: every sentence with every value, per voice."""
    rng = np.random.default_rng(0)
    values = domain.SLOT_VALUES | {"price": domain.TRAINED_PRICES}
    agent: dict = {}
    for voice in ("slt", "rms"):
        for kind, template in sentences.agent_templates():
            for index in range(max(map(len, values.values()))):
                filled = {slot: words[index % len(words)] for slot, words in values.items() if slot in template}
                agent.setdefault((voice, kind), []).append(_agent_clip(rng, ids, template, filled))
    users = [_user_session(rng, index) for index in range(40)]
    voices = {voice: [rng.integers(CARD, size=(8, 20))] for voice in ("slt", "rms")}
    return ClipBank(agent, users, voices, np.full(8, 1), np.full(8, 2))


def _agent_clip(rng, ids, template, values) -> AgentClip:
    values = {slot: value for slot, value in values.items() if f"{{{slot}}}" in template}
    words = template.format(**values).split()
    bare = [word.strip(".,?!") for word in words]
    slots = {slot: bare.index(value.split()[0]) for slot, value in values.items()}
    placed = [(1 + 3 * i, ids.word(word)) for i, word in enumerate(words)]
    codes = rng.integers(CARD, size=(8, 3 * len(words) + 5))
    return AgentClip(codes, placed, slots, values)


def _user_clip(kind: str, codes: int | np.ndarray, good: str = "") -> UserClip:
    """Nine frames of sound, three of its tail, five of silence. `codes`: [8, 12], or one for all."""
    words = np.append(np.arange(9), [-1, -1, -1])
    return UserClip(kind, np.full((8, 12), codes), 3, words, np.full((8, 5), 3), good)


def _user_session(rng, index) -> UserSession:
    kinds = rng.permutation([*sentences.TURNS, sentences.HELLO, *[sentences.STORY] * (3 * (index % 3 == 0))])
    said = [_user_clip(str(kind), rng.integers(CARD, size=(8, 12))) for kind in kinds]
    return UserSession(said, rng.integers(CARD, size=(8, 9)) if index % 2 else None, rng.integers(CARD, size=(8, 15)))


def _tiny_config(ids: TextIds) -> LMConfig:
    return LMConfig(
        dim=32, num_heads=2, num_layers=2, hidden_scale=4.0, context=400, text_card=len(ids), card=CARD, dep_q=8,
        depformer_dim=16, depformer_num_heads=2, depformer_num_layers=2, depformer_dim_feedforward=48,
    )  # fmt: skip


def test_every_agent_word_is_one_token(ids):
    role = vars(Role("Anna", "First Neuron Bank", "a gold card", "twenty seven", "nine"))
    for _, template in sentences.agent_templates():
        for token in sentences.text_tokens(template.format(**role)):
            assert len([i for i in ids.word(token) if ids.processor.id_to_piece(i) != "\u2581"]) == 1
    assert all(len(ids.word(word)) == 1 for word in domain.content_words())


def test_text_comes_back_from_its_tokens(ids):
    for text in (domain.tagged(domain.role_prompt(Role("Anna", "Mars Station"))), "I am Zephyr, 12!"):
        assert ids.decode(ids.text(text)) == text


def test_held_out_personas_never_enter_a_dialogue(bank, ids):
    held_out = domain.held_out_personas()
    assert len(held_out) >= 100
    maker = dialogues.DialogueMaker(bank, ids)
    for _ in range(60):
        made = maker.make(257)
        prompt = ids.decode([int(i) for i in made.text[: made.prompt_frames] if i != dialogues.PAD_ID])
        assert not any(name in prompt and place in prompt for name, place in held_out)


def test_the_agent_says_what_the_text_says_and_nothing_while_silent(bank, ids):
    maker = dialogues.DialogueMaker(bank, ids, seed=3)
    for _ in range(20):
        made = maker.make(257)
        quiet = ~made.speaking
        quiet[: made.prompt_frames] = False
        assert (made.agent[:, quiet] == bank.silence[:, None]).all()
        assert (made.text[quiet] == dialogues.PAD_ID).all()


def test_splice_takes_the_words_and_codes_from_the_slot_on(bank):
    clips = bank.agent["slt", "greet"]
    first, second = clips[0], clips[1]
    cut = first.words[first.slots["name"]][0]
    joined = splice(first, second, "name")
    assert joined.values == second.values and joined.slots["name"] == first.slots["name"]
    assert (joined.codes[:, :cut] == first.codes[:, :cut]).all()
    start = second.words[second.slots["name"]][0]
    assert (joined.codes[:, cut:] == second.codes[:, start:]).all()


def test_splicing_at_a_later_slot_keeps_what_came_before(bank):
    first, second = bank.agent["slt", "greet"][:2]
    joined = splice(first, second, "place")
    assert joined.values == {"name": first.values["name"], "place": second.values["place"]}


@pytest.mark.parametrize(("slot", "kind"), [("price", "price"), ("hour", "hours")])
def test_the_agent_says_the_facts_of_its_prompt_and_no_others(bank, ids, slot, kind):
    role = domain.with_facts(random.Random(0), "Anna", "Mars Station")
    told = domain.role_prompt(role)
    assert role.value(slot) in told and role.value(slot) in domain.role_prompt(role, random.Random(5))
    maker = dialogues.DialogueMaker(bank, ids)
    for _ in range(20):
        assert maker.agent_clip("slt", kind, role).values == {slot: role.value(slot)}
    assert sentences.answer_kind(kind, role) == kind
    assert sentences.answer_kind(kind, Role("Anna", "Mars Station")) == sentences.UNKNOWN


def test_prices_held_out_from_training_are_in_no_role():
    rng = random.Random(0)
    roles = [domain.random_role(rng) for _ in range(500)]
    assert not {role.price for role in roles} & set(domain.HELD_OUT_PRICES)
    assert len({role.price for role in roles}) > 80
    open_facts = sum(not role.price for role in roles)
    assert 100 < open_facts < 300
    words = {word for price in domain.TRAINED_PRICES for word in price.split()}
    assert {word for price in domain.HELD_OUT_PRICES for word in price.split()} <= words


def test_every_place_has_a_trade():
    for place in domain.PLACES:
        trade, goods = domain.trade_of(place)
        assert trade.startswith("a ") and goods
    assert domain.trade_of("Harbor Medical Office")[0] == "a clinic"


def test_a_story_is_nodded_to_and_not_answered(bank, ids, monkeypatch):
    """While a user tells something the agent says nothing but its words aside."""
    monkeypatch.setattr(dialogues, "NOD_SHARE", 1.0)
    monkeypatch.setattr(dialogues, "OPENINGS", dialogues.OPENINGS[:1])
    telling = [_user_clip(sentences.STORY, 0) for _ in range(30)]
    background = np.zeros((8, 15), int)
    users = [UserSession(telling, background, background)]
    maker = dialogues.DialogueMaker(ClipBank(bank.agent, users, bank.voices, bank.silence, bank.sine), ids)
    greeted = 0
    for _ in range(10):
        made = maker.make(257)
        words = ids.decode([int(i) for i in made.text[made.prompt_frames :] if i not in (0, dialogues.PAD_ID)]).split()
        said = {word.strip(".,?") for word in words}
        greeted += "Hello" in said or "Hi" in said
        greeting = {word for text in sentences.GREETINGS for word in sentences.text_tokens(text)}
        nods = {word for text in sentences.NODS for word in sentences.text_tokens(text)}
        assert said <= greeting | nods | domain.content_words()
        assert said & nods
        assert made.held.sum() > 10
    assert greeted > 0


def test_who_mumbles_is_asked_to_say_it_again_but_not_at_once(bank, ids, monkeypatch):
    """They might be thinking, and go on."""
    monkeypatch.setattr(dialogues, "INTERRUPTED_SHARE", 0.0)
    monkeypatch.setattr(dialogues, "OPENINGS", [o for o in dialogues.OPENINGS if o.kind == "question" and o.at_once])
    mumbling = [_user_clip(sentences.MUMBLE, 0) for _ in range(30)]
    users = [UserSession(mumbling, None, np.zeros((8, 15), int))]
    maker = dialogues.DialogueMaker(ClipBank(bank.agent, users, bank.voices, bank.silence, bank.sine), ids)
    for _ in range(10):
        made = maker.make(257)
        asked = ids.decode([int(i) for i in made.text[made.prompt_frames :] if i not in (0, dialogues.PAD_ID)])
        assert asked.startswith(sentences.REPEATS[0])
        told = np.flatnonzero(made.user_words[made.prompt_frames :] >= 0)
        begun = np.flatnonzero(made.speaking[made.prompt_frames :])[0]
        waited = begun - 9 - told[0]  # a clip sounds for 9 frames
        assert waited == dialogues.REPEAT_WAIT_FRAMES


def test_a_mumbled_sentence_is_none(ids):
    known, plain = sentences.user_vocabulary(), 0
    for seed in range(50):
        text = sentences.mumbled(random.Random(seed))
        words = sentences.spoken_words(text)
        unknown = [word for word in words if word not in known]
        plain += len(words) - len(unknown)
        assert unknown and text[0].isupper() and text[-1] in ".?"
    assert plain > 10
    said = clips._user_words([("Frolp", 0.0), ("is", 0.5), ("grook.", 0.9)], 0, 18, 20)
    assert set(said[:6]) == {-1} and set(said[11:]) == {-1} and known["is"] in said


def test_an_interrupted_agent_falls_silent_and_answers_what_was_asked_instead(bank, ids, monkeypatch):
    """With every answer interrupted, the agent is silent soon after the user begins."""
    monkeypatch.setattr(dialogues, "INTERRUPTED_SHARE", 1.0)
    slowest = dialogues.STOP_FRAMES[1]
    asking = [user for user in bank.users if all(clip.kind != sentences.STORY for clip in user.clips)]
    asked = dataclasses.replace(bank, users=asking)  # a nod may go on while a story does
    overlaps = 0
    for seed in range(20):
        made = dialogues.DialogueMaker(asked, ids, seed).make(257)
        both = (made.user_words >= 0) & made.speaking
        starts = np.flatnonzero(both[:-12] & ~np.roll(both, 1)[:-12])
        overlaps += len(starts)
        for start in starts:
            assert not made.speaking[start : start + slowest + 4].all()
            stopped = start + np.flatnonzero(~made.speaking[start:])[0]
            assert made.held[stopped] and made.text[stopped] == dialogues.PAD_ID
            begun = made.text[start + dialogues.STOP_WORD_FRAMES : stopped] == END_OF_PADDING_ID
            assert not begun.any(), "a word begins after the user did"
    assert overlaps > 20


def test_a_hesitating_user_says_the_same_words_later():
    words = (tts.Word("What", 0.1, 0.3), tts.Word("is", 0.3, 0.5), tts.Word("it?", 0.5, 0.9))
    plain = tts.Utterance(np.ones(speech.SAMPLE_RATE_HZ, np.float32), speech.SAMPLE_RATE_HZ, (), words)
    for seed in range(10):
        said = speech.hesitating(random.Random(seed), plain)
        silent = np.flatnonzero(said.pcm == 0)
        pause_sec = len(silent) / speech.SAMPLE_RATE_HZ
        assert [word.text for word in said.words] == ["What", "is", "it?"]
        assert speech.HESITATION_SEC[0] - 0.01 <= pause_sec <= speech.HESITATION_SEC[1]
        moved = [word for word, before in zip(said.words, plain.words, strict=True) if word != before]
        assert 1 <= len(moved) <= 2
        assert moved[0].start_sec == pytest.approx((silent[-1] + 1) / speech.SAMPLE_RATE_HZ, abs=0.001)


def test_who_thinks_in_the_middle_of_a_sentence_says_both_halves(monkeypatch):
    monkeypatch.setattr(speech, "THINKING_SHARE", 1.0)
    rate = speech.SAMPLE_RATE_HZ

    def half(first: str, second: str) -> tts.Utterance:
        """Spoken from 0.1 to 0.6 s, of a second."""
        words = (tts.Word(first, 0.1, 0.3), tts.Word(second, 0.3, 0.6))
        return tts.Utterance(np.ones(rate, np.float32), rate, (), words)

    for seed in range(10):
        said = speech.thinking(random.Random(seed), half("Tell", "me,"), half("who", "it is."))
        silent = np.flatnonzero(said.pcm == 0)
        assert speech.HESITATION_SEC[0] - 0.01 <= len(silent) / rate <= speech.HESITATION_SEC[1]
        assert [word.text for word in said.words] == ["Tell", "me,", "who", "it is."]
        assert said.words[0].start_sec == pytest.approx(speech.TRIM_LEAD_SEC)
        assert said.words[1].end_sec == pytest.approx(silent[0] / rate - speech.TRIM_TAIL_SEC, abs=0.001)
        assert said.words[2].start_sec == pytest.approx((silent[-1] + 1) / rate + speech.TRIM_LEAD_SEC, abs=0.001)
        assert said.words[3].end_sec == pytest.approx(len(said.pcm) / rate - speech.TRIM_TAIL_SEC, abs=0.001)


def test_what_may_precede_a_question_leaves_its_words():
    assert not sentences.led_in_questions("thanks")
    assert ("I wanted to ask you,", "what a ticket costs.") in sentences.led_in_questions("price")
    assert ("I have a question,", "what is your name?") in sentences.led_in_questions("name")
    assert ("I have a question,", "I forgot your name.") in sentences.led_in_questions("name")
    halves = [half for kind in sentences.TURNS for pair in sentences.led_in_questions(kind) for half in pair]
    assert not any("{" in half for half in halves)


@pytest.mark.parametrize("pole", [0.0, 0.95])
def test_noise_is_as_loud_as_asked_beside_the_speech(pole):
    rng = np.random.default_rng(0)
    spoken = np.sin(np.arange(2 * speech.SAMPLE_RATE_HZ) * 0.05) * 0.2
    user = dataclasses.replace(speech.random_user(random.Random(0)), channel="flat", gain_db=-6.0, noise_pole=pole)
    clean = speech.through_microphone(spoken, dataclasses.replace(user, snr_db=None), rng)
    noisy = speech.through_microphone(spoken, dataclasses.replace(user, snr_db=10.0), rng)
    snr_db = 20 * np.log10(np.std(clean) / np.std(noisy - clean))
    assert snr_db == pytest.approx(10.0, abs=0.6)


def test_a_telephone_line_keeps_loud_and_soft():
    pcm = np.linspace(-1, 1, 1001)
    heard = speech.through_mu_law(pcm)
    assert len(np.unique(heard)) <= 255
    assert np.abs(heard - pcm).max() < 0.03 and np.abs(heard - pcm)[np.abs(pcm) < 0.01].max() < 0.001


def test_users_mostly_ask_for_the_price_of_what_the_role_sells(bank, ids):
    frames = np.full((8, 12), 5)
    asking = [_user_clip("price", 0, good) for good in ("a ticket", "a new lamp", "")]
    session = UserSession(asking, frames, frames)
    maker = dialogues.DialogueMaker(dataclasses.replace(bank, users=[session]), ids)
    role = domain.with_facts(random.Random(0), "Anna", "Mars Station")
    role = dataclasses.replace(role, good="a ticket")
    draft = maker._draft(100, session)

    def asked(of: Role) -> list[str]:
        return [c.good for _ in range(400) for c in dialogues._Conversation(maker, draft, "slt", of)._clips()]

    told = asked(role)
    assert told.count("a ticket") == told.count("") == 400
    assert 20 < told.count("a new lamp") < 120
    untold = asked(dataclasses.replace(role, good="", price=""))
    assert untold.count("a ticket") == 400  # sold there, and so a question, though its price is not told
    assert 20 < untold.count("a new lamp") < 120


def test_every_piece_of_a_spelled_word_counts_as_what_fills_a_slot(bank, ids):
    draft = dialogues.DialogueMaker(bank, ids)._draft(40, bank.users[0])
    clip = bank.agent["slt", "name"][0].refilled("name", "Zelda", ids)
    draft.agent_says(clip, 0)
    stressed = ids.decode(draft.text[draft.text_content].tolist())
    assert stressed == "Zelda"


def test_a_silence_is_kept_until_the_agent_speaks_again(bank, ids):
    draft = dialogues.DialogueMaker(bank, ids)._draft(60, bank.users[0])
    clip = max(bank.agent["slt", "greet"], key=lambda clip: clip.codes.shape[1])
    draft.agent_says(clip, 0, until=(4, 6))
    assert draft.held[4 : clip.codes.shape[1]].all()
    draft.agent_says(bank.agent["slt", "name"][0], 10)
    assert draft.held[4:10].all() and not draft.held[10:].any()


def test_who_says_hello_late_has_said_hello(bank, ids):
    maker = dialogues.DialogueMaker(bank, ids)
    opening = next(o for o in dialogues.OPENINGS if o.kind == sentences.HELLO and not o.at_once)
    for _ in range(20):
        session = maker._session(opening)
        assert session.opening is not None and sentences.HELLO in {clip.kind for clip in session.clips}


def test_festival_says_it_again_where_it_died(monkeypatch, tmp_path):
    """One sentence in some thousands ended an hour of speaking. A festival that dies at its first two sentences."""
    program, deaths, rate = tmp_path / "festival", tmp_path / "deaths", 16_000
    program.write_text(
        f"#!/bin/sh\nwhile read line; do case $line in\n*voice.list*) echo voices ked_diphone;;\n"
        f"*utt.synth*) echo x >> {deaths}; [ $(wc -l < {deaths}) -le $LIVES ] && exit 1;\n"
        "echo phone hh 0.1; echo phone pau 0.4; echo; echo word Hi. 0.0 0.0; echo said;;\nesac; done\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(program))
    monkeypatch.setenv("LIVES", "2")
    engine = FestivalEngine()
    soundfile.write(Path(engine._folder.name) / "said.wav", np.ones(rate, np.float32), rate)
    try:
        engine.require("ked")
        prosody = dict(tempo=1.0, pitch_hz=None, pitch_range=1.0)
        said = engine.speak("Hi.", "ked", **prosody)
        assert len(deaths.read_text().split()) == 3
        assert said.words == [("Hi.", 0.0, 0.1)] and len(said.pcm) == rate
        engine._process.kill()  # between two sentences
        engine._process.wait()
        assert engine.speak("Hi.", "ked", **prosody).words == said.words
        monkeypatch.setenv("LIVES", "100")
        engine._process.kill()
        with pytest.raises(tts.TtsError, match="festival stopped at 'Hi.'"):
            engine.speak("Hi.", "ked", **prosody)
    finally:
        engine._process.kill()


def test_one_short_word_has_a_loudness_too():
    """A hasty "Bye." of a third of a second ended a whole evaluation."""
    word = 0.2 * np.sin(np.arange(speech.SAMPLE_RATE_HZ // 3) * 0.05).astype(np.float32)
    levelled = speech.at_loudness(word)
    assert len(levelled) == len(word)
    assert speech.at_loudness(0.5 * word) == pytest.approx(levelled, rel=1e-3, abs=1e-6)


def test_voices_are_told_apart_by_their_spectrum():
    """Two made-up timbres, whatever their loudness."""
    rng = np.random.default_rng(0)

    def noise(smoothness: float) -> np.ndarray:
        return signal.lfilter([0.1], [1, -smoothness], rng.standard_normal(24_000))

    timbres = listen.Timbres({"dull": [noise(0.95) for _ in range(3)], "bright": [noise(0.0) for _ in range(3)]})
    for name, smoothness in (("dull", 0.95), ("bright", 0.0)):
        assert timbres.nearest(noise(smoothness)) == timbres.nearest(0.3 * noise(smoothness)) == name


def test_columns_are_delayed_and_start_with_initial_tokens(bank, ids):
    config = _tiny_config(ids)
    made = dialogues.DialogueMaker(bank, ids).make(257)
    columns = columns_of(made, config)
    assert (columns[0, 1:] == CARD).all() and columns[0, 0] == config.text_card
    assert (columns[1, 2:9] == CARD).all() and columns[1, 1] == made.agent[0, 1]
    assert (columns[2:, AGENT][:, 1:] == made.agent[1:, 1:-1].T).all()
    assert (columns[2:, USER][:, 0] == made.user[0, 2:]).all()


def test_only_agent_codes_of_the_conversation_are_hidden(bank, ids):
    batch = BatchMaker(dialogues.DialogueMaker(bank, ids), _tiny_config(ids), BatchOptions(dialogues=4)).make()
    hidden = batch.inputs == NOTHING
    assert hidden.any()
    hidden[..., AGENT] = False
    assert not hidden.any()
    assert (batch.targets >= 0).all()


def test_a_silence_that_is_kept_weighs_more_than_an_idle_one(bank, ids, monkeypatch):
    monkeypatch.setattr(dialogues, "INTERRUPTED_SHARE", 1.0)
    batch = BatchMaker(dialogues.DialogueMaker(bank, ids), _tiny_config(ids), BatchOptions(dialogues=6)).make()
    silent = batch.text_weight[batch.targets[..., 0] == dialogues.PAD_ID]
    for weight in (BatchOptions.pad_weight, BatchOptions.listening_pad_weight, BatchOptions.held_pad_weight):
        assert (silent == weight).sum() > 5


def test_drills_are_text_alone_and_name_the_persona_often(bank, ids):
    batch = BatchMaker(dialogues.DialogueMaker(bank, ids), _tiny_config(ids), BatchOptions(drills=3)).make_drill()
    assert len(batch.depth_frames) == 0
    assert (batch.text_weight == BatchOptions.text_content_weight).sum() >= 6
    assert (batch.user_words >= 0).any()


def test_a_stranger_says_what_it_was_told(bank, ids, monkeypatch):
    """A prompt of words unheard of: name, place, price and hour are the ones in it."""
    monkeypatch.setattr(dialogues, "DRILLED_FACTS_SHARE", 1.0)
    monkeypatch.setattr(dialogues, "STRANGE_SHARE", 1.0)
    answers = [answer for kind in dialogues.STRANGE_KINDS for answer in sentences.TURNS[kind].answers]
    allowed = {word for text in (*answers, *sentences.UNKNOWN_ANSWERS) for word in sentences.text_tokens(text)}
    numbers = {word for value in (*domain.PRICES, *domain.HOURS) for word in value.split()}
    for seed in range(5):
        made = dialogues.DialogueMaker(bank, ids, seed).drill(161, 0.5)
        parts = made.text[: made.prompt_frames], made.text[made.prompt_frames :]
        told, said = (ids.decode([int(i) for i in part if i not in (0, dialogues.PAD_ID)]) for part in parts)
        # The last word may be cut.
        words, known = ({word.strip(".,?") for word in text.split()[:-1]} for text in (said, told))
        assert words <= allowed | known
        assert words & numbers <= known
        assert not any(name in told.split() for name in domain.NAMES)


def test_a_slot_of_a_text_is_filled_anew(bank, ids):
    clip = next(clip for clip in bank.agent["slt", "greet"])
    name, place = "Zebedee", "Old Mill"
    said = clip.refilled("name", name, ids).refilled("place", place, ids)
    text = ids.decode([token for _, tokens in said.words for token in tokens])
    assert text in [
        template.format(name=name, place=place) for kind, template in sentences.agent_templates() if kind == "greet"
    ]
    content = {ids.decode(list(said.words[at][1])).strip(".,") for at in said.content_words()}
    assert content == {"Zebedee", "Old", "Mill"}


def test_a_spelled_name_is_said_where_it_was_recorded(bank, ids, monkeypatch):
    """By the voice that has it in both kinds of sentences, in a dialogue and in a recital."""
    monkeypatch.setattr(dialogues, "SPELLED_SHARE", 1.0)
    monkeypatch.setattr(dialogues, "SPELLED_RECITED_SHARE", 1.0)
    rng = np.random.default_rng(1)
    agent = {key: list(clips) for key, clips in bank.agent.items()}
    values = dict(name="Zelda", place="Mars Station")
    for kind, template in sentences.agent_templates():
        if kind in sentences.NAMING_KINDS:
            agent["slt", kind].append(_agent_clip(rng, ids, template, values))
    maker = dialogues.DialogueMaker(dataclasses.replace(bank, agent=agent), ids)
    assert maker.spelled == {"slt": ["Zelda"], "rms": []}
    assert dialogues.DialogueMaker(bank, ids).spelled == {"slt": [], "rms": []}
    monkeypatch.setattr(maker, "agent_voices", ["slt"])
    talked = [maker.make(257) for _ in range(8)]
    assert all("Zelda" in ids.decode(made.text[: made.prompt_frames].tolist()) for made in talked)
    for made in [talked, [maker.recital(257)]]:
        said = " ".join(
            ids.decode(one.text[one.prompt_frames :][one.text[one.prompt_frames :] > 0].tolist()) for one in made
        )
        assert "Zelda" in said
        assert not set(domain.NAMES) & {word.strip(".,?") for word in said.split()}


def test_who_opens_with_a_story_is_not_greeted(bank, ids, monkeypatch):
    story = [opening for opening in dialogues.OPENINGS if opening.kind == sentences.STORY]
    monkeypatch.setattr(dialogues, "OPENINGS", story)
    maker = dialogues.DialogueMaker(bank, ids)
    for _ in range(5):
        made = maker.make(257)
        first = int(np.flatnonzero(made.speaking)[0])
        assert (made.user_words[made.prompt_frames : first] >= 0).any()


def test_a_story_that_begins_late_goes_on_from_where_it_began(bank, ids, monkeypatch):
    late = [o for o in dialogues.OPENINGS if o.kind == sentences.STORY and not o.at_once]
    monkeypatch.setattr(dialogues, "OPENINGS", late)
    told = [_user_clip(sentences.STORY, 10 + n) for n in range(5)]
    background = np.zeros((8, 15), int)
    maker = dialogues.DialogueMaker(dataclasses.replace(bank, users=[UserSession(told, background, background)]), ids)
    first = set()
    for _ in range(20):
        made = maker.make(257)
        heard = [int(code) for code in made.user[0, made.prompt_frames :] if code >= 10]
        order = [code for code, before in zip(heard, [0, *heard], strict=False) if code != before]
        first.add(order[0])
        assert order[: 15 - order[0]] == list(range(order[0], 15))
    assert len(first) > 2


def test_some_are_interrupted_late_in_a_sentence(bank, ids, monkeypatch):
    """A greeting lasts for 50 frames; an agent that was only interrupted in its beginning says the rest of it."""
    monkeypatch.setattr(dialogues, "INTERRUPTED_SHARE", 1.0)
    monkeypatch.setattr(dialogues, "OPENINGS", dialogues.OPENINGS[:1])
    _, early = dialogues.INTERRUPTED_AT_FRAMES
    at = []
    for seed in range(30):
        made = dialogues.DialogueMaker(bank, ids, seed).make(257)
        begun = np.flatnonzero(made.speaking)[0]
        at.append(np.flatnonzero(made.user_words[begun:] >= 0)[0])
    assert min(at) < early < max(at)


def test_short_sentences_are_not_all_interrupted_at_the_same_word(bank, ids, monkeypatch):
    """An end that always comes before the same word, and before the user is heard, teaches to leave the word out."""
    monkeypatch.setattr(dialogues, "INTERRUPTED_SHARE", 1.0)
    monkeypatch.setattr(dialogues, "OPENINGS", [dialogues.Opening("question", False, 1.0)])
    named = [UserSession([clip], user.opening, user.background) for user in bank.users for clip in user.clips]
    named = [user for user in named if user.opening is not None and user.clips[0].kind == "name"]
    maker = dialogues.DialogueMaker(dataclasses.replace(bank, users=named), ids)
    at = set()
    for _ in range(40):
        made = maker.make(200)
        begun = np.flatnonzero(made.speaking)[0]
        at.add(np.flatnonzero(made.user_words[begun:] >= 0)[0])
    clip = bank.agent["slt", "name"][0]
    slot = clip.words[clip.slots["name"]][0]
    assert min(at) < slot < max(at) and len(at) > 5


def test_a_word_is_left_out_only_once_the_user_could_be_heard(bank, ids):
    """What the user says in a frame is known a frame later; a word shows in the text a frame before it begins."""
    clip = bank.agent["slt", "name"][0]
    begins, _ = clip.words[clip.slots["name"]]
    for interrupted, said in ((begins - 1, True), (begins - 2, False)):
        draft = dialogues.DialogueMaker(bank, ids)._draft(60, bank.users[0])
        draft.agent_says(clip, 0, (interrupted + dialogues.STOP_WORD_FRAMES, interrupted + dialogues.STOP_FRAMES[1]))
        assert (draft.text[begins] != dialogues.PAD_ID) == said


def test_of_several_runs_the_mean_is_exported(ids, tmp_path):
    runs, seeds = [tmp_path / name for name in ("one", "two")], (1, 2)
    for run, seed in zip(runs, seeds, strict=True):
        run.mkdir()
        Trainer(_tiny_config(ids), TrainOptions(seed=seed), run).save("final.pt")
        (run / TOKENIZER).write_bytes(ids.processor.serialized_model_proto())
    one, two, mean = (export.mean_model(chosen).state_dict() for chosen in (runs[:1], runs[1:], runs))
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, (one[name] + two[name]) / 2)
    assert any(not torch.equal(one[name], two[name]) for name in mean)
    (runs[1] / TOKENIZER).write_bytes(b"another")
    with pytest.raises(ValueError, match="another size or tokenizer"):
        export.mean_model(runs)


def test_a_silent_user_sounds_like_the_end_of_their_recording():
    """A stream of two sentences: what follows each is the codec's forgetting of speech, as long as there is any."""
    codes = np.tile(np.arange(100), (8, 1))
    said = [
        dict(kind="name", text="Who is it?", start_sec=at, end_sec=at + 0.76, words=[["Who", at]]) for at in (0.0, 1.6)
    ]
    session = clips._user_session(codes, dict(clips=said, end_sec=2.36))
    for clip, sounded in zip(session.clips, (10, 30), strict=True):
        assert clip.codes[0, -1 - clip.tail] == sounded - 1
        assert clip.quiet[0, 0] == 30 + clip.tail and clip.quiet[0, -1] == 99
    assert session.opening is None
    assert list(session.background[0]) == list(range(30 + clips.FORGOTTEN_FRAMES, 100))


def test_what_follows_a_sentence_is_what_was_heard_after_it(bank, ids):
    draft = dialogues.DialogueMaker(bank, ids)._draft(60, bank.users[0])
    assert draft.user_says(_user_clip("name", 7), 4) == 13
    assert (draft.user[:, 4:16] == 7).all() and (draft.user[:, 16:21] == 3).all()
    draft.user_says(_user_clip("name", 8), 47)
    assert (draft.user[:, 47:59] == 8).all() and (draft.user[:, 59] == 3).all()
    draft.user_says(_user_clip("name", 9), 70)


def test_where_an_agent_is_interrupted_its_silence_is_learned_as_well_as_its_speech(bank, ids):
    draft = dialogues.DialogueMaker(bank, ids)._draft(60, bank.users[0])
    clip = bank.agent["slt", "greet"][0]
    draft.agent_says(clip, 2, (10, 11))
    made = draft.finished()
    assert list(np.flatnonzero(made.stopped)) == list(range(11, 11 + dialogues.STOPPED_FRAMES))
    config = _tiny_config(ids)
    maker = BatchMaker(dialogues.DialogueMaker(bank, ids), config, BatchOptions(quiet_frames=0))
    learned = maker._spoken([made], 0.0, 1000).depth_frames.tolist()
    assert set(range(1, 10 + dialogues.STOPPED_FRAMES)) <= set(learned)


def test_a_question_is_now_and_then_answered_late(bank, ids, monkeypatch):
    monkeypatch.setattr(dialogues, "INTERRUPTED_SHARE", 0.0)
    monkeypatch.setattr(dialogues, "OPENINGS", [dialogues.Opening("question", False, 1.0)])
    asking = [UserSession([_user_clip("name", 0)], np.zeros((8, 9), int), np.zeros((8, 15), int))]
    maker = dialogues.DialogueMaker(dataclasses.replace(bank, users=asking), ids)
    waited = []
    for _ in range(100):
        made = maker.make(200)
        ended = np.flatnonzero(made.user_words >= 0)[0] + 9
        waited.append(np.flatnonzero(made.speaking)[0] - ended)
    assert set(waited) == {dialogues.ANSWER_WAIT_FRAMES, dialogues.LATE_ANSWER_FRAMES}
    assert waited.count(dialogues.ANSWER_WAIT_FRAMES) > 75


def test_one_word_aside_is_the_usual_one(bank, ids):
    maker = dialogues.DialogueMaker(bank, ids)
    usual = ids.word(sentences.USUAL_NOD)
    said = [maker.nod("slt").words[0][1] == usual for _ in range(200)]
    assert 150 < sum(said) < 200


def test_recitals_are_learned_from_by_ear_alone(bank, ids):
    batch = BatchMaker(dialogues.DialogueMaker(bank, ids), _tiny_config(ids), BatchOptions(recitals=2)).make_recital()
    assert batch.text_weight.sum() == 0
    assert (batch.depth_weight == BatchOptions.content_weight).sum() > 10


def test_loss_falls(bank, ids, tmp_path):
    options = BatchOptions(dialogues=2, frames=160, long_share=0.0, recitals=1, drills=2)
    maker = BatchMaker(dialogues.DialogueMaker(bank, ids), _tiny_config(ids), options)
    trainer = Trainer(_tiny_config(ids), TrainOptions(learning_rate=5e-3, warmup_steps=1), tmp_path)
    steps = [trainer.train_step(maker.make(), maker.make_recital(), maker.make_drill()) for _ in range(20)]
    totals = [sum(float(part.total().detach()) for part in parts) for parts in steps]
    assert np.mean(totals[-5:]) < 0.8 * np.mean(totals[:3])


def test_listening_alone_teaches_the_lower_layers(bank, ids, tmp_path):
    options = BatchOptions(listening=4, listening_frames=48)
    maker = BatchMaker(dialogues.DialogueMaker(bank, ids), _tiny_config(ids), options)
    trainer = Trainer(_tiny_config(ids), TrainOptions(learning_rate=5e-3, warmup_steps=1), tmp_path)
    before = trainer.model.layers[-1].in_proj.weight.detach().clone()
    losses = [float(trainer.listening_step(*maker.make_listening()).detach()) for _ in range(20)]
    assert np.mean(losses[-3:]) < 0.9 * losses[0]
    assert torch.allclose(before, trainer.model.layers[-1].in_proj.weight, rtol=0.02)  # but for weight decay


def test_lessons_follow_each_other_with_listening_between():
    class Maker:
        def __getattr__(self, name):
            return lambda *_: name

    lessons = Lessons(lambda worker: Maker(), Curriculum(listening_minutes=1, drill_minutes=1))
    made = iter(lessons)
    assert [next(made) for _ in range(2)] == ["make_listening"] * 2
    lessons.elapsed_sec = 61.0
    assert [next(made) for _ in range(4)] == [("make_drill",), "make_listening", ("make_drill",), ("make_drill",)]
    lessons.elapsed_sec = 121.0
    whole = ("make", "make_recital", "make_drill")
    assert [next(made) for _ in range(4)] == [whole, "make_listening", whole, whole]


def test_some_codebooks_are_hidden_for_a_while_where_there_are_only_users(bank, ids):
    options = BatchOptions(listening=16, listening_frames=200, listening_hidden=0.5)
    columns, _ = BatchMaker(dialogues.DialogueMaker(bank, ids, 3), _tiny_config(ids), options).make_listening()
    hidden = (columns[..., USER] == NOTHING).numpy()
    assert 0.1 < hidden.mean() < 0.25  # a third of the frames of each
    assert (np.abs(np.diff(hidden.astype(int), axis=1)).sum(1) <= 2).all(), "one stretch a codebook"


def test_users_held_out_are_reported_and_never_trained_on(bank, ids, tmp_path, caplog):
    trained, others = bank.without(8)
    assert len(trained.users) == 32 and others == bank.users[32:] and len(bank.users) == 40
    trainer = Trainer(_tiny_config(ids), TrainOptions(learning_rate=5e-3, warmup_steps=1, log_steps=5), tmp_path)
    options = BatchOptions(listening=4, listening_frames=48)
    made, kept = (
        BatchMaker(dialogues.DialogueMaker(dataclasses.replace(bank, users=users), ids), _tiny_config(ids), options)
        for users in (trained.users, others)
    )
    trainer.held_out = kept.make_listening()
    for _ in range(5):
        trainer.listening_step(*made.make_listening())
    with caplog.at_level(logging.INFO):
        trainer.report()
    columns, words = trainer.held_out
    with torch.no_grad():
        wanted = trainer.listener.loss(trainer.model.lower(columns, trainer.listener.layers), words)
    assert json.loads(caplog.messages[-1])["listening_held_out"] == pytest.approx(float(wanted), abs=2e-2)


def test_a_checkpoint_goes_on_where_it_stopped(ids, tmp_path):
    trainer = Trainer(_tiny_config(ids), TrainOptions(), tmp_path)
    trainer.step, trainer.elapsed_sec = 7, 3.0
    trainer.save("last.pt")
    other = Trainer(_tiny_config(ids), TrainOptions(seed=1), tmp_path)
    other.resume(tmp_path / "last.pt")
    assert (other.step, other.elapsed_sec) == (7, 3.0)
    assert torch.equal(other.model.embedding, trainer.model.embedding)


def test_another_vocabulary_keeps_the_rows_of_common_pieces(ids, tmp_path):
    few = tmp_path / "few" / TOKENIZER
    few.parent.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["Anna works", "Ben and Anna work"] * 20), model_prefix=str(few.parent / "m"),
        vocab_size=20, hard_vocab_limit=False, pad_id=3, minloglevel=2, user_defined_symbols=["\u2581Anna"],
    )  # fmt: skip
    (few.parent / "m.model").rename(few)
    known = TextIds(few)
    trainer = Trainer(_tiny_config(known), TrainOptions(), few.parent)
    trainer.save("last.pt")
    model = LanguageModel(_tiny_config(ids))
    start_from(model, ids, few.parent / "last.pt")
    old, new = (which.processor.piece_to_id("\u2581Anna") for which in (known, ids))
    theirs = trainer.model
    assert torch.equal(model.embedding[new], theirs.embedding[old])
    assert torch.equal(model.text_linear.weight[new], theirs.text_linear.weight[old])
    assert torch.equal(model.depth_text[new], theirs.depth_text[old])
    assert torch.equal(model.embedding[len(ids) :], theirs.embedding[len(known) :])
    assert torch.equal(model.layers[0].in_proj.weight, theirs.layers[0].in_proj.weight)


def test_a_listener_keeps_the_rows_of_words_it_knew(ids, tmp_path):
    trainer = Trainer(_tiny_config(ids), TrainOptions(), tmp_path)
    trainer.save("last.pt")
    known = list(sentences.user_vocabulary())
    words = ["unheard", *reversed(known[:5])]
    torch.manual_seed(1)
    listener = Listener(_tiny_config(ids), len(words))
    unheard = listener.linear.weight[0].clone()
    assert listen_from(listener, words, tmp_path / "last.pt") == 5
    assert torch.equal(listener.linear.weight[0], unheard)
    assert torch.equal(listener.linear.weight[1:], trainer.listener.linear.weight[:5].flip(0))
    assert listen_from(listener, words, tmp_path) == 0  # a published folder teaches no listener


def test_a_narrower_feed_forward_keeps_the_strongest_neurons(ids, tmp_path):
    """Neurons without weight are the ones left out, so that the layer computes the same."""
    (tmp_path / TOKENIZER).write_bytes(ids.processor.serialized_model_proto())
    wide = dataclasses.replace(_tiny_config(ids), hidden_scale=6.0)
    trainer = Trainer(wide, TrainOptions(), tmp_path)
    width = _tiny_config(ids).feedforward_dim
    idle = torch.randperm(wide.feedforward_dim)[width:]
    with torch.no_grad():
        for layer in trainer.model.layers:
            layer.linear_out.weight[:, idle] = 0.0
    trainer.save("last.pt")
    model = LanguageModel(_tiny_config(ids))
    start_from(model, ids, tmp_path / "last.pt")
    x = torch.randn(1, 3, wide.dim)
    angles = model._angles(torch.arange(3)[None])
    for ours, theirs in zip(model.layers, trainer.model.layers, strict=True):
        assert torch.allclose(ours(x, *angles, None)[0], theirs(x, *angles, None)[0], atol=1e-5)


def test_a_model_of_other_sizes_is_no_beginning(ids, tmp_path):
    (tmp_path / TOKENIZER).write_bytes(ids.processor.serialized_model_proto())
    Trainer(_tiny_config(ids), TrainOptions(), tmp_path).save("last.pt")
    with pytest.raises(ValueError, match="is trained"):
        start_from(LanguageModel(nano_config(len(ids))), ids, tmp_path / "last.pt")


def test_export_has_the_published_names_and_shapes(ids):
    for config in (_tiny_config(ids), nano_config(len(ids))):
        with torch.device("meta"):
            expected = {entry.key: tuple(entry.shape) for entry in PublishedModel(config).checkpoint_entries()}
        given = {key: tuple(t.shape) for key, t in export.published_tensors(LanguageModel(config)).items()}
        assert given == expected


def test_sharpened_logits_make_published_sampling_cooler(ids):
    model = LanguageModel(_tiny_config(ids))
    plain = export.published_tensors(model)
    sharp = export.published_tensors(model, export.Sharpness.of_temperatures(text=0.35, audio=0.2))
    changed = {name for name, tensor in plain.items() if not torch.equal(tensor, sharp[name])}
    assert changed == {"text_linear.weight", *(f"linears.{k}.weight" for k in range(8))}
    assert torch.allclose(sharp["text_linear.weight"], 2 * plain["text_linear.weight"])
    assert torch.allclose(sharp["linears.3.weight"], 4 * plain["linears.3.weight"])


def test_training_in_parallel_equals_playing_frame_by_frame(ids):
    """The first column's tokens are initial ones in both, and -1 is nothing in both."""
    torch.manual_seed(0)
    config = _tiny_config(ids)
    model = LanguageModel(config).eval()
    known = live_frames(torch.randint(CARD, (8, 30)))
    known[:10, 0] = torch.randint(4, 100, (10,))
    known[:10, AGENT] = torch.randint(CARD, (10, 8))
    columns = play_greedy(model, known)
    assert (columns != UNKNOWN).all()
    with torch.inference_mode():
        hidden, _ = model.hidden(columns[None, :-1])
        text = model.text_linear(hidden[0]).argmax(-1)
        codes = model.depth_logits(hidden[0], columns[1:, 0], columns[1:, 1:8]).argmax(-1).T
    assert (text[11:] == columns[12:, 0]).all()
    assert (codes[11:] == columns[12:, AGENT]).all()


def test_the_engine_says_what_the_training_model_says(tmp_path):
    """The exported weights, run by the real engine, give the same tokens: prompt in parallel, then frame by frame."""
    torch.manual_seed(1)
    config = LMConfig(
        dim=32, num_heads=2, num_layers=2, hidden_scale=4.0, context=48, text_card=400, card=2048, dep_q=8,
        depformer_dim=16, depformer_num_heads=2, depformer_num_layers=2, depformer_dim_feedforward=48,
    )  # fmt: skip
    model = LanguageModel(config).eval()
    folder = tmp_path / "model"
    shutil.copytree(Path(__file__).parent / "golden", folder)
    save_file(export.published_tensors(model), folder / "model.safetensors")
    described = json.loads((folder / "config.json").read_text()) | {"lm": dataclasses.asdict(config)}
    (folder / "config.json").write_text(json.dumps(described))
    loaded = load_model(folder, format="float32", device="cpu")
    again = export.import_model(folder, export.Sharpness())
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in model.state_dict().items())

    sharpened = export.published_tensors(
        model, export.Sharpness.of_temperatures(export.USUAL_TEXT_TEMPERATURE, export.USUAL_AUDIO_TEMPERATURE)
    )
    save_file(sharpened, tmp_path / "model.safetensors")
    shutil.copytree(folder, tmp_path / "sharpened")
    shutil.copy(tmp_path / "model.safetensors", tmp_path / "sharpened")
    blunt = export.import_model(tmp_path / "sharpened").state_dict()  # as it was before it was exported
    assert all(torch.allclose(t, blunt[name]) for name, t in model.state_dict().items())

    prompt, live = 20, 45  # longer than the window
    known = live_frames(torch.randint(2048, (8, prompt + live)))
    known[:prompt, 0] = torch.randint(4, 100, (prompt,))
    known[:prompt, AGENT] = torch.randint(2048, (prompt, 8))
    columns = play_greedy(model, known)
    engine = Engine(loaded.config, loaded.lm, loaded.mimi)
    engine.set_sampling(0, SamplingOptions(greedy=True))
    engine.prefill_frames(0, known[:prompt])
    for frame in range(prompt, prompt + live):
        out = engine.step_tokens(known[frame : frame + 1], torch.ones(1, dtype=torch.bool))
        assert out.tokens[0, :2].tolist() == columns[frame - 1, :2].tolist()
        assert out.tokens[0, 2:9].tolist() == columns[frame, 2:9].tolist()
