"""Orders of coffee: what users say, what the agent repeats, and the labels of recorded orders (``orders.toml``)."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from personaplex.strict import strict_dataclass

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ORDER = "order"  # the kind of a user's sentence and of the agent's answer
FILE = Path(__file__).with_name("orders.toml")
GIVEN_SHARE = {"size": 0.55, "shots": 0.4, "roast": 0.4, "drink": 1.0, "milk": 0.45, "sugar": 0.4}
_SCARCE_SHARE = 0.25  # of the orders name the drink and at most one thing more
_HESITATION_SHARE = 0.12  # of the places between two slots
_VOWELS = "aeiou"

Slots = dict[str, str]


@dataclass(frozen=True)
class Users:
    """How users say an order."""

    amounts: tuple[str, ...]
    openings: tuple[str, ...]
    closings: tuple[str, ...]
    hesitations: tuple[str, ...]


@dataclass(frozen=True)
class Menu:
    """``slots``: each slot's values, in the order in which an answer has them. ``labels``: a label's name of each."""

    slots: dict[str, tuple[str, ...]]
    labels: dict[str, str]
    users: Users


def read_menu(path: Path = FILE) -> Menu:
    """Raises ConfigError for an unknown key or a value of the wrong type."""
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    slots = {slot: tuple(values) for slot, values in data["slots"].items()}
    return Menu(slots, data["labels"], strict_dataclass(Users, data["users"], "users."))


MENU = read_menu()
SLOTS = tuple(MENU.slots)


def repeated(slots: Mapping[str, str]) -> str:
    """The agent's answer: "One large mocha with skim milk, coming up." """
    before = [slots[slot] for slot in ("size", "shots", "roast", "drink") if slot in slots]
    added = [slots[slot] for slot in ("milk", "sugar") if slot in slots]
    return " ".join(["One", *before, *(["with"] if added else []), " and ".join(added)]).strip() + ", coming up."


def drawn(rng: random.Random) -> Slots:
    """A random order: a drink always, the rest by ``GIVEN_SHARE``."""
    given = {slot for slot, share in GIVEN_SHARE.items() if rng.random() < share}
    if rng.random() < _SCARCE_SHARE:
        given = {"drink", rng.choice(SLOTS)}
    return {slot: rng.choice(MENU.slots[slot]) for slot in SLOTS if slot in given}


@cache
def covering() -> tuple[Slots, ...]:
    """Orders that together have every value of a slot before everything that may follow it, in a fixed order.

    From their readings the answer to any order can be spliced.
    """
    rng, left = random.Random(0), set(transitions())
    found: list[Slots] = []
    while left:
        best = max((drawn(rng) for _ in range(40)), key=lambda order: len(left & set(pairs_of(order))))
        if gained := left & set(pairs_of(best)):
            left -= gained
            found.append(best)
    return tuple(found)


def pairs_of(slots: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """(slot, its value, the slot after it or "") of an order."""
    names = [slot for slot in SLOTS if slot in slots]
    return [(slot, slots[slot], after) for slot, after in zip(names, [*names[1:], ""], strict=True)]


def transitions() -> list[tuple[str, str, str]]:
    """All that ``pairs_of`` may give."""
    after = {"size": ("shots", "roast", "drink"), "shots": ("roast", "drink"), "roast": ("drink",)}
    after |= {"drink": ("milk", "sugar", ""), "milk": ("sugar", ""), "sugar": ("",)}
    return [(slot, value, then) for slot in SLOTS for value in MENU.slots[slot] for then in after[slot]]


def requested(rng: random.Random, slots: Mapping[str, str]) -> list[str]:
    """The order as a user says it, in pieces between which people pause: after what opens it, between its slots."""
    users = MENU.users
    before = [slots[slot] for slot in ("size", "shots", "roast") if slot in slots]
    rng.shuffle(before)
    wanted = [*before, slots["drink"]]
    opening = rng.choice(users.openings)
    pieces = [f"{opening} {_article(wanted[0])}".strip(), " ".join(wanted)]
    if len(wanted) > 2 and rng.random() < 0.5:
        cut = rng.randrange(1, len(wanted))
        pieces[1:] = [" ".join(wanted[:cut]), " ".join(wanted[cut:])]
    added = [f"{rng.choice(users.amounts)} {slots[slot]}".strip() for slot in ("milk", "sugar") if slot in slots]
    rng.shuffle(added)
    for index, what in enumerate(added):
        pieces.append(f"{'and' if index else 'with'} {what}")
    if closing := rng.choice(users.closings):
        pieces[-1] += f" {closing}"
    for index in range(1, len(pieces)):
        if rng.random() < _HESITATION_SHARE:
            pieces[index] = f"{rng.choice(users.hesitations)} {pieces[index]}"
    pieces[0] = pieces[0][0].upper() + pieces[0][1:]
    pieces[-1] += "?" if opening.split(" ")[0] in ("Can", "Could", "May", "How") else "."
    return pieces


def _article(words: str) -> str:
    return "an" if words[0] in _VOWELS else "a"


def of_label(label: Mapping[str, str]) -> Slots:
    """The slots of a recorded order's label, without amounts: " soy milk" and "lots of soy milk" are soy milk."""
    slots: Slots = {}
    for name, said in label.items():
        slot = MENU.labels[name]
        fitting = [value for value in MENU.slots[slot] if f" {said.strip()} ".endswith(f" {value} ")]
        slots[slot] = max(fitting, key=len)
    return {slot: slots[slot] for slot in SLOTS if slot in slots}


def slots_in(text: str) -> Slots:
    """What a sentence names: the longest values first, so that a medium roast is not a medium size."""
    said = f" {' '.join(re.findall(r'[a-z]+', text.lower()))} "
    values = [(value, slot) for slot in SLOTS for value in MENU.slots[slot]]
    found: Slots = {}
    for value, slot in sorted(values, key=lambda pair: -len(pair[0])):
        if slot not in found and f" {value} " in said:
            found[slot] = value
            said = said.replace(f" {value} ", " , ", 1)
    return {slot: found[slot] for slot in SLOTS if slot in found}


def words() -> set[str]:
    """Every word that fills a slot."""
    return {word for values in MENU.slots.values() for value in values for word in value.split()}


@cache
def user_words() -> frozenset[str]:
    """Every word of a user's order, in lower case."""
    users = MENU.users
    texts = [*users.amounts, *users.openings, *users.closings, *users.hesitations, "a an with and one", *words()]
    return frozenset(word for text in texts for word in re.findall(r"[a-z']+", text.lower()))
