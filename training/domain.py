"""The domain nano is trained on: names, places, trades, prices, hours, and prompts that tell some of them.

What is said there is in `training.sentences`.
"""

import hashlib
import random
from dataclasses import dataclass, replace
from operator import itemgetter

from personaplex.errors import InputError
from personaplex.text.prompt import SYSTEM_TAG
from training import orders

NAMES = tuple(
    """Anna Ben Carla David Emma Frank Grace Henry Iris Jack Karen Leo Maria Nathan Olivia Peter
    Quentin Rachel Samuel Tina Ursula Victor Wendy Xavier Yolanda Zachary Alice Brian Clara Daniel
    Elena Felix Gloria Howard Isabel Jason Kevin Laura Martin Nora Oscar Paula Richard Sophia Thomas
    Veronica Walter Amanda Boris Cynthia Dennis Edith Gordon Helen Julia Kenneth Linda Monica Owen
    Sanni""".split()
)

# No piece of the vocabulary is one of these, so they are spelled in several: from them it is learned to say a name
# that training never heard.
SPELLED_NAMES = tuple(
    """Aaron Abigail Adam Adrian Agatha Alan Albert Alexander Alma Amos Andrea Andrew Angela Anton Archie Arnold
    Arthur Astrid Audrey August Barbara Barney Beatrice Bella Benedict Bernard Bertha Beth Betty Bill Blanche Bob
    Bonnie Bridget Bruce Burton Caleb Calvin Camilla Carmen Caroline Casper Catherine Cecil Charles Charlotte Chester
    Chloe Christine Claudia Clayton Clifford Clive Connor Cora Craig Curtis Daisy Darren Dean Deborah Delia Diana
    Dominic Donna Doris Dorothy Douglas Duncan Dylan Earl Edgar Edmund Edward Eleanor Eli Eliza Ella Ellen Eric Ernest
    Erwin Ethan Eugene Eva Evelyn Faith Fanny Fiona Flora Florence Francis Fred Freda Gail Gavin George Gerald Gilbert
    Gina Glenda Grant Greta Gus Guy Gwen Harold Harriet Harvey Hazel Heather Heidi Herbert Hilda Homer Hope Hubert
    Hugh Hugo Ida Ingrid Irene Isaac Isaiah Ivy Jacob James Jane Janet Jasper Jean Jeffrey Jenny Jeremy Jesse Jill
    Joan Joel John Jonas Jordan Joseph Josh Joyce Judith Julian June Justin Kate Keith Kelly Kirk Kurt Lance Larry
    Lawrence Leah Leonard Leslie Lewis Lillian Lloyd Lola Lorenzo Louis Louise Lucas Lucy Luke Mabel Madeline Magnus
    Malcolm Margaret Marian Mark Marlene Marsha Martha Matthew Max Megan Melissa Michael Mildred Miles Miriam Molly
    Morris Muriel Nancy Naomi Natalie Neil Nellie Nicholas Nicole Nigel Nina Noah Noel Norman Oliver Opal Oswald Otis
    Pamela Patrick Paul Pearl Percy Philip Phoebe Phyllis Polly Ralph Ramona Ray Rebecca Regina Rex Rita Robert
    Robin Roger Roland Ronald Rosa Rosemary Roy Ruby Rufus Russell Ruth Sally Sandra Sarah Scott Sebastian Serena
    Seth Sheila Sidney Silas Simon Stanley Stephen Steve Stuart Susan Sylvia Tanya Ted Teresa Terry Tiffany Tim Tobias
    Todd Tom Tony Tracy Trevor Vera Vernon Vincent Viola Violet Virgil Virginia Vivian Wallace Wanda Warren Wesley
    Wilbur Wilma Winston Yvonne Zelda""".split()
)

PLACES = (
    "First Neuron Bank",
    "River Credit Union",
    "Golden Gate Savings",
    "Harbor Medical Office",
    "Green Valley Clinic",
    "Sunrise Dental Care",
    "Jerusalem Shakshuka",
    "Golden Noodle Kitchen",
    "Blue Lantern Cafe",
    "Mountain Pizza House",
    "City Sanitation",
    "Clean Street Services",
    "Silver Drone Rentals",
    "Falcon Air Rentals",
    "Mars Station",
    "Orion Space Agency",
    "Moon Base Seven",
    "Oakwood School",
    "Maple Language School",
    "Northern University",
    "Velvet Hotel",
    "Crystal Garden Museum",
    "Thunder Electric",
    "Pacific Travel",
    "Diamond Insurance",
    "Rocket Bicycle Shop",
    "Forest Library",
    "Purple Tiger Theater",
    "Winter Sports Club",
    "Kingdom Furniture",
    "Panda Music Store",
    "Sunny Corner Radio",
)

# Where coffee is ordered (`training.orders`); only the first is a place of `PLACES`.
CAFES = ("Blue Lantern Cafe", "Corner Coffee House", "Morning Coffee Bar", "Old Town Espresso")

