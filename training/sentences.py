"""Sentences of nano's domain: the turns, greetings, stories, fillers and mumbling."""

import random
import re
from functools import cache
from pathlib import Path

from training import orders
from training.domain import GOODS, PHRASES, Role
from training.orders import ORDER
from training.turns import TURNS

GREETINGS = (
    "Hello, this is {name} from {place}. How can I help you?",
    "Hi, this is {name} from {place}. What can I do for you?",
)

HEARD_WORDS = Path(__file__).with_name("heard_words.txt")  # eight times or more in the texts of people's recordings
UNKNOWN = "unknown"  # the agent's answer to a question about a slot that its prompt leaves open
NOD = "nod"  # … and its words aside, while a user tells a story
REPEAT = "repeat"  # … and what it asks for when it understood nothing
STORY = "story"
MUMBLE = "mumble"  # what nobody could understand: words that are none
HELLO = "hello"
GREET = "greet"
BEYOND = "beyond"
PARROT = "parrot"  # a phrase to be repeated, and the agent's repetition
UNKNOWN_ANSWERS = ("Sorry, I do not know that.",)
NODS = ("Uh huh.", "Okay.", "I see.", "Right.")
USUAL_NOD = "Okay."
REPEATS = ("Could you say that again, please?",)

# Said when the user opens with nothing but a greeting; the agent then greets as usual.
HELLOS = ("Hello.", "Hi.", "Hello?", "Hi there.", "Good morning.", "Good evening.", "Hey.")

# Before a phrase that the agent shall repeat.
PARROT_LEADS = (
    "Repeat after me,", "Please repeat after me,", "Can you say,", "Say after me,", "Please say,", "Now say,",
    "Could you repeat this,", "Say it with me,", "Repeat this, please,", "I want to hear you say,",
    "Would you please say,", "Let me hear you say,",
)  # fmt: skip

# What a question may begin with.
FILLERS = (
    "Well,", "So,", "Oh,", "But", "Um,", "Now,", "One more question.", "Listen,", "Good evening.", "Hello there.",
    "All right.", "Pardon me.", "Yes,", "Okay, so", "Please,", "Oh wait,", "No no,", "Just a second,", "Stop it,",
    "Let me ask something else,",
    "Excuse me,", "Actually,", "Anyway,", "By the way,", "Hold on,", "Good afternoon.", "Fine,", "Ah,", "Hey,",
    "Wait a minute,", "I see,", "Something different.", "Excuse me.", "Good day.", "Hey there.", "Okay.", "Okay now.",
    "Right.", "Right then,", "All right then.", "Well now.", "I am sorry,", "Say,", "Look,", "Sure,",
    "Fine then.", "Good to know.", "Yes.", "No.", "Good.", "Pardon.", "Oh.", "Listen.",
)  # fmt: skip
# What may go before a question, with a pause for thought after it: before a clause, and before a whole question.
CLAUSE_LEADS = (
    "I wanted to ask you", "I would like to know", "Can you tell me", "Could you please say", "I want to know",
    "Please tell me", "My first question is", "First of all, tell me", "It would help me to hear",
    "I am calling to ask", "What I need to know is", "I am trying to remember", "Let me ask you", "Just tell me",
    "I forgot to ask you", "Do you think you could tell me", "I was about to ask", "Maybe you know",
    "I am curious to hear", "My husband wants to know", "I need to find out", "All I want to hear is",
    "The question I have is", "I keep forgetting", "Nobody could tell me so far", "It is not clear to me",
    "What I was going to ask is", "If you do not mind, tell me",
    "Could you remind me", "You have not told me yet", "For my notes I need to know",
    "The form asks me", "I would be glad to hear", "Before we start, tell me", "I did not quite hear",
    "I could not find out", "Somebody asked me", "The only thing I want to know is", "May I ask",
    "I am not quite sure", "It would be good to know", "What interests me is", "Say once more",
)  # fmt: skip
QUESTION_LEADS = (
    "I have a question,", "Let me see,", "Well, you know,", "There is one more thing,", "Before I forget it,",
    "I called earlier today and,", "I am not sure if this is the right number,", "It is a little loud here,",
    "Sorry, I was not listening,", "The reason why I call is,", "What I mean is,", "Let me start again,",
    "My sister gave me your number and,", "I do not want to waste your time but,", "Okay, next thing,",
    "I wrote it down somewhere but,", "Give me a moment,", "The last time I called,", "I am in the car right now and,",
    "My daughter is here as well and,", "I looked at your page but,", "How should I say this,",
    "I hope I am not too late but,", "There was something else,", "I am new here and,", "You may know this already,",
    "To be honest,", "Thank you for taking my call,", "My phone is very bad today,", "I am in a hurry,",
    "I have been thinking about it and,", "Let me get a pen first,", "A friend told me to call,",
    "Maybe this is a strange question,", "I hope you do not mind,", "Changing the subject,", "If I may ask,",
    "My hearing is not so good,", "I am calling for my mother and,", "Just so that I know,",
)  # fmt: skip

