"""The small world nano lives in: who it can be, where it can work, what is said.

Everything here is plain text. The agent's sentences carry ``{name}`` and ``{place}`` and are used
exactly as written in the text stream; the user's sentences are only ever spoken.
"""

import hashlib
import random
import re
from dataclasses import dataclass
from functools import cache

NAMES = tuple(
    """Anna Ben Carla David Emma Frank Grace Henry Iris Jack Karen Leo Maria Nathan Olivia Peter
    Quentin Rachel Samuel Tina Ursula Victor Wendy Xavier Yolanda Zachary Alice Brian Clara Daniel
    Elena Felix Gloria Howard Isabel Jason Kevin Laura Martin Nora Oscar Paula Richard Sophia Thomas
    Veronica Walter Amanda Boris Cynthia Dennis Edith Gordon Helen Julia Kenneth Linda Monica Owen
    Sanni""".split()
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

SYSTEM_TAG = "<system>"

# The first is the one the project's personas use, and the commonest in training.
PROMPTS = (
    "You work for {place} and your name is {name}.",
    "Your name is {name} and you work for {place}.",
    "You are {name} and you work for {place}.",
    "You are {name} from {place}.",
)
PROMPT_WEIGHTS = (5, 2, 1, 1)

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
)


@dataclass(frozen=True)
class Turn:
    """What the user may ask, and what the agent says to it."""

    questions: tuple[str, ...]
    answers: tuple[str, ...]
    weight: float  # share of the turns in a dialogue


GREETINGS = (
    "Hello, this is {name} from {place}. How can I help you?",
    "Hi, this is {name} from {place}. What can I do for you?",
)

TURNS = {
    "name": Turn(
        (
            "What is your name?",
            "What's your name?",
            "Can you tell me your name?",
            "Could you tell me your name, please?",
            "Tell me your name.",
            "May I have your name?",
            "May I ask your name?",
            "And what is your name?",
            "Please tell me your name.",
            "What was your name again?",
            "Sorry, what is your name?",
            "What are you called?",
            "Who are you?",
            "Who is this?",
            "Who am I speaking to?",
            "Who am I talking to?",
            "With whom am I speaking?",
            "Hello, what is your name?",
            "Hi, who is this?",
            "Hello, who am I speaking to?",
        ),
        ("My name is {name}.",),
        4.0,
    ),
    "place": Turn(
        (
            "Where do you work?",
            "Who do you work for?",
            "Which company do you work for?",
            "What company is this?",
            "What company do you work for?",
            "Can you tell me where you work?",
            "Could you tell me where you work, please?",
            "Tell me where you work.",
            "Please tell me where you work.",
            "And where do you work?",
            "And who do you work for?",
            "Sorry, where do you work?",
            "Where are you working?",
            "What is your company called?",
            "What place is this?",
            "Which place have I called?",
            "Where have I called?",
            "Hello, where do you work?",
            "Hi, which company is this?",
            "What is the name of your company?",
        ),
        ("I work for {place}.",),
        4.0,
    ),
    "how": Turn(
        (
            "How are you?",
            "How are you today?",
            "How are you doing?",
            "Hello, how are you?",
            "Hi, how are you doing today?",
            "And how are you?",
            "How is it going?",
            "How do you feel today?",
        ),
        ("I am fine, thank you.",),
        1.2,
    ),
    "thanks": Turn(
        (
            "Thank you.",
            "Thank you very much.",
            "Thanks.",
            "Thanks a lot.",
            "Great, thank you.",
            "Okay, thanks.",
            "That helps, thank you so much.",
            "Perfect, thanks a lot.",
        ),
        ("You are welcome.",),
        1.2,
    ),
    "bye": Turn(
        (
            "Goodbye.",
            "Bye.",
            "Bye bye.",
            "Okay, goodbye.",
            "See you later.",
            "Have a nice day, goodbye.",
            "That was all, goodbye.",
            "I have to go now, bye.",
        ),
        ("Goodbye, have a nice day.",),
        1.2,
    ),
    "robot": Turn(
        (
            "Are you a robot?",
            "Are you a machine?",
            "Are you human?",
            "Are you a real person?",
            "Am I talking to a machine?",
            "Are you a computer?",
        ),
        ("I am a small voice model.",),
        1.0,
    ),
    "help": Turn(
        (
            "What can you do?",
            "Can you help me?",
            "What can you do for me?",
            "I need some help.",
            "Could you help me, please?",
            "How can you help me?",
        ),
        ("I can tell you my name and where I work.",),
        1.0,
    ),
    "other": Turn(
        (
            "The weather was cold and the river was frozen.",
            "I would like to order two large pizzas.",
            "My brother bought a yellow car last summer.",
            "Seven, four, nine, two, one.",
            "There is a problem with the kitchen window.",
            "I lost my keys on the train this morning.",
            "The children are playing football in the garden.",
            "We are planning a long trip to the mountains.",
            "Please send the package before Thursday evening.",
            "It takes about twenty minutes to get there.",
            "She opened the door and looked outside.",
            "I want to check the balance of my account.",
            "The doctor said that everything looks good.",
            "Maybe we should paint the wall green.",
            "He never eats breakfast before eleven.",
            "My appointment was moved to the first of April.",
        ),
        ("Sorry, could you say that again?",),
        0.8,
    ),
}

