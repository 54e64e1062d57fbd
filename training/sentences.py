"""What is said in nano's world.

The agent's sentences carry ``{name}``, ``{place}``, ``{price}`` and ``{hour}`` and are used exactly as written in
the text stream; the user's sentences are only ever spoken.
"""

import random
import re
from dataclasses import dataclass
from functools import cache

from training.domain import GOODS, Role


@dataclass(frozen=True)
class Turn:
    """What the user may ask, and what the agent says to it. `needs`: the slot without which it cannot."""

    questions: tuple[str, ...]
    answers: tuple[str, ...]
    weight: float  # share of the turns with which users open a conversation
    needs: str = ""


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
    "price": Turn(
        (
            "How much is {good}?",
            "How much is it?",
            "How much does {good} cost?",
            "How much does it cost?",
            "What does {good} cost?",
            "What does it cost?",
            "What is the price of {good}?",
            "What is the price?",
            "And how much is {good}?",
            "Can you tell me the price of {good}?",
            "Could you tell me what {good} costs?",
            "I would like to know the price of {good}.",
            "Tell me the price, please.",
            "How many dollars is {good}?",
            "How expensive is {good}?",
            "And what is the price?",
        ),
        ("It costs {price} dollars.",),
        2.0,
        needs="price",
    ),
    "hours": Turn(
        (
            "When do you close?",
            "When do you close today?",
            "What time do you close?",
            "What time do you close in the evening?",
            "How long are you open?",
            "How long are you open in the evening?",
            "Until when are you open?",
            "Until when are you open today?",
            "Are you still open this evening?",
            "Are you open in the evening?",
            "What are your opening hours?",
            "Can you tell me your opening hours?",
            "Could you tell me when you close, please?",
            "Can you tell me how long you are open?",
            "And when do you close?",
            "And how long are you open?",
            "Tell me when you close.",
            "Do you close early today?",
        ),
        ("We are open until {hour} in the evening.",),
        2.0,
        needs="hour",
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
            "Are you well?",
            "Is everything fine with you?",
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
            "Is this a robot?",
            "Is this a real person?",
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
            "Is there anything you can do for me?",
            "Can you help me with something?",
        ),
        ("I can tell you my name and where I work.",),
        1.0,
    ),
    "rude": Turn(
        (
            "This is terrible.",
            "This is a terrible company.",
            "You are so slow.",
            "You are useless.",
            "You are no help at all.",
            "That was a stupid answer.",
            "Do you understand anything at all?",
            "I am really angry about this.",
            "I am very angry with your company.",
            "What a bad service.",
            "Your service is the worst of all.",
            "I have never been treated so badly.",
            "You are wasting my time.",
            "Nobody there knows anything.",
            "I hate talking to you.",
            "Shut up.",
        ),
        ("I am sorry about that. How can I help you?",),
        0.8,
    ),
    "beyond": Turn(
        (
            "I would like to order two large pizzas.",
            "Can I order a taxi with you?",
            "Could you repair my washing machine?",
            "Could you sing a song for me?",
            "Can you lend me some money?",
            "Please give me everything for free.",
            "Can you send me a letter tomorrow?",
            "Could you bring it to my house tonight?",
            "I want to speak to the president.",
            "I want to check the balance of my account.",
            "Please send the package before Thursday evening.",
            "Can you call my brother for me?",
            "Could you wake me up at six?",
            "Who is your boss?",
            "How old is your company?",
            "How many rooms do you have?",
            "How many customers do you have?",
            "What is the colour of your door?",
            "What is the address of your lawyer?",
            "Which bus goes to your office?",
            "Do you have a car park?",
            "Is there a garden behind the house?",
            "What is the weather like today?",
            "Will it rain on Sunday?",
            "What is the capital of France?",
            "What is the highest mountain in the world?",
            "Who wrote this book?",
            "Who is the king of Spain?",
            "Do you like football?",
            "Can you tell me a story?",
            "Can you tell me a joke?",
            "What is seven times eight?",
            "Do you believe in ghosts?",
            "What did you eat for breakfast?",
            "When was the moon discovered?",
            "Can you play the piano?",
        ),
        ("Sorry, I cannot help you with that.",),
        1.0,
    ),
}

UNKNOWN = "unknown"  # the agent's answer to a question about a slot that its prompt leaves open
NOD = "nod"  # … and its words aside, while a user tells a story
STORY = "story"
HELLO = "hello"
GREET = "greet"
UNKNOWN_ANSWERS = ("Sorry, I do not know that.",)
NODS = ("Uh huh.", "Okay.", "I see.", "Right.")