# The trade of a place, told by a word of its name, and what is sold there. The last one fits any place.
COFFEE_TRADE = "a coffee shop"
TRADES = {
    COFFEE_TRADE: (
        ("Cafe", "Coffee", "Espresso"),
        ("a cup of tea", "a cheese sandwich", "a chocolate cookie"),
    ),
    "a bank": (
        ("Bank", "Credit", "Savings", "Insurance"),
        ("a gold card", "a monthly account", "the travel insurance"),
    ),
    "a clinic": (("Medical", "Clinic", "Dental"), ("a short visit", "a full examination", "a vaccination")),
    "a restaurant": (
        ("Shakshuka", "Kitchen", "Pizza"),
        ("a bowl of noodles", "a small pizza", "a glass of juice", "the daily menu"),
    ),
    "a waste service": (("Sanitation", "Street"), ("a large bin", "a bag of garden waste", "a new container")),
    "a rental company": (("Rentals",), ("a small drone", "a big drone", "a flying lesson")),
    "a school": (("School", "University"), ("a language course", "a private lesson", "the winter course")),
    "a hotel": (("Hotel", "Travel"), ("a double room", "a weekend trip", "a bus tour")),
    "a shop": (("Shop", "Furniture", "Store", "Electric"), ("a repair", "a new lamp", "a bicycle", "a wooden table")),
    "a place to visit": ((), ("a ticket", "a family ticket", "a guided tour", "a year card")),
}
GOODS = tuple(good for _, goods in TRADES.values() for good in goods)

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
_TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()