# Said when the user opens with nothing but a greeting; the agent then greets as usual.
HELLOS = ("Hello.", "Hi.", "Hello?", "Hi there.", "Good morning.", "Good evening.", "Hey.")

# What a voice prompt says: everyday words that have nothing to do with the persona.
VOICE_SUBJECTS = (
    "the old captain", "my sister", "a young farmer", "the tall engineer", "our neighbor", "the little dog",
    "a group of students", "the new manager", "her cousin", "every visitor", "the quiet painter", "an honest judge",
)  # fmt: skip
VOICE_VERBS = (
    "walked slowly across", "carefully described", "was looking for", "wanted to see", "always remembered",
    "took a picture of", "wrote a letter about", "never forgot", "heard a story about", "returned to",
)  # fmt: skip
VOICE_OBJECTS = (
    "the bridge near the station", "a small wooden boat", "the empty market square", "a field of red flowers",
    "the castle on the hill", "an ancient stone wall", "the light above the water", "a box of yellow apples",
    "the last page of the book", "a narrow path through the trees", "the sound of distant bells",
    "warm bread and butter",
)  # fmt: skip

HELD_OUT_PER_MILLE = 80


def is_held_out(name: str, place: str) -> bool:
    """Whether this persona is kept out of training (about 8 % of the combinations)."""
    digest = hashlib.sha256(f"{name}|{place}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % 1000 < HELD_OUT_PER_MILLE


def held_out_personas() -> list[tuple[str, str]]:
    """All (name, place) combinations that training never shows, in a fixed shuffled order."""
    pairs = [(name, place) for name in NAMES for place in PLACES if is_held_out(name, place)]
    random.Random(0).shuffle(pairs)
    return pairs


def system_prompt(rng: random.Random, name: str, place: str, plain: bool = False) -> str:
    """A persona as a tagged text prompt; ``plain`` takes the commonest phrasing."""
    text = PROMPTS[0] if plain else rng.choices(PROMPTS, PROMPT_WEIGHTS)[0]
    text = text.format(name=name, place=place)
    if not plain and rng.random() < 0.3:
        extra = rng.choice(PROMPT_EXTRAS)
        text = f"{extra} {text}" if rng.random() < 0.5 else f"{text} {extra}"
    return f"{SYSTEM_TAG} {text} {SYSTEM_TAG}"


def voice_text(rng: random.Random) -> str:
    """One everyday sentence for a voice prompt."""
    words = f"{rng.choice(VOICE_SUBJECTS)} {rng.choice(VOICE_VERBS)} {rng.choice(VOICE_OBJECTS)}."
    return words[0].upper() + words[1:]


def agent_templates() -> list[tuple[str, str]]:
    """(kind, sentence with slots) of everything the agent ever says."""
    said = [("greet", text) for text in GREETINGS]
    return said + [(kind, text) for kind, turn in TURNS.items() for text in turn.answers]


def user_sentences() -> list[tuple[str, str]]:
    """(kind, sentence) of everything the user ever says in training."""
    said = [("hello", text) for text in HELLOS]
    return said + [(kind, text) for kind, turn in TURNS.items() for text in turn.questions]


def text_tokens(text: str) -> list[str]:
    """Split into words with their punctuation apart: "Hi, I" -> ["Hi", ",", "I"]."""
    return re.findall(r"<\w+>|[\w'<>]+|[^\w\s]", text)


def spoken_words(text: str) -> list[str]:
    """The bare lower-case words of a sentence, as a recogniser reports them."""
    return re.findall(r"[a-z']+", text.lower())


def content_words() -> set[str]:
    """The words a persona fills in: every name and every word of a place."""
    return {*NAMES, *(word for place in PLACES for word in place.split())}


def tokenizer_corpus() -> list[str]:
    """Every sentence of the domain once, for training the tokenizer."""
    lines = [text for _, text in agent_templates() + user_sentences()] + list(PROMPTS) + list(PROMPT_EXTRAS)
    filled = [t.format(name=name, place=PLACES[i % len(PLACES)]) for i, name in enumerate(NAMES) for t in lines]
    return list(dict.fromkeys(filled + [f"{SYSTEM_TAG} {place} {SYSTEM_TAG}" for place in PLACES]))


@cache
def user_vocabulary() -> dict[str, int]:
    """Every word a user says in training, with a number."""
    words = {word for _, text in user_sentences() for word in spoken_words(text)}
    return {word: number for number, word in enumerate(sorted(words))}
