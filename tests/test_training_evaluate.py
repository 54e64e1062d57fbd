"""The evaluation holds the conversations that it means to hold."""

import numpy as np
import pytest

from personaplex.session.session import Session
from training import sentences
from training.domain import Role
from training.evaluate import FRAME_SAMPLES, Talk, Window, hold, right
from training.listen import _BROKEN_OFF, _WHOLE, Grammar, hear_sentences

ROLE = Role("Anna", "City Sanitation")


def _talk(prompt: str, role: Role = ROLE) -> Talk:
    rng = np.random.default_rng(0)
    voice, heard = (0.1 * rng.standard_normal(count * FRAME_SAMPLES).astype(np.float32) for count in (13, 8))
    return Talk(role, prompt, "slt", voice, heard, [])


@pytest.fixture
def session(golden) -> Session:
    return Session(golden, window="published", slots=3)


def test_each_conversation_has_its_own_prompt(session):
    prompts = ("Your name is Anna.", "You are Ben.", "Who are you?")
    together = [_talk(prompt) for prompt in prompts]
    hold(session, together, {}, seed=3)
    assert len({tuple(talk.tokens) for talk in together}) == len(prompts)
    alone = _talk(prompts[0])
    hold(session, [alone], {}, seed=3)
    assert alone.tokens == together[0].tokens
    assert np.allclose(alone.said, together[0].said, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "role", "text", "is_right"),
    [
        (sentences.GREET, ROLE, "Hi, this is Anna from City Sanitation.", True),
        (sentences.GREET, ROLE, "Hi, this is Anna from Velvet Hotel.", False),
        ("price", Role("Anna", "Velvet Hotel", "a bus tour", "ten", ""), "It costs ten dollars.", True),
        ("price", Role("Anna", "Velvet Hotel", "a bus tour", "ten", ""), "It costs ninety ten dollars.", False),
        ("price", Role("Anna", "Velvet Hotel"), "It costs ten dollars.", False),
        ("price", Role("Anna", "Velvet Hotel"), "Sorry, I do not know that.", True),
        ("thanks", Role("Anna", "Velvet Hotel"), "You are welcome.", True),
        ("thanks", Role("Anna", "Velvet Hotel"), "", False),
        (sentences.MUMBLE, ROLE, "Could you say that again, please?", True),
        (sentences.MUMBLE, ROLE, "I work for City Sanitation.", False),
    ],
)
def test_what_counts_as_right(kind, role, text, is_right):
    assert right(_talk("", role), Window(kind, 0, 10), text) is is_right


@pytest.mark.parametrize(
    ("heard", "believed"),
    [
        ("uh huh uh", "uh huh"),
        ("uh huh", "uh huh"),
        ("hello this is", "hello this is"),  # broken off: it was said
        ("my name is anna i", "my name is anna"),
        ("my name is anna i work", "my name is anna i work"),
        ("my name is zelda my", "my name is zelda"),  # of the names that this grammar has besides
        ("", ""),
    ],
)
def test_one_word_after_a_whole_sentence_is_a_breath(heard, believed):
    assert Grammar(names=("Zelda",)).without_stray_word(heard.split()) == believed.split()


class Hears:
    """A decoder whose `search` alone finds words."""

    def __init__(self, search: str) -> None:
        self.search, self.active = search, ""

    def activate_search(self, name: str) -> None:
        self.active = name

    def start_utt(self) -> None: ...

    def process_raw(self, raw: bytes, full_utt: bool) -> None:
        assert len(raw) == 8 and full_utt

    def end_utt(self) -> None: ...

    def hyp(self) -> str | None:
        return "said" if self.active == self.search else None


@pytest.mark.parametrize(("search", "heard"), [(_WHOLE, True), (_BROKEN_OFF, True), ("another", False)])
def test_halves_are_listened_for_where_nothing_whole_was_said(search, heard):
    decoder = Hears(search)
    assert hear_sentences(decoder, np.zeros(4, np.float32)) is heard
    assert decoder.active == (_WHOLE if search == _WHOLE else _BROKEN_OFF)


def test_a_sentence_may_be_broken_off_after_any_word():
    class Two(Grammar):
        def slots(self):
            return {"place": ("City Sanitation", "Velvet Hotel")}

    rules = Two().jsgf(broken_off=True).splitlines()
    assert "<begun_place> = city | velvet;" in rules
    begun = next(rule for rule in rules if rule.startswith("<begun> = "))
    place = "(/0.99/ <place> | /0.01/ <begun_place>)"
    assert f"(i (/0.99/ work (/0.99/ for (/0.99/ {place} | /0.01/ <NULL>) | /0.01/ <NULL>) | /0.01/ <NULL>))" in begun
    assert rules[-1] == "public <said> = [<sentence>] <begun>;"
    assert not any("begun" in rule for rule in Two().jsgf().splitlines())
