"""Sentences of the synthetic set's users: questions of nano's world in wordings that training does not use.

Wordings that training has taken up in the meantime are left out when a set is made (``held_out``).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache

from personaplex.errors import InputError
from training import sentences as trained
from training.domain import number_words

OPENERS = ("", "", "Good afternoon.", "Excuse me.", "Okay then.")

QUESTIONS = {
    "name": (
        "And you are?",
        "Which name do you go by?",
        "Could I get your name, please?",
        "I did not catch your name, what was it?",
        "How should I call you?",
        "Would you mind telling me your name?",
        "Whom do I have on the line?",
        "What do people call you?",
    ),
    "place": (
        "What is the name of the place you work for?",
        "Which business have I reached?",
        "For whom do you work?",
        "Would you mind telling me where you work?",
        "What firm am I speaking with?",
        "Remind me, which company is this?",
        "Is this the right number, which company are you?",
        "Whose office is this?",
    ),
    "how": (
        "How have you been?",
        "How is your day so far?",
        "Are you doing well today?",
        "How are things with you?",
    ),
    "help": (
        "What sort of things can you help with?",
        "What are you able to do for me?",
        "I could use some help, what can you do?",
        "In what way can you help me?",
    ),
    "robot": (
        "Is this a machine speaking?",
        "Do I speak with a real human?",
        "You are not a real person, are you?",
        "Am I speaking to a computer?",
    ),
}

# A question that is asked with a pause for thought in its middle.
BROKEN_QUESTIONS = (
    ("Could you please tell me,", "what your name is?"),
    ("I was wondering,", "who it is that I am talking to."),
    ("So, my question is,", "which company you work for."),
    ("I would really like to know,", "if you are a real person."),
    ("One thing I wanted to ask is,", "how you are doing today."),
    ("Maybe you can tell me,", "what you are able to help me with."),
    ("Let me think,", "what was it that your name is?"),
    ("Before we begin I,", "I would like to know where you work."),
    ("Good morning, I am calling because,", "I need to know the name of your company."),
    ("I have been trying to find out,", "who I am speaking with."),
    ("The thing is,", "nobody told me your name."),
    ("What I want to hear from you is,", "the place that you work for."),
)

# The user breaks in with one of the QUESTIONS, after one of these.
INTERJECTIONS = ("Wait,", "Sorry, wait,", "Hold on,", "Actually,", "No, stop,", "One moment,")
INTERRUPTED_QUESTIONS = ("help", "place", "name")
BREAKING_QUESTIONS = ("name", "place", "robot", "how")

STORY_OPENINGS = (
    "Let me tell you what happened to me yesterday.",
    "You will not believe the week I have had.",
    "I want to explain my problem from the beginning.",
    "So this is a rather long story.",
)
STORY_WHO = (
    "my neighbour", "my old aunt", "the postman", "our landlord", "a friend from work", "the woman next door",
    "my little brother", "the man from the garage",
)  # fmt: skip
STORY_DID = (
    "came to the door with", "was looking everywhere for", "told me all about", "had forgotten", "finally brought back",
    "wanted to sell", "kept talking about", "could not find",
)  # fmt: skip
STORY_WHAT = (
    "the keys of the green car", "a heavy box of books", "a letter from the city", "the broken washing machine",
    "two tickets for the concert", "the blue winter coat", "a map of the old town", "the bill for the repairs",
)  # fmt: skip
STORY_WHEN = (
    "early in the morning", "just before lunch", "while it was raining", "and I was still half asleep",
    "although it was much too late", "for the third time this month",
)  # fmt: skip

# A second talker in the room, and what voice prompts say.
ASIDES = (
    "The train to the coast leaves from platform nine at a quarter past six.",
    "Put the plates over there, and then we can start with the soup.",
    "She said that the meeting was moved, but nobody wrote it down.",
    "In the evening the wind turned and the boats came home.",
    "He counted the chairs twice, and there was still one missing.",
    "The garden behind the house is full of tall yellow flowers.",
)


def normalized(text: str) -> list[str]:
    """The bare words of a sentence: numbers spelled out (from 1000 on digit by digit), lower case, no punctuation."""
    text = re.sub(r"\d+", lambda found: f" {_in_words(found[0])} ", text)
    return re.findall(r"[a-z']+", text.lower())


def _in_words(digits: str) -> str:
    parts = [digits] if int(digits) < 1000 else list(digits)
    return " ".join(number_words(int(part)) for part in parts)


_NUMBER_WORDS = frozenset(word for number in range(1000) for word in number_words(number).split())


def says(text: str, phrase: str) -> bool:
    """Whether a phrase occurs word for word; a number not as a part of another one."""
    words, wanted = normalized(text), normalized(phrase)
    is_number = bool(wanted) and _NUMBER_WORDS.issuperset(wanted)
    for at in range(len(words) - len(wanted) + 1):
        end = at + len(wanted)
        around = {*words[max(0, at - 1) : at], *words[end : end + 1]}
        if words[at:end] == wanted and not (is_number and around & _NUMBER_WORDS):
            return True
    return False


@cache
def _trained_on() -> frozenset[str]:
    """The sentences of training as bare words, some ten thousand."""
    said = [text for _, text in trained.user_sentences()]
    said += [" ".join(halves) for kind in trained.TURNS for halves in trained.led_in_questions(kind)]
    return frozenset(" ".join(normalized(text)) for text in said)


def held_out(sentences: Iterable[str], as_spoken: Callable[[str], str] = str) -> list[str]:
    """Those of the sentences that training never speaks; raises InputError when none is left.

    ``as_spoken``: a sentence as training would say it, where it has a slot.
    """
    sentences = list(sentences)
    left = [text for text in sentences if " ".join(normalized(as_spoken(text))) not in _trained_on()]
    if not left:
        raise InputError(f"training speaks all of these now, write new ones in {__name__}: {sentences}")
    return left


def question(rng: random.Random, kinds: Sequence[str] = tuple(QUESTIONS)) -> tuple[str, str]:
    """A kind and one of its sentences."""
    kind = rng.choice(list(kinds))
    return kind, rng.choice(held_out(QUESTIONS[kind]))


def story(rng: random.Random, sentences: int) -> list[str]:
    """Someone tells something, with ends of sentences at which one nods."""
    told = [rng.choice(STORY_OPENINGS)]
    for _ in range(sentences - 1):
        parts = (rng.choice(part) for part in (STORY_WHO, STORY_DID, STORY_WHAT, STORY_WHEN))
        text = " ".join(parts) + "."
        told.append(text[0].upper() + text[1:])
    return told