def number_words(number: int) -> str:
    """0 … 999 in words: "one hundred five"; raises InputError beyond."""
    if not 0 <= number < 1000:
        raise InputError(f"{number} cannot be spelled; 0 to 999 can")
    if number < 20:
        return _ONES[number]
    if number < 100:
        rest = number % 10
        return _TENS[number // 10] + (f" {_ONES[rest]}" if rest else "")
    rest = number % 100
    return f"{_ONES[number // 100]} hundred" + (f" {number_words(rest)}" if rest else "")


PRICES = tuple(number_words(dollars) for dollars in range(2, 100))
# Training never says or hears of these, though of all their words.
HELD_OUT_PRICES = tuple(price for price in PRICES if " " in price)[6::10]
TRAINED_PRICES = tuple(price for price in PRICES if price not in HELD_OUT_PRICES)
HOURS = tuple(number_words(hour) for hour in range(3, 12))
# What users have repeated after them.
PHRASES = (
    "Good morning", "Happy birthday", "Welcome home", "See you tomorrow", "Nice to meet you", "I love coffee",
    "Hello world", "Good luck", "Have a good evening", "The sun is shining", "One two three", "Merry Christmas",
)  # fmt: skip
SLOT_VALUES = {  # all that can fill a sentence's slots
    "name": NAMES,
    "place": (*PLACES, *CAFES[1:]),
    "price": PRICES,
    "hour": HOURS,
    "phrase": PHRASES,
}

# The first is the one the project's personas use, and the commonest in training.
PROMPTS = (
    "You work for {place} and your name is {name}.",
    "You work for {place} which is {trade} and your name is {name}.",
    "Your name is {name} and you work for {place}.",
    "You are {name} and you work for {place}.",
    "You are {name} from {place}.",
)
PROMPT_WEIGHTS = (5, 4, 2, 1, 1)

# Sentences a prompt may carry besides; the model learns to read past them.
PROMPT_EXTRAS = (
    "You are a wise and friendly teacher.",
    "You help customers with their accounts.",
    "You help patients with their appointments.",
    "You take orders for the restaurant.",
    "You answer questions about waste collection.",
    "You answer questions about renting drones.",
    "You are an astronaut on a long mission.",
    "You enjoy having a good conversation.",
    "You are polite and patient.",
    "You answer in short sentences.",
    "You take orders for coffee.",
)
EXTRA_SHARE = 0.25

FACTS_LABEL = "Information:"
PRICE_FACTS = ("{Good} costs {price} dollars.", "{Good} costs {price} dollars.", "{Good} is {price} dollars.")
HOUR_FACTS = ("Open until {hour} in the evening.", "Open until {hour} in the evening.", "We close at {hour}.")
# In mid-conversation, where they take the place of what the prompt told.
TOLD_PRICES = (*PRICE_FACTS, "{Good} costs {price} dollars today.")
TOLD_HOURS = (*HOUR_FACTS, "Today we close at {hour}.")
PRICE_SHARE, HOUR_SHARE = 0.7, 0.65  # of the prompts, those that tell it
HELD_OUT_PER_MILLE = 80


@dataclass(frozen=True)
class Role:
    """The agent's role. `price` (of `good`) and `hour` are words, "" where the prompt does not tell them."""

    name: str
    place: str
    good: str = ""
    price: str = ""
    hour: str = ""

    def value(self, slot: str) -> str:
        """The value of a slot in the agent's sentences."""
        return getattr(self, slot)

    @property
    def takes_orders(self) -> bool:
        """Whether coffee can be ordered there."""
        return trade_of(self.place)[0] == COFFEE_TRADE


def trade_of(place: str) -> tuple[str, tuple[str, ...]]:
    """A place's trade and its goods."""
    for trade, (words, goods) in TRADES.items():
        if not words or any(word in place.split() for word in words):
            return trade, goods
    raise ValueError(f"no trade fits {place!r}; give the last of TRADES no words")


def is_held_out(name: str, place: str) -> bool:
    """Whether this persona is kept out of training (about 8 % of the combinations)."""
    digest = hashlib.sha256(f"{name}|{place}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % 1000 < HELD_OUT_PER_MILLE


def held_out_personas() -> list[tuple[str, str]]:
    """All (name, place) combinations that training never shows, in a fixed shuffled order."""
    pairs = [(name, place) for name in NAMES for place in PLACES if is_held_out(name, place)]
    random.Random(0).shuffle(pairs)
    return pairs


def with_facts(rng: random.Random, name: str, place: str, prices: tuple[str, ...] = TRAINED_PRICES) -> Role:
    """This persona with the price of something that is sold there, and an hour."""
    _, goods = trade_of(place)
    return Role(name, place, rng.choice(goods), rng.choice(prices), rng.choice(HOURS))


def random_role(rng: random.Random, good: str = "", cafe: bool = False) -> Role:
    """A role that may be trained on, some of its facts left open; its place sells `good`, where one is given.

    `cafe`: one that takes orders of coffee, whatever it sells besides.
    """
    places = list(CAFES) if cafe else [place for place in PLACES if good in ("", *trade_of(place)[1])]
    while True:
        name, place = rng.choice(NAMES), rng.choice(places)
        if not is_held_out(name, place):
            break
    role = with_facts(rng, name, place)
    sold = good if good in trade_of(place)[1] else role.good
    sold, price = (sold, role.price) if rng.random() < PRICE_SHARE else ("", "")
    return Role(name, place, sold, price, role.hour if rng.random() < HOUR_SHARE else "")


def changed(rng: random.Random, role: Role) -> tuple[Role, str]:
    """The role with another price or hour than before, and the sentence that tells it so, without tags."""
    if rng.random() < 0.5:
        hour = rng.choice([hour for hour in HOURS if hour != role.hour])
        return replace(role, hour=hour), rng.choice(TOLD_HOURS).format(hour=hour)
    good = role.good or rng.choice(trade_of(role.place)[1])
    price = rng.choice([price for price in TRAINED_PRICES if price != role.price])
    told = rng.choice(TOLD_PRICES).format(Good=good.capitalize(), price=price)
    return replace(role, good=good, price=price), told


_SYLLABLES = "ba ber can del do fen gar hol jo ka lan lu mar mi nor pel ra ros sal sen ta ton ul ver wi zan".split()


def _strange_word(rng: random.Random) -> str:
    return "".join(rng.choices(_SYLLABLES, k=rng.randint(2, 3)))


def as_stranger(rng: random.Random, role: Role) -> Role:
    """The same price and hour, told of a name, a place and a good that the vocabulary does not have as words."""
    known = rng.choice(rng.choice(PLACES).split())
    words = [_strange_word(rng).capitalize(), _strange_word(rng).capitalize(), known][rng.randrange(2) :]
    good = f"a {_strange_word(rng)}" if role.good else ""
    name = rng.choice(SPELLED_NAMES) if rng.random() < 0.5 else _strange_word(rng).capitalize()
    return replace(role, name=name, place=" ".join(words), good=good)


def role_prompt(role: Role, rng: random.Random | None = None) -> str:
    """A role as a text prompt, without tags; in the commonest wording where no `rng` is given."""
    one_of = rng.choice if rng else itemgetter(0)
    text = rng.choices(PROMPTS, PROMPT_WEIGHTS)[0] if rng else PROMPTS[0]
    trade, _ = trade_of(role.place)
    parts = [text.format(name=role.name, place=role.place, trade=trade)]
    if rng and rng.random() < EXTRA_SHARE:
        parts.insert(rng.randrange(2), rng.choice(PROMPT_EXTRAS))
    facts = []
    if role.price:
        facts.append(one_of(PRICE_FACTS).format(Good=role.good.capitalize(), price=role.price))
    if role.hour:
        facts.append(one_of(HOUR_FACTS).format(hour=role.hour))
    if rng and rng.random() < 0.3:
        facts.reverse()
    if facts and not (rng and rng.random() < 0.3):
        facts.insert(0, FACTS_LABEL)
    return " ".join(parts + facts)


def tagged(prompt: str) -> str:
    """A text prompt as the model gets it."""
    return f"{SYSTEM_TAG} {prompt} {SYSTEM_TAG}"


def content_words() -> set[str]:
    """The words that fill slots: every name, every word of a place, every number, what is ordered."""
    return {word for values in SLOT_VALUES.values() for value in values for word in value.split()} | orders.words()