# Sentences that are told, not asked.
STORY_OPENINGS = (
    "I have to tell you something.", "This is what happened last night.", "It all started on Monday.",
    "I will tell you why I call.", "You know what happened this morning.", "It has been a strange day.",
    "I should begin with last summer.", "Listen to what they did this time.",
    "There is something I have to get off my chest.", "First I was at the office.", "Well, it went like this.",
    "That reminds me of our holiday.", "Let me explain what is going on here.", "My week was not an easy one.",
    "Something funny happened on the way home.", "I have never told this to anybody.",
    "It was a Sunday in the spring.", "Nobody will believe what I saw yesterday.",
    "I was in the supermarket this afternoon.", "We had guests last weekend and it did not go well.",
    "The whole thing began with a letter.", "You will laugh about this one.",
    "So there I was, alone in the big house.", "This is about my old neighbor.",
    "It has to do with the trip to the lake.", "I do not even know how to begin.",
    "Last year we moved to another city.", "When I was a child we lived near the sea.",
    "My day started very early today.", "Do not worry, it is nothing bad.", "I must tell somebody about the wedding.",
    "There was this thing with the car.", "It is a long story, to be honest.",
    "Here is the story with the broken lamp.", "Two years ago I bought a small boat.",
    "I just came back from the market.", "You should have seen the party on Saturday.",
    "Our family is a little special.", "It rained the whole morning.", "Everything was fine until the phone rang.",
)  # fmt: skip
_STORY_WHO = (
    "my sister", "our teacher", "the bus driver", "my wife", "his uncle", "the young doctor", "my best friend",
    "the cat", "a man in a hat", "the baker", "my cousin", "the girl from the shop", "the tall nurse", "our daughter",
    "her boss", "the people upstairs", "a policeman", "my grandfather", "somebody", "the gardener",
)  # fmt: skip
_STORY_DID = (
    "lost", "found", "was waiting for", "bought", "went away with", "dropped", "asked me about", "gave me",
    "broke", "was talking about", "came home with", "was so happy about", "did not like", "paid far too much for",
    "had to carry", "took care of", "ran after", "wrote to me about", "showed everybody", "left behind",
)  # fmt: skip
_STORY_WHAT = (
    "the kitchen window", "a yellow car", "her phone on the train", "three bottles of milk", "the wrong ticket",
    "my grandmother's clock", "the dog of the family", "a very old photograph", "the garden chairs", "his passport",
    "a bag full of apples", "the new sofa", "a pair of red shoes", "the report for the manager", "a small wooden boat",
    "the birthday cake", "our suitcase", "the neighbor's ladder", "a bunch of flowers", "the radio in the kitchen",
)  # fmt: skip
_STORY_WHEN = (
    "", "yesterday", "in the middle of the night", "after the film", "because it was so cold", "last Friday",
    "on the way to work", "without a word", "for two whole hours", "but nobody noticed it at all",
    "when the shop had already closed", "and then we all laughed", "so that we had to wait for the next bus",
    "and of course it rained again", "while I was still asleep", "before anybody could say a word",
    "and I do not know why", "as if nothing had happened", "which was not a good idea",
    "and that was only the beginning",
)  # fmt: skip

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


_ONSETS = "b d f g h k l m n p r s t v w z bl br dr fl gr kl pr sk st tr".split()
_VOWELS = "a e i o u ee oo ai ow".split()
_CODAS = ["", "", "", *"k l m n p r s t nd".split()]
MUMBLED_WORDS = (2, 7)
PLAIN_SHARE = 0.2  # of a mumbled sentence's words, those that are some
_PLAIN_WORDS = ("the", "and", "a", "is", "to", "of", "you", "it", "my", "in")


def mumbled(rng: random.Random) -> str:
    """A sentence of made-up words with some common short ones between them."""
    words = [
        rng.choice(_PLAIN_WORDS) if rng.random() < PLAIN_SHARE else _no_word(rng)
        for _ in range(rng.randint(*MUMBLED_WORDS) - 1)
    ]
    return _sentence(*words, _no_word(rng))[:-1] + rng.choice(".?")


def _no_word(rng: random.Random) -> str:
    while True:
        syllables = rng.choice((1, 1, 2, 2, 3))
        word = "".join(rng.choice(part) for _ in range(syllables) for part in (_ONSETS, _VOWELS, _CODAS))
        if word not in user_vocabulary():
            return word


