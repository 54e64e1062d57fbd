"""The recipe's dialogues: roles, sentences, who says what and when, on made-up recordings."""

import dataclasses
import random

import numpy as np
import pytest
from lm_recipe import agent_clip, clip_bank, text_ids, user_clip

from personaplex.config import END_OF_PADDING_ID
from personaplex.errors import ConfigError
from training import dialogues, domain, sentences, turn_taking
from training.domain import Role
from training.draft import PAD_ID
from training.lm import clips
from training.lm.clips import ClipBank, UserSession, splice
from training.lm.tokenizer import TextIds
from training.turns import Turn, read_turns


@pytest.fixture(scope="module")
def ids(tmp_path_factory) -> TextIds:
    return text_ids(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def bank(ids) -> ClipBank:
    return clip_bank(ids)


def test_every_agent_word_is_one_token(ids):
    role = vars(Role("Anna", "First Neuron Bank", "a gold card", "twenty seven", "nine")) | {"phrase": "Good luck"}
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
        prompt = ids.decode([int(i) for i in made.text[: made.prompt_frames] if i != PAD_ID])
        assert not any(name in prompt and place in prompt for name, place in held_out)


def test_the_agent_says_what_the_text_says_and_nothing_while_silent(bank, ids):
    maker = dialogues.DialogueMaker(bank, ids, seed=3)
    for _ in range(20):
        made = maker.make(257)
        quiet = ~made.speaking & ~made.told
        quiet[: made.prompt_frames] = False
        assert (made.agent[:, quiet] == bank.silence[:, None]).all()
        assert (made.text[quiet] == PAD_ID).all()


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
    monkeypatch.setattr(turn_taking, "NOD_SHARE", 1.0)
    monkeypatch.setattr(turn_taking, "NEWS_SHARE", 0.0)
    monkeypatch.setattr(dialogues, "OPENINGS", dialogues.OPENINGS[:1])
    telling = [user_clip(sentences.STORY, 0) for _ in range(30)]
    background = np.zeros((8, 15), int)
    users = [UserSession(telling, background, background)]
    maker = dialogues.DialogueMaker(ClipBank(bank.agent, users, bank.voices, bank.silence, bank.sine), ids)
    greeted = 0
    for _ in range(10):
        made = maker.make(257)
        words = ids.decode([int(i) for i in made.text[made.prompt_frames :] if i not in (0, PAD_ID)]).split()
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
    monkeypatch.setattr(turn_taking, "INTERRUPTED_SHARE", 0.0)
    monkeypatch.setattr(dialogues, "OPENINGS", [o for o in dialogues.OPENINGS if o.kind == "question" and o.at_once])
    mumbling = [user_clip(sentences.MUMBLE, 0) for _ in range(30)]
    users = [UserSession(mumbling, None, np.zeros((8, 15), int))]
    maker = dialogues.DialogueMaker(ClipBank(bank.agent, users, bank.voices, bank.silence, bank.sine), ids)
    for _ in range(10):
        made = maker.make(257)
        asked = ids.decode([int(i) for i in made.text[made.prompt_frames :] if i not in (0, PAD_ID)])
        assert asked.startswith(sentences.REPEATS[0])
        told = np.flatnonzero(made.user_words[made.prompt_frames :] >= 0)
        begun = np.flatnonzero(made.speaking[made.prompt_frames :])[0]
        waited = begun - 9 - told[0]  # a clip sounds for 9 frames
        assert waited == turn_taking.REPEAT_WAIT_FRAMES


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
    monkeypatch.setattr(turn_taking, "INTERRUPTED_SHARE", 1.0)
    slowest = turn_taking.STOP_FRAMES[1]
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
            assert made.held[stopped] and made.text[stopped] == PAD_ID
            begun = made.text[start + turn_taking.STOP_WORD_FRAMES : stopped] == END_OF_PADDING_ID
            assert not begun.any(), "a word begins after the user did"
    assert overlaps > 20


def test_turns_are_read_strictly(tmp_path):
    path = tmp_path / "turns.toml"
    path.write_text('[name]\nweight = 2\nanswers = ["I am {name}."]\nquestions = ["Who?", "And you?"]\n')
    (turn,) = read_turns(path).values()
    assert turn == Turn(("Who?", "And you?"), ("I am {name}.",), 2.0)
    path.write_text(path.read_text() + 'need = "hour"\n')
    with pytest.raises(ConfigError, match="need; did you mean needs"):
        read_turns(path)


def test_the_agents_answers_name_only_what_a_role_tells():
    role = Role("Anna", "Mars Station", "a ticket", "five", "nine")
    for kind, turn in sentences.TURNS.items():
        assert turn.questions and turn.answers and turn.weight > 0, kind
        assert not any("{" in text.format(**vars(role)) for text in turn.answers)
        assert not any("{" in text.format(good="a ticket") for text in (*turn.questions, *turn.clauses))
        assert turn.needs in ("", *domain.SLOT_VALUES)


def test_what_may_precede_a_question_leaves_its_words():
    assert not sentences.led_in_questions("thanks")
    assert ("I wanted to ask you,", "what a ticket costs.") in sentences.led_in_questions("price")
    assert ("I have a question,", "what is your name?") in sentences.led_in_questions("name")
    assert ("I have a question,", "I forgot your name.") in sentences.led_in_questions("name")
    halves = [half for kind in sentences.TURNS for pair in sentences.led_in_questions(kind) for half in pair]
    assert not any("{" in half for half in halves)


def test_users_mostly_ask_for_the_price_of_what_the_role_sells(bank, ids):
    frames = np.full((8, 12), 5)
    asking = [user_clip("price", 0, good) for good in ("a ticket", "a new lamp", "")]
    session = UserSession(asking, frames, frames)
    maker = dialogues.DialogueMaker(dataclasses.replace(bank, users=[session]), ids)
    role = domain.with_facts(random.Random(0), "Anna", "Mars Station")
    role = dataclasses.replace(role, good="a ticket")
    draft = maker._draft(100, session)

    def asked(of: Role) -> list[str]:
        return [c.good for _ in range(400) for c in turn_taking.Conversation(maker, draft, "slt", of)._clips()]

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
        told, said = (ids.decode([int(i) for i in part if i not in (0, PAD_ID)]) for part in parts)
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
            agent["slt", kind].append(agent_clip(rng, ids, template, values))
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
    told = [user_clip(sentences.STORY, 10 + n) for n in range(5)]
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
    monkeypatch.setattr(turn_taking, "INTERRUPTED_SHARE", 1.0)
    monkeypatch.setattr(dialogues, "OPENINGS", dialogues.OPENINGS[:1])
    _, early = turn_taking.INTERRUPTED_AT_FRAMES
    at = []
    for seed in range(30):
        made = dialogues.DialogueMaker(bank, ids, seed).make(257)
        begun = np.flatnonzero(made.speaking)[0]
        at.append(np.flatnonzero(made.user_words[begun:] >= 0)[0])
    assert min(at) < early < max(at)


def test_short_sentences_are_not_all_interrupted_at_the_same_word(bank, ids, monkeypatch):
    """An end that always comes before the same word, and before the user is heard, teaches to leave the word out."""
    monkeypatch.setattr(turn_taking, "INTERRUPTED_SHARE", 1.0)
    monkeypatch.setattr(dialogues, "OPENINGS", [turn_taking.Opening("question", False, 1.0)])
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
        draft.agent_says(
            clip, 0, (interrupted + turn_taking.STOP_WORD_FRAMES, interrupted + turn_taking.STOP_FRAMES[1])
        )
        assert (draft.text[begins] != PAD_ID) == said


def test_what_follows_a_sentence_is_what_was_heard_after_it(bank, ids):
    draft = dialogues.DialogueMaker(bank, ids)._draft(60, bank.users[0])
    assert draft.user_says(user_clip("name", 7), 4) == 13
    assert (draft.user[:, 4:16] == 7).all() and (draft.user[:, 16:21] == 3).all()
    draft.user_says(user_clip("name", 8), 47)
    assert (draft.user[:, 47:59] == 8).all() and (draft.user[:, 59] == 3).all()
    draft.user_says(user_clip("name", 9), 70)


def test_a_question_is_now_and_then_answered_late(bank, ids, monkeypatch):
    monkeypatch.setattr(turn_taking, "INTERRUPTED_SHARE", 0.0)
    monkeypatch.setattr(dialogues, "OPENINGS", [turn_taking.Opening("question", False, 1.0)])
    asking = [UserSession([user_clip("name", 0)], np.zeros((8, 9), int), np.zeros((8, 15), int))]
    maker = dialogues.DialogueMaker(dataclasses.replace(bank, users=asking), ids)
    waited = []
    for _ in range(100):
        made = maker.make(200)
        ended = np.flatnonzero(made.user_words >= 0)[0] + 9
        waited.append(np.flatnonzero(made.speaking)[0] - ended)
    assert set(waited) == {turn_taking.ANSWER_WAIT_FRAMES, turn_taking.LATE_ANSWER_FRAMES}
    assert waited.count(turn_taking.ANSWER_WAIT_FRAMES) > 75


def test_one_word_aside_is_the_usual_one(bank, ids):
    maker = dialogues.DialogueMaker(bank, ids)
    usual = ids.word(sentences.USUAL_NOD)
    said = [maker.nod("slt").words[0][1] == usual for _ in range(200)]
    assert 150 < sum(said) < 200
