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
    """What the user may ask, and what the agent says to it.

    `needs`: the slot without which it cannot. `clauses`: what may follow "I wanted to ask".
    """

    questions: tuple[str, ...]
    answers: tuple[str, ...]
    weight: float  # share of the turns with which users open a conversation
    needs: str = ""
    clauses: tuple[str, ...] = ()


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
            "What should I call you?",
            "May I know your name?",
            "I forgot your name.",
            "I did not hear your name.",
            "I did not understand your name.",
            "Say your name again, please.",
            "Tell me your name once more.",
            "Who do I speak to?",
            "Who is speaking?",
            "Who is there?",
            "Whom am I talking to?",
            "Do you have a name?",
            "Your name, please.",
            "And your name is?",
            "Give me your name, please.",
            "Please say who you are.",
            "And who might you be?",
            "I need your name.",
            "What name should I write down?",
            "What do your friends call you?",
        ),
        ("My name is {name}.",),
        4.0,
        clauses=(
            "what your name is",
            "who you are",
            "who I am speaking to",
            "what you are called",
            "who I am talking with",
            "your name",
        ),
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
            "What is your company?",
            "What is the name of your office?",
            "Which company are you with?",
            "Who is your employer?",
            "Whom have I called?",
            "What is this place called?",
            "Where do you have your job?",
            "What business is this?",
            "Which shop is this?",
            "I forgot where you work.",
            "I did not hear the name of your company.",
            "Say the name of your company again.",
            "I need the name of the company.",
            "At which company do you work?",
            "For which company do you work?",
            "What company am I talking to?",
            "Which office is this?",
            "What is the name of this place?",
            "Am I talking to the right company?",
            "You work for whom?",
        ),
        ("I work for {place}.",),
        4.0,
        clauses=(
            "where you work",
            "which company this is",
            "who you work for",
            "what your company is called",
            "the name of your company",
            "which place I have called",
        ),
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
            "What would {good} cost me?",
            "How much do I have to pay for {good}?",
            "How much do you want for {good}?",
            "Is {good} expensive?",
            "I would like {good}, how much is that?",
            "I want {good}, what does it cost?",
            "What is the price for {good}?",
            "How much for {good}?",
            "I need to know what {good} costs.",
            "So how much is it?",
            "What do I have to pay?",
        ),
        ("It costs {price} dollars.",),
        2.0,
        needs="price",
        clauses=(
            "how much {good} is",
            "what {good} costs",
            "how much it costs",
            "the price of {good}",
        ),
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
            "When will you close tonight?",
            "Are you open late?",
            "How late are you open?",
            "When does it close?",
            "Until what time are you open?",
            "Until when can I visit you?",
            "How late can I come?",
            "Can I still come this evening?",
            "I need to know when you close.",
            "At which hour do you close?",
            "What are the hours?",
            "Your opening hours, please.",
        ),
        ("We are open until {hour} in the evening.",),
        2.0,
        needs="hour",
        clauses=(
            "when you close",
            "how long you are open",
            "until when you are open",
            "your opening hours",
            "what time you close",
        ),
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
            "How was your day?",
            "How are you feeling?",
            "How is your day going?",
            "How do you do?",
            "Is everything all right?",
            "Did you have a good day?",
            "I hope you are well.",
            "And you, how are you?",
            "How is life?",
        ),
        ("I am fine, thank you.",),
        1.2,
        clauses=(
            "how you are",
            "how you are doing",
            "how your day was",
        ),
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
            "Are you a real human?",
            "Are you alive?",
            "Is a machine talking to me?",
            "Is this a person or a machine?",
            "You sound like a robot.",
            "Are you just a computer?",
            "Do I talk to a real person?",
            "Am I talking to a human?",
            "Tell me if you are a machine.",
            "You are a machine, right?",
        ),
        ("I am a small voice model.",),
        1.0,
        clauses=(
            "if you are a robot",
            "whether you are human",
            "if you are a real person",
            "if this is a machine",
        ),
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
            "I need your help.",
            "Would you help me?",
            "What can I ask you?",
            "What do you know?",
            "How could you help me?",
            "With what can you help?",
            "Help me, please.",
            "Tell me what you can do.",
            "I have a problem, can you help me?",
            "What kind of help do you offer?",
        ),
        ("I can tell you my name and where I work.",),
        1.0,
        clauses=(
            "what you can do",
            "how you can help me",
            "what you can do for me",
        ),
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
            "This is nonsense.",
            "You never understand me.",
            "You make me angry.",
            "That is the worst answer ever.",
            "I will complain about you.",
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
        clauses=(
            "who your boss is",
            "how old your company is",
            "what the weather is like",
            "how many rooms you have",
            "if it will rain on Sunday",
            "what you had for breakfast",
        ),
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
FILLERS = (
    "Well,", "So,", "Oh,", "But", "Um,", "Now,", "One more question.", "Listen,", "Good evening.", "Hello there.",
    "All right.", "Pardon me.", "Yes,", "Okay, so", "Please,", "Oh wait,", "No no,", "Just a second,", "Stop it,",
    "Let me ask something else,",
)  # fmt: skip
# What may go before a question, with a pause for thought after it: before a clause, and before a whole question.
CLAUSE_LEADS = (
    "I wanted to ask you", "I would like to know", "Can you tell me", "Could you please say", "I want to know",
    "Please tell me", "My first question is", "First of all, tell me", "It would help me to hear",
    "I am calling to ask", "What I need to know is", "I am trying to remember", "Let me ask you", "Just tell me",
    "I forgot to ask you", "Do you think you could tell me",
)  # fmt: skip
QUESTION_LEADS = (
    "I have a question,", "Let me see,", "Well, you know,", "There is one more thing,", "Before I forget it,",
    "I called earlier today and,", "I am not sure if this is the right number,", "It is a little loud here,",
    "Sorry, I was not listening,", "The reason why I call is,", "What I mean is,", "Let me start again,",
    "My sister gave me your number and,", "I do not want to waste your time but,",
)  # fmt: skip

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
        said += [(kind, text) for text in _with_goods(turn.questions)]
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
    """A question as it is written after a comma."""
    return question if question.startswith("I ") else question[0].lower() + question[1:]


def text_tokens(text: str) -> list[str]:
    """Split into words with their punctuation apart: "Hi, I" -> ["Hi", ",", "I"]."""
    return re.findall(r"<\w+>|[\w'<>]+|[^\w\s]", text)


def spoken_words(text: str) -> list[str]:
    """The bare lower-case words of a sentence, as a recogniser reports them."""
    return re.findall(r"[a-z']+", text.lower())


@cache
def user_vocabulary() -> dict[str, int]:
    """Every word a user says in training, with a number."""
    led_in = (half for kind in TURNS for halves in led_in_questions(kind) for half in halves)
    texts = (*(text for _, text in user_sentences()), *FILLERS, *led_in)
    return {word: number for number, word in enumerate(sorted({word for text in texts for word in spoken_words(text)}))}