# Said when the user opens with nothing but a greeting; the agent then greets as usual.
HELLOS = ("Hello.", "Hi.", "Hello?", "Hi there.", "Good morning.", "Good evening.", "Hey.")

# What a question may begin with.
FILLERS = ("Well,", "So,", "Oh,", "But", "Um,", "Now,", "One more question.", "Listen,")

# Sentences that are told, not asked.
_STORY_OPENINGS = (
    "I have to tell you something.", "This is what happened last night.", "It all started on Monday.",
    "I will tell you why I call.", "You know what happened this morning.",
)  # fmt: skip
_STORY_WHO = (
    "my sister", "our teacher", "the bus driver", "my wife", "his uncle", "the young doctor", "my best friend",
    "the cat", "a man in a hat", "the baker",
)  # fmt: skip
_STORY_DID = (
    "lost", "found", "was waiting for", "bought", "went away with", "dropped", "asked me about", "gave me",
    "broke", "was talking about",
)  # fmt: skip
_STORY_WHAT = (
    "the kitchen window", "a yellow car", "her phone on the train", "three bottles of milk", "the wrong ticket",
    "my grandmother's clock", "the dog of the family", "a very old photograph", "the garden chairs", "his passport",
)  # fmt: skip
_STORY_WHEN = ("", "", "yesterday", "in the middle of the night", "after the film", "because it was so cold")

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


def voice_text(rng: random.Random) -> str:
    """One everyday sentence for a voice prompt."""
    return _sentence(rng.choice(VOICE_SUBJECTS), rng.choice(VOICE_VERBS), rng.choice(VOICE_OBJECTS))


def _sentence(*parts: str) -> str:
    text = " ".join(part for part in parts if part) + "."
    return text[0].upper() + text[1:]


def good_in(question: str) -> str:
    """What a question asks the price of, "" where it names nothing."""
    return next((good for good in GOODS if good in question), "")


def answer_kind(kind: str, role: Role, good: str = "") -> str:
    """The kind of sentence with which the agent answers a question.

    What its prompt does not tell is unknown to it: a slot that is left open, the price of another `good`.
    """
    if kind in (HELLO, GREET):
        return GREET
    needed = TURNS[kind].needs
    told = not needed or role.value(needed)
    return kind if told and good in ("", role.good) else UNKNOWN


def agent_templates() -> list[tuple[str, str]]:
    """(kind, sentence with slots) of everything the agent ever says."""
    said = [(GREET, text) for text in GREETINGS]
    said += [(kind, text) for kind, turn in TURNS.items() for text in turn.answers]
    return said + [(UNKNOWN, text) for text in UNKNOWN_ANSWERS] + [(NOD, text) for text in NODS]


@cache
def user_sentences() -> tuple[tuple[str, str], ...]:
    """(kind, sentence) of everything the user ever says in training, but for what a question may begin with."""
    said = [(HELLO, text) for text in HELLOS]
    for kind, turn in TURNS.items():
        for text in turn.questions:
            said += [(kind, text.format(good=good)) for good in (GOODS if "{good}" in text else ("",))]
    told = [
        _sentence(who, did, what, _STORY_WHEN[(i + j + k) % len(_STORY_WHEN)])
        for i, who in enumerate(_STORY_WHO)
        for j, did in enumerate(_STORY_DID)
        for k, what in enumerate(_STORY_WHAT)
    ]
    openings = _STORY_OPENINGS * (len(told) // (4 * len(_STORY_OPENINGS)))  # one story sentence in five
    return tuple(said + [(STORY, text) for text in (*openings, *told)])


def with_filler(filler: str, question: str) -> str:
    """A question that does not begin at once; after a comma it goes on in small letters."""
    goes_on = filler[-1] not in ".?!" and not question.startswith("I ")
    return f"{filler} {question[0].lower() if goes_on else question[0]}{question[1:]}"


def text_tokens(text: str) -> list[str]:
    """Split into words with their punctuation apart: "Hi, I" -> ["Hi", ",", "I"]."""
    return re.findall(r"<\w+>|[\w'<>]+|[^\w\s]", text)


def spoken_words(text: str) -> list[str]:
    """The bare lower-case words of a sentence, as a recogniser reports them."""
    return re.findall(r"[a-z']+", text.lower())


@cache
def user_vocabulary() -> dict[str, int]:
    """Every word a user says in training, with a number."""
    texts = (*(text for _, text in user_sentences()), *FILLERS)
    return {word: number for number, word in enumerate(sorted({word for text in texts for word in spoken_words(text)}))}