def _sentence(*parts: str) -> str:
    text = " ".join(part for part in parts if part) + "."
    return text[0].upper() + text[1:]


def phrase_in(text: str) -> str:
    """What a user wants repeated."""
    said = " ".join(spoken_words(text))
    return next(phrase for phrase in PHRASES if said.endswith(" ".join(spoken_words(phrase))))


def good_in(question: str) -> str:
    """The good whose price a question asks, "" where it names none."""
    return next((good for good in GOODS if good in question), "")


def answer_kind(kind: str, role: Role, good: str = "") -> str:
    """The kind of sentence with which the agent answers a question.

    What its prompt does not tell is unknown to it: a slot that is left open, the price of another `good`. Coffee is
    ordered where it is sold.
    """
    if kind in (HELLO, GREET):
        return GREET
    if kind == MUMBLE:
        return REPEAT
    if kind == PARROT:
        return PARROT
    if kind == ORDER:
        return ORDER if role.takes_orders else BEYOND
    needed = TURNS[kind].needs
    told = not needed or role.value(needed)
    return kind if told and good in ("", role.good) else UNKNOWN


def agent_templates() -> list[tuple[str, str]]:
    """(kind, sentence with slots) of everything the agent ever says, but for orders (`orders.repeated`)."""
    said = [(GREET, text) for text in GREETINGS]
    said += [(kind, text) for kind, turn in TURNS.items() for text in turn.answers]
    others = {UNKNOWN: UNKNOWN_ANSWERS, NOD: NODS, REPEAT: REPEATS, PARROT: ("{phrase}.",)}
    return said + [(kind, text) for kind, texts in others.items() for text in texts]


# Of the agent's sentences, those that say its name.
NAMING_KINDS = tuple(dict.fromkeys(kind for kind, text in agent_templates() if "{name}" in text))


@cache
def user_sentences() -> tuple[tuple[str, str], ...]:
    """(kind, sentence) of all a user says in training, but for what a question may begin with.

    Nor for what is mumbled or ordered, of which every user has something else.
    """
    said = [(HELLO, text) for text in HELLOS]
    for kind, turn in TURNS.items():
        said += [(kind, text) for text in _with_goods(turn.questions)]
    said += [(PARROT, f"{lead} {phrase[0].lower()}{phrase[1:]}.") for lead in PARROT_LEADS for phrase in PHRASES]
    told = [
        _sentence(who, did, what, _STORY_WHEN[(i + j + k) % len(_STORY_WHEN)])
        for i, who in enumerate(_STORY_WHO)
        for j, did in enumerate(_STORY_DID)
        for k, what in enumerate(_STORY_WHAT)
    ]
    return tuple(said + [(STORY, text) for text in (*STORY_OPENINGS, *told)])


def with_filler(filler: str, question: str) -> str:
    """A question after a filler; lower case after a comma."""
    return f"{filler} {question if filler[-1] in '.?!' else _going_on(question)}"


@cache
def led_in_questions(kind: str) -> tuple[tuple[str, str], ...]:
    """All questions of this kind that begin with something else, in two halves, between which the user may think."""
    turn = TURNS[kind]
    if not turn.clauses:
        return ()
    halves = [(f"{lead},", f"{clause}.") for lead in CLAUSE_LEADS for clause in _with_goods(turn.clauses)]
    halves += [(lead, _going_on(text)) for lead in QUESTION_LEADS for text in _with_goods(turn.questions)]
    return tuple(halves)


def _with_goods(texts: tuple[str, ...]) -> list[str]:
    """Texts with everything that is sold in the place of ``{good}``."""
    return [text.format(good=good) for text in texts for good in (GOODS if "{good}" in text else ("",))]


def _going_on(question: str) -> str:
    """A question in the lower case that follows a comma."""
    return question if question.startswith("I ") else question[0].lower() + question[1:]


def text_tokens(text: str) -> list[str]:
    """Split into words with their punctuation apart: "Hi, I" -> ["Hi", ",", "I"]."""
    return re.findall(r"<\w+>|[\w'<>]+|[^\w\s]", text)


def spoken_words(text: str) -> list[str]:
    """The bare lower-case words of a sentence, as a recogniser reports them."""
    return re.findall(r"[a-z']+", text.lower())


@cache
def user_vocabulary() -> dict[str, int]:
    """Every word a user says in training, and what people often say in recordings, with a number."""
    led_in = (half for kind in TURNS for halves in led_in_questions(kind) for half in halves)
    texts = (*(text for _, text in user_sentences()), *FILLERS, *led_in)
    words = {word for text in texts for word in spoken_words(text)} | orders.user_words()
    words |= set(HEARD_WORDS.read_text(encoding="utf-8").split())
    return {word: number for number, word in enumerate(sorted(words))}
