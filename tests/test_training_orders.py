"""The cafe's orders, the agent's voices, what is around users, and the agent's echo; on made-up recordings."""

import json
import random

import numpy as np
import pytest
from lm_recipe import clip_bank, order_clip, text_ids, user_clip

from personaplex.errors import ConfigError
from training import agents, dialogues, domain, orders, sentences, speech, surroundings, turn_taking, users
from training.domain import Role
from training.lm import clips, encode
from training.recital import Script
from training.tts import Utterance, Word


@pytest.fixture(scope="module")
def ids(tmp_path_factory):
    return text_ids(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def bank(ids):
    return clip_bank(ids)


def test_an_answer_repeats_what_was_ordered():
    order = {"size": "medium", "roast": "medium roast", "drink": "iced mocha", "milk": "skim milk", "sugar": "sugar"}
    said = orders.repeated(order)
    assert said == "One medium medium roast iced mocha with skim milk and sugar, coming up."
    assert orders.repeated({"drink": "latte"}) == "One latte, coming up."
    rng = random.Random(0)
    for drawn in (orders.drawn(rng) for _ in range(500)):
        assert orders.slots_in(orders.repeated(drawn)) == drawn
        assert orders.slots_in(" ".join(orders.requested(rng, drawn))) == drawn


def test_a_recorded_orders_label_is_read_without_its_amounts():
    label = {
        "coffeeDrink": "mocha",
        "milkAmount": "a lot of skim milk",
        "size": "twenty ounce",
        "sugarAmount": " sugar",
    }
    wanted = {"size": "twenty ounce", "drink": "mocha", "milk": "skim milk", "sugar": "sugar"}
    assert orders.of_label(label) == wanted


def test_a_few_readings_cover_every_order(ids):
    covered = {pair for order in orders.covering() for pair in orders.pairs_of(order)}
    assert covered == set(orders.transitions()) and len(orders.covering()) < 60
    draw, rng = np.random.default_rng(0), random.Random(1)
    book = clips.OrderBook([order_clip(draw, ids, order) for order in orders.covering()])
    for order in (orders.drawn(rng) for _ in range(200)):
        clip = book.reading(rng, order)
        assert clip is not None and clip.values == order
        assert ids.decode([token for _, tokens in clip.words for token in tokens]) == orders.repeated(order)
    assert clips.OrderBook([]).reading(rng, {"drink": "latte"}) is None


def test_coffee_is_ordered_where_it_is_sold():
    cafe, bank_role = Role("Anna", "Corner Coffee House"), Role("Anna", "First Neuron Bank")
    assert cafe.takes_orders and not bank_role.takes_orders
    assert sentences.answer_kind(orders.ORDER, cafe) == orders.ORDER
    assert sentences.answer_kind(orders.ORDER, bank_role) == sentences.BEYOND
    assert all(domain.random_role(random.Random(seed), cafe=True).takes_orders for seed in range(20))


def test_the_agent_waits_for_the_rest_of_an_order_and_repeats_it(bank, ids, monkeypatch):
    monkeypatch.setattr(turn_taking, "INTERRUPTED_SHARE", 0.0)
    monkeypatch.setattr(dialogues, "OPENINGS", [o for o in dialogues.OPENINGS if o.kind == "question" and o.at_once])
    monkeypatch.setattr(dialogues, "CAFE_SHARE", 1.0)
    monkeypatch.setattr(dialogues, "FIRST_QUESTION_WEIGHTS", {orders.ORDER: 1.0})
    order = {"size": "large", "drink": "latte", "milk": "soy milk"}
    clip = user_clip(orders.ORDER, 0)
    clip.slots = order
    session = clips.UserSession([clip], None, np.zeros((8, 15), int))
    made = dialogues.DialogueMaker(clips.ClipBank(bank.agent, [session], bank.voices, bank.silence, bank.sine), ids)
    talk = made.make(200)
    said = ids.decode([int(i) for i in talk.text[talk.prompt_frames :] if i not in (0, 3)])
    assert said.startswith("One large latte with soy milk, coming up.")
    begun = np.flatnonzero(talk.speaking[talk.prompt_frames :])[0]
    assert begun == 9 + turn_taking.ORDER_WAIT_FRAMES


def test_an_order_is_repeated_in_a_drill(bank, ids, monkeypatch):
    """What is filled in there is the user's, not the role's."""
    monkeypatch.setattr(dialogues, "DRILLED_CAFE_SHARE", 1.0)
    monkeypatch.setattr(dialogues, "DRILLED_FACTS_SHARE", 0.0)
    clip = user_clip(orders.ORDER, 0)
    clip.slots = {"size": "large", "shots": "double shot", "drink": "latte"}
    session = clips.UserSession([clip], None, np.zeros((8, 15), int))
    made = dialogues.DialogueMaker(clips.ClipBank(bank.agent, [session], bank.voices, bank.silence, bank.sine), ids)
    drill = made.drill(161, 1.0)
    said = ids.decode([int(i) for i in drill.text[drill.prompt_frames :] if i not in (0, 3)])
    assert said.startswith("One large double shot latte, coming up.")


def test_an_order_pauses_between_its_pieces_alone(monkeypatch):
    monkeypatch.setattr(users, "ORDER_PAUSE_SHARE", 1.0)
    words = tuple(Word(f"w{n}", 0.1 * n, 0.1 * n + 0.1) for n in range(4))
    plain = Utterance(np.ones(12_000, np.float32), 24_000, (), words)
    said = users.ordering(random.Random(0), plain, ["w0 w1", "w2 w3"])
    moved = [round(after.start_sec - before.start_sec, 6) for after, before in zip(said.words, words, strict=True)]
    assert moved[:2] == [0.0, 0.0] and moved[2] == moved[3] >= users.ORDER_PAUSE_SEC[0]
    assert np.flatnonzero(said.pcm == 0)[0] == 4800
    assert users.ordering(random.Random(0), plain, ["w0 w1 w2"]) is plain


def test_casts_have_voices_that_may_be_learned_from(tmp_path):
    assert {name: len(cast) for name, cast in agents.CASTS.items()} == {"flite": 4, "neural": 4}
    path = tmp_path / "agents.toml"
    path.write_text('[x.a]\nsynthesiser = "kokoro:am_adam"\ncatalogue = "nano-x"\nsample = "Hi."\n')
    with pytest.raises(ValueError, match="am_adam is kept for tests"):
        agents.read_casts(path)
    path.write_text('[x.a]\nsynthesiser = "slt"\ncatalogue = "nano-x"\nsample = "Hi."\npitch = 3.0\n')
    with pytest.raises(ConfigError, match="pitch"):
        agents.read_casts(path)


def test_kokoros_shards_are_its_voices_and_together_have_all_values():
    shards = [shard for shard, _ in zip(speech.kokoro_shards("neural"), range(60), strict=False)]
    spoken = [shard for shard in shards if shard.role == "agent"]
    assert {name for shard in spoken for name in shard.voices()} == {"michael", "george"}
    of_one = [shard for shard in spoken if "george" in shard.voices()]
    assert {shard.values() for shard in of_one} == {(part, speech.VALUES_PARTS) for part in range(speech.VALUES_PARTS)}
    assert set(speech.Shard("agent", 3, "neural").voices()) == {"heart", "alto"}
    names = set()
    for part in range(speech.VALUES_PARTS):
        script = Script(random.Random(part), (part, speech.VALUES_PARTS))
        said = [script.sentence(False) for _ in range(200)]
        names |= {slots["name"] for kind, _, slots in said if kind == "name"}
    assert names == set(domain.NAMES)


def test_further_users_are_others_than_those_of_the_plan():
    plan = {(shard.part, shard.index) for shard in speech.planned(400, agents.NEURAL)}
    further = speech.further_users(1.0, agents.NEURAL)
    seconds = speech.STREAMS_PER_SHARD["user"] * speech.STREAM_SEC["user"]
    assert {shard.role for shard in further} == {"user"}
    assert not plan & {(shard.part, shard.index) for shard in further}
    assert (len(further) - 1) * seconds < 3600 <= len(further) * seconds
    assert speech.further_users(0.0, agents.NEURAL) == []
    assert max(shard.index for shard in speech.further_users(400, agents.NEURAL)) < 10_000  # four digits in a name


@pytest.mark.parametrize("kind", [kind for kind in surroundings.NOISES if kind != surroundings.HISS])
def test_noises_are_as_loud_as_asked(kind):
    draw = np.random.default_rng(0)
    babble = draw.standard_normal(24_000).astype(np.float32)
    spoken = (0.2 * np.sin(np.arange(48_000) * 0.05)).astype(np.float32)
    noisy = surroundings.with_noise(spoken, kind, 12.0, draw, [babble])
    snr_db = 20 * np.log10(users.level(spoken) / np.std(noisy - spoken))
    assert snr_db == pytest.approx(12.0, abs=0.5)


def test_an_echo_is_late_and_softer(monkeypatch):
    monkeypatch.setattr(surroundings, "ECHO_NOISE_SHARE", 0.0)
    spoken = np.zeros(48_000, np.float32)
    spoken[4800:9600] = 0.5
    for seed in range(6):
        heard = surroundings.echo(spoken, np.random.default_rng(seed))
        late = np.flatnonzero(np.abs(heard) > 0.5 * np.abs(heard).max())[0] - 4800
        assert 0.9 * surroundings.ECHO_DELAY_SEC[0] <= late / 24_000 <= surroundings.ECHO_DELAY_SEC[1] + 0.2
        assert np.abs(heard).max() < 0.5 * 10 ** (-10 / 20)


def test_the_agents_echo_is_where_the_agent_spoke(bank, ids):
    draft = dialogues.DialogueMaker(bank, ids)._draft(60, bank.users[0])
    draft.start, draft.echoes = 10, True
    draft.hush(0)
    before = draft.user.copy()
    clip = bank.agent["slt", "greet"][0]
    clip.echo = np.full((8, clip.codes.shape[1] + clips.ECHO_TAIL_FRAMES), 31)
    draft.user_speaks[14:16] = True
    draft.agent_says(clip, 12, until=(20, 22))
    heard = (draft.user == 31).all(0)
    assert np.flatnonzero(heard).tolist() == [12, 13, *range(16, 22 + clips.ECHO_TAIL_FRAMES)]
    assert (draft.user[:, ~heard] == before[:, ~heard]).all()


def test_an_agents_shard_is_encoded_with_its_echo(tmp_path, ids):
    path = tmp_path / "agent-kokoro_0000.npy"
    said = dict(kind="name", text="My name is Anna.", start_sec=0.4, end_sec=1.2, slots={"name": "Anna"})
    said["words"] = [["My", 0.4], ["name", 0.5], ["is", 0.7], ["Anna.", 0.8]]
    path.with_suffix(".json").write_text(json.dumps([dict(voice="george", clips=[said], end_sec=1.2)]))
    np.save(path, (8000 * np.sin(np.arange(76_800) * 0.05)).astype(np.int16)[None])
    (tmp_path / "constants.json").write_text(json.dumps({"silence_codes": [0] * 8, "sine_codes": [1] * 8}))

    def coded(pcm):
        level = np.abs(pcm.numpy()).reshape(len(pcm), 1, -1, 1920).max(-1)
        return encode.torch.from_numpy((100 * level).round().astype(np.int64)).expand(-1, 8, -1)

    assert encode.encode_shard(path, coded, 1, variants=0, echoes=True) == pytest.approx(6.4)
    loaded = clips.ClipBank.load(tmp_path, ids)
    (clip,) = loaded.agent["george", "name"]
    assert clip.echo is not None and clip.echo.max() < 0.5 * clip.codes.max()
    assert clip.echo.shape[1] == clip.codes.shape[1] + clips.ECHO_TAIL_FRAMES
    assert clips.splice(clip, clip, "name").echo.tolist() == clip.echo.tolist()
