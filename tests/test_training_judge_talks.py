"""The judge of a language model: what counts as talked over, as a turn taken, as an order repeated, as a greeting."""

import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from training import domain, judge, judge_talks, orders
from training.domain import Role
from training.evaluate import Talk, Window


class Reader:
    """Reads a talk whose tokens are words, "" where none begins."""

    def spoken_frames(self, talk, window):
        return [frame for frame in range(window.start_frame, window.end_frame) if talk.tokens[frame]]

    def text(self, talk, window):
        return " ".join(talk.tokens[frame] for frame in self.spoken_frames(talk, window))

    def sound(self, talk, window):
        return np.ones(24_000, np.float32) if self.spoken_frames(talk, window) else None


def talk(end, words, kind="reading", asked=""):
    tokens = [""] * 100
    for frame, word in words.items():
        tokens[frame] = word
    return Talk(Role("Anna", "Mars Station"), "", "nano-f", None, None, [Window(kind, end, 100, asked)], tokens)


def judged(**talks):
    """A judge whose maker gives these talks, held already."""
    made = judge.Judge.__new__(judge.Judge)
    made.reader, made.shown, made._counts = Reader(), [], judge.USUAL_COUNTS
    made._hold = lambda held: held
    made.maker = SimpleNamespace(**{name: lambda *_, held=held, **__: held for name, held in talks.items()})
    return made


def test_four_words_before_the_end_talk_over_and_as_many_after_it_take_the_turn():
    four = ("one", "two", "three", "four")
    spoken = [
        talk(50, dict(enumerate(four, 20))),
        talk(50, dict(enumerate(four[:3], 20)) | dict(enumerate(four, 60))),
        talk(50, dict(enumerate(four, 49))),
        talk(50, {60: "Okay."}),
        talk(50, {}),
    ]
    figures = judged(readings=spoken).readings()
    assert figures == {"talks over": "1 of 5", "takes its turn": "2 of 5", "median wait, s": 0.4}


def test_what_was_told_is_given_and_the_older_value_is_not():
    before = Role("Anna", "Mars Station", hour="five")
    told = [talk(50, dict(enumerate(f"We are open until {hour}.".split(), 60)), "hours") for hour in ("nine", "five")]
    for each in told:
        each.role, each.role_before = replace(before, hour="nine"), before
    assert judged(told=told).told() == {"given as told": "1 of 2", "the older one given": "1 of 2"}


def test_a_talk_is_told_another_value_than_its_prompts(tmp_path, monkeypatch):
    maker = judge_talks.Maker({"nano-f": np.zeros(10, np.float32)}, 0, None, tmp_path)
    monkeypatch.setattr(maker, "_spoken", lambda text, voice: np.ones(24_000, np.float32))
    for made in maker.told(20):
        ((frame, text),) = made.told.items()
        window, new, before = made.windows[0], made.role, made.role_before
        assert frame < window.start_frame - 12 and before is not None and new != before
        value = new.price if window.kind == "price" else new.hour
        assert value in text and made.prompt == domain.role_prompt(before)


def test_what_an_order_carries_is_read_from_the_answer():
    said = dict(enumerate("One large latte with soy milk, coming up.".split(), 60))
    order = {"size": "large", "drink": "latte", "milk": "soy milk", "sugar": "sugar"}
    talks = [
        talk(50, said, orders.ORDER, orders.repeated(order)),
        talk(50, said, orders.ORDER, orders.repeated(order | {"size": "small"})),
        talk(50, {}, orders.ORDER, orders.repeated(order)),
    ]
    figures = judged(orders=talks).orders()
    assert figures["drink"] == "2 of 3" and figures["drink, size and milk"] == "1 of 3"


def test_a_greeting_is_whole_with_its_offer():
    whole = "Hello, this is Anna from Mars Station. How can I help you?"
    assert judge._greeted(talk(0, {}), whole)
    assert not judge._greeted(talk(0, {}), "Hello, this is Anna from")
    assert not judge._greeted(talk(0, {}), "Could you say that again, please?")


def test_speech_is_judged_by_the_recogniser_alone(monkeypatch):
    monkeypatch.setattr(judge.recognisers, "Whisper", lambda: SimpleNamespace(hear=lambda sound: "hello hear"))
    monkeypatch.setattr(judge.recognisers, "Dnsmos", lambda: SimpleNamespace(rate=lambda sound: 3.5))
    figures = judged(kokoro_questions=[], greetings=[talk(0, {5: "hello", 6: "there"}), talk(0, {})]).words()
    assert figures["all"] == figures["nano-f"] == {"misheard": 0.5, "of words": 2, "dnsmos": 3.5}


def test_the_pause_is_in_the_middle_where_it_is_quiet():
    pcm = np.ones(48_000, np.float32)
    pcm[20_000:24_000] = 0.0
    paused, start_sec, end_sec = judge_talks.with_pause(pcm, random.Random(0))
    assert 20_000 <= start_sec * 24_000 <= 24_000 and len(paused) == len(pcm) + round((end_sec - start_sec) * 24_000)
    assert paused.sum() == pytest.approx(pcm.sum(), abs=5)


@pytest.mark.parametrize("background", judge_talks.BACKGROUNDS)
def test_backgrounds_are_as_loud_as_they_say(background, tmp_path, monkeypatch):
    monkeypatch.setattr(
        judge_talks.surroundings, "babble", lambda rng: np.random.default_rng(1).standard_normal(24_000)
    )
    maker = judge_talks.Maker({"nano-f": np.ones(48_000, np.float32)}, 0, None, tmp_path)
    (made,) = maker.greetings(background, 1)
    wanted = {"quiet": 0.0, "rumble 0.03": 0.03, "rumble 0.08": 0.08}.get(background, judge_talks.LEVEL / 10**0.5)
    assert made.heard.std() == pytest.approx(wanted, rel=0.1)
