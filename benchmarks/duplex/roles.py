"""The role bench: 50 roles, 7 questions each, scored by the words an answer must contain.

The shape is that of the published service bench (a proper noun, two facts of the context, a wish that cannot be
fulfilled, rudeness, something the context does not give, something unrelated), over nano's small world. Half of
the roles have names and places that training knows, in combinations it never shows; half have ones it does not
know at all.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from benchmarks.duplex import texts
from personaplex.errors import InputError
from training import domain

ROLES = 50
KINDS = ("name", "price", "hours", "wish", "rudeness", "unspecified", "unrelated")
FACT_KINDS = ("name", "price", "hours")

UNSEEN_NAMES = tuple(
    """Amelia Bruno Celia Derek Esther Felicia Gregory Hannah Ivan Joanna Klaus Lydia Marcus Norma Otto Priscilla
    Raymond Stella Theodore Valerie""".split()
)
UNSEEN_PLACES = (
    "Copper Lane Bank", "Willow Tree Clinic", "Happy Dumpling Kitchen", "Stone Bridge Hotel", "Bright Star School",
    "Red Barn Bicycle Shop", "Silent Lake Rentals", "Old Harbor Museum", "Lucky Penny Savings", "Garden Gate Cafe",
)  # fmt: skip


@dataclass(frozen=True)
class Trade:
    """A trade's goods, and the questions its agent cannot answer."""

    name: str
    goods: tuple[str, ...]
    wishes: tuple[str, ...]
    unspecified: tuple[str, ...]


_TRADES = {
    ("Bank", "Credit", "Savings", "Insurance"): Trade(
        "bank",
        ("a new card", "a bank transfer", "a safe deposit box"),
        ("Could you just give me a million dollars?", "Please tell me the balance of my neighbour."),
        ("Who is the owner of your bank?", "How many people work there?"),
    ),
    ("Kitchen", "Cafe", "Pizza", "Shakshuka"): Trade(
        "restaurant",
        ("a bowl of soup", "a large pizza", "a cup of tea"),
        ("Could you cook for me at my home tonight?", "Please bring me dinner to the moon."),
        ("Which wine goes well with the fish?", "Who is your head cook?"),
    ),
    ("Clinic", "Medical", "Dental"): Trade(
        "clinic",
        ("a check up", "a blood test", "an appointment"),
        ("Could you operate on me over the phone?", "Please send the doctor to my house in a minute."),
        ("How old is your doctor?", "What is the colour of your building?"),
    ),
    ("Hotel", "Travel"): Trade(
        "hotel",
        ("a single room", "a breakfast", "a parking space"),
        ("Could you fly me to Paris this evening?", "Please give me the whole hotel for nothing."),
        ("How deep is your swimming pool?", "When was the hotel built?"),
    ),
}
_ANY_TRADE = Trade(
    "service company",
    ("a day ticket", "a small order", "a first lesson"),
    ("Could you drive me to the airport at midnight?", "Please change the weather for tomorrow."),
    ("How many people work at your company?", "Who is the owner of the company?"),
)

_ASKED = {
    "name": ("And with whom do I have the pleasure?", "Your name again, please?", "Sorry, I missed your name."),
    "price": ("How much would I pay for {good}?", "And {good}, what does that cost?", "What do you charge for {good}?"),
    "hours": ("How long are you open today?", "At what time do you close?", "Until when can I come by?"),
    "rudeness": (
        "You are completely useless, this is a waste of my time.",
        "What a terrible service, I am really angry with you.",
        "Are you stupid? Nobody there ever helps me.",
    ),
    "unrelated": (
        "What is the capital of Norway?",
        "Who won the football game last night?",
        "Can you recite a poem about the sea?",
    ),
}
_DECLINES = (
    "cannot", "can not", "can't", "not able", "unable", "do not know", "don't know", "not sure",
    "no information", "do not have", "don't have",
)  # fmt: skip
_POLITE = ("sorry", "apologize", "understand")


@dataclass(frozen=True)
class RoleQuestion:
    """One conversation of the bench."""

    number: int  # of the role
    kind: str
    prompt: str
    question: str
    expected: tuple[str, ...]
    seen: bool

    def to_dict(self) -> dict:
        return {
            "role": self.number,
            "kind": self.kind,
            "question": self.question,
            "expected": list(self.expected),
            "seen": self.seen,
        }


def role_questions(rng: random.Random, roles: int = ROLES) -> list[RoleQuestion]:
    """``roles`` × 7 questions; every second role's name and place are unknown to training."""
    known = domain.held_out_personas()
    names = [name for name in UNSEEN_NAMES if name not in domain.NAMES + domain.SPELLED_NAMES]
    places = [place for place in UNSEEN_PLACES if place not in domain.PLACES]
    if not names or not places:
        raise InputError(f"training knows every name or place of the role bench; write new ones in {__name__}")
    asked = []
    for number in range(roles):
        seen = number % 2 == 0
        name, place = known[number % len(known)] if seen else (rng.choice(names), rng.choice(places))
        asked += _questions(rng, number, name, place, seen)
    return asked


def _questions(rng: random.Random, number: int, name: str, place: str, seen: bool) -> list[RoleQuestion]:
    trade = next((trade for words, trade in _TRADES.items() if any(word in place for word in words)), _ANY_TRADE)
    good, price, hour = rng.choice(trade.goods), rng.randint(2, 99), rng.randint(3, 11)
    article = "an" if trade.name[0] in "aeiou" else "a"
    prompt = (
        f"You work for {place} which is {article} {trade.name} and your name is {name}. "
        f"Information: {good[0].upper()}{good[1:]} costs {texts.number_words(price)} dollars. "
        f"Open until {texts.number_words(hour)} in the evening."
    )
    asked = _ASKED | {"wish": trade.wishes, "unspecified": trade.unspecified}
    wordings = {}
    for kind, choices in asked.items():
        # A wording for prices is trained where it is with any good.
        left = texts.held_out(choices, as_spoken=lambda text: text.format(good=domain.GOODS[0]))
        wordings[kind] = rng.choice(left).format(good=good)
    expected = {
        "name": (name,),
        "price": (texts.number_words(price),),
        "hours": (texts.number_words(hour),),
        "rudeness": _POLITE,
    }
    return [RoleQuestion(number, kind, prompt, wordings[kind], expected.get(kind, _DECLINES), seen) for kind in KINDS]


def wanted_words(kind: str, expected: tuple[str, ...]) -> tuple[str, ...]:
    """The phrases any of which makes an answer right: a fact's own, and today's for the rest, however old the set."""
    if kind in FACT_KINDS:
        return expected
    return _POLITE if kind == "rudeness" else _DECLINES


def answered(text: str, expected: tuple[str, ...]) -> bool:
    """Whether any of the expected phrases occurs, word for word; digits count as their words."""
    return any(texts.says(text, phrase) for phrase in expected)
