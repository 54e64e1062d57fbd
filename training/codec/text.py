"""Sentences for the codec's training: diverse words above all, with natural English beside them.

Words are drawn from pocketsphinx's pronouncing dictionary (130 000 words, names included), weighted
by its language model's unigrams, flattened so that rare words are common enough to be learned.
"""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
from pocketsphinx import LogMath, NGramModel, get_model_path

_WORD = re.compile(r"^[a-z][a-z']*[a-z]$")
_FLATTEN = 0.45  # exponent on a word's probability

_OPENERS = (
    "hello", "good morning", "well", "yes", "no", "thank you", "of course", "let me see", "sure", "hi there",
    "okay", "right", "sorry", "one moment please", "good evening", "that's great", "I understand", "actually",
)  # fmt: skip
_TEMPLATES = (
    "{opener}, this is {name} speaking.",
    "My name is {name} and I work for {name} {noun}.",
    "Can you tell me how much the {adjective} {noun} costs?",
    "The {noun} costs {number} dollars and {small} cents.",
    "I would like to {verb} the {noun} on {day} at {hour} {half}.",
    "We are open from {hour} in the morning until {hour} in the evening, except on {day}.",
    "{name} lives at {number} {name} street, in the city of {name}.",
    "Please {verb} your {noun} before {day}, {month} {small}.",
    "Do you have any {adjective} {noun} left?",
    "The {adjective} {noun} will {verb} the {noun} by {day}.",
    "My phone number is {digit} {digit} {digit}, {digit} {digit} {digit} {digit}.",
    "What is the {adjective} way to {verb} a {noun}?",
    "I think that {name} and {name} should {verb} it together.",
    "{opener}, how can I help you with your {noun} today?",
    "It was {number} degrees in {month}, and the {noun} was {adjective}.",
    "You said {word}, but I heard {word}.",
    "She could not {verb} because the {noun} was too {adjective}.",
    "Is it {word} or {word}?",
    "They {verb} {small} {noun} every {day}.",
    "Your order number is {number} {number}, {name}.",
    "{opener}.",
    "{word}.",
    "{word} and {word}.",
)
_VERBS = (
    "make take find bring change order cancel repair open close send visit read write learn drive buy sell carry "
    "paint watch follow remember forget answer call choose build clean cook join leave move need offer plan pull "
    "push reach return save show start stop study teach test throw touch travel turn use wait walk want wash wear"
).split()
_NOUNS = (
    "bank table window garden ticket engine house river doctor teacher market music letter camera dinner breakfast "
    "kitchen hospital school train airport flower bottle bicycle computer question answer account insurance battery "
    "package coffee bread cheese chicken salad orange apple water summer winter mountain village bridge church "
    "station island picture mirror jacket shoes paper pencil theater restaurant hotel office library museum machine "
    "weather story brother sister mother father friend neighbor captain lawyer soldier voice song number minute"
).split()
_ADJECTIVES = (
    "small large quick slow bright dark heavy light cheap expensive beautiful ugly young old warm cold friendly angry "
    "happy sad simple difficult strong weak early late quiet loud fresh dry wet deep narrow wide clean dirty empty "
    "full local national special regular yellow purple green blue white black broken perfect strange useful"
).split()
_DAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
_MONTHS = ("january february march april may june july august september october november december").split()


class SentenceMaker:
    """Draws sentences; the same `seed` draws the same ones."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._numpy = np.random.default_rng(seed)
        model = Path(get_model_path("en-us"))
        lines = (model / "cmudict-en-us.dict").read_text(encoding="utf-8").splitlines()
        self._words = [word for word in (line.split(" ", 1)[0] for line in lines if line) if _WORD.match(word)]
        log_math = LogMath()
        grams = NGramModel(None, log_math, str(model / "en-us.lm.bin"))
        weights = np.array([log_math.exp(grams.prob([word])) for word in self._words]) ** _FLATTEN
        self._cumulative = np.cumsum(weights / weights.sum())

    def _common(self, count: int) -> list[str]:
        picks = np.searchsorted(self._cumulative, self._numpy.random(count))
        return [self._words[min(pick, len(self._words) - 1)] for pick in picks]

    def _rare(self) -> str:
        return self._random.choice(self._words)

    def _template(self) -> str:
        def fill(match: re.Match) -> str:
            choose, number = self._random.choice, self._random.randrange
            kind = match.group(1)
            return {
                "opener": lambda: choose(_OPENERS),
                "name": self._rare,
                "word": lambda: self._common(1)[0],
                "noun": lambda: choose(_NOUNS),
                "verb": lambda: choose(_VERBS),
                "adjective": lambda: choose(_ADJECTIVES),
                "day": lambda: choose(_DAYS),
                "month": lambda: choose(_MONTHS),
                "hour": lambda: str(1 + number(12)),
                "half": lambda: choose(("o'clock", "thirty", "fifteen", "forty five")),
                "small": lambda: str(2 + number(28)),
                "number": lambda: str(number(10 ** choose((2, 3, 4)))),
                "digit": lambda: str(number(10)),
            }[kind]()

        sentence = re.sub(r"\{(\w+)\}", fill, self._random.choice(_TEMPLATES))
        return sentence[0].upper() + sentence[1:]

    def sentence(self) -> str:
        """Half random words by their flattened frequency, a third templates, the rest any word of the dictionary."""
        draw = self._random.random()
        if draw < 0.35:
            return self._template()
        count = self._random.randint(3, 9)
        words = self._common(count) if draw < 0.85 else [self._rare() for _ in range(count)]
        if count > 5 and self._random.random() < 0.5:
            words[self._random.randint(1, count - 3)] += ","
        return " ".join(words) + self._random.choice((".", ".", "?"))
