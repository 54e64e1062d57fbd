"""Evaluation of the embedded model, running freely through the real engine.

    python -m training.evaluate --model nano

Every conversation is one that training never showed: held-out personas, newly spoken voice prompts
and questions, users' voices that the language model was never trained on. Prints a table and one line of JSON.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import soundfile

from personaplex.audio.frames import FRAME_SAMPLES, SAMPLE_RATE_HZ
from personaplex.config import END_OF_PADDING_ID
from personaplex.messages import SamplingOptions, Voice
from personaplex.personas.presets import persona
from personaplex.session.session import Conversation, Session
from personaplex.weights.load import load_model
from training import agents, domain, examples, sentences, speech, tts
from training.domain import Role
from training.listen import Recogniser, Share, Timbres, report, word_errors
from training.turns import FACT_KINDS
from training.users import HELD_OUT_USER_VOICES

FRAME_SEC = FRAME_SAMPLES / SAMPLE_RATE_HZ
GREETING_SEC = 9.0  # how long the user is silent first
ANSWER_SEC = 5.0  # of silence after each question
EXAMPLE_SEC = 7.0  # after an example's question
SILENCE_SEC = 40.0
TIMBRE_SAMPLES = 8  # of each voice, to know it by
SPEECH_LEAD_FRAMES, SPEECH_TAIL_FRAMES = 3, 9  # around the first and last text token of a sentence
MEASURED_KINDS = ("name", "place")
# The phrase an answer about a slot must hold; of any other answer all words must be there.
_WANTED = {"name": "{name}", "place": "{place}", "price": "costs {price} dollars", "hours": "until {hour}"}

_OTHERS = {sentences.UNKNOWN: sentences.UNKNOWN_ANSWERS, sentences.REPEAT: sentences.REPEATS}


@dataclass
class Window:
    """A stretch of a conversation with the kind of answer expected in it."""

    kind: str  # greet, name, place, …, silence
    start_frame: int
    end_frame: int
    asked: str = ""
    user_voice: str = ""


@dataclass
class Talk:
    """One conversation: the agent's role, the user's sound, and the windows that are scored."""

    role: Role
    prompt: str
    voice_name: str
    voice_pcm: np.ndarray
    heard: np.ndarray  # [samples] float32
    windows: list[Window]
    tokens: list[int] = field(default_factory=list)
    told: dict[int, str] = field(default_factory=dict)  # before these frames
    role_before: Role | None = None  # the prompt's, where another is told
    said: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))  # [samples] float32


def _frames(pcm: np.ndarray) -> int:
    return -(-len(pcm) // FRAME_SAMPLES)


class TalkMaker:
    """New conversations, none of whose recordings training has seen."""

    def __init__(self, seed: int, voices: Sequence[str]) -> None:
        self.rng, self.voices = random.Random(f"evaluation-{seed}"), voices

    def _talk(self, index: int, role: Role, heard: list[np.ndarray], windows: list[Window]) -> Talk:
        voice = self.voices[index % len(self.voices)]
        pcm = speech.voice_prompt(self.rng, voice)
        return Talk(role, domain.role_prompt(role), voice, pcm, np.concatenate(heard), windows)

    def question(self, kind: str, voice: str, role: Role) -> tuple[str, np.ndarray]:
        """A question as this user asks it, a little louder or softer each time, in whole frames."""
        if kind == sentences.MUMBLE:
            text = sentences.mumbled(self.rng)
        else:
            good = role.good or self.rng.choice(domain.GOODS)
            text = self.rng.choice(sentences.TURNS[kind].questions).format(good=good)
        pcm, _ = tts.trimmed(tts.speak(text, voice, tempo=self.rng.uniform(0.9, 1.1)))
        pcm = speech.at_loudness(pcm) * self.rng.uniform(0.6, 1.4)
        return text, np.pad(pcm, (0, _frames(pcm) * FRAME_SAMPLES - len(pcm))).clip(-1, 1)

    def greeted(self, index: int, role: Role, kinds: list[str], user: str) -> Talk:
        """The user is silent until greeted, then asks."""
        silence = np.zeros(int(GREETING_SEC / FRAME_SEC) * FRAME_SAMPLES, np.float32)
        heard, windows = [silence], [Window("greet", 0, _frames(silence))]
        return self._asked(index, role, kinds, user, heard, windows)

    def direct(self, index: int, role: Role, kinds: list[str], user: str) -> Talk:
        """The user asks at once."""
        return self._asked(index, role, kinds, user, [], [])

    def _asked(self, index, role, kinds, user, heard, windows) -> Talk:
        at = sum(map(_frames, heard))
        for kind in kinds:
            text, pcm = self.question(kind, user, role)
            wait = np.zeros(int(ANSWER_SEC / FRAME_SEC) * FRAME_SAMPLES, np.float32)
            end = at + _frames(pcm) + _frames(wait)
            windows.append(Window(kind, at, end, text, user))
            heard += [pcm, wait]
            at = end
        return self._talk(index, role, heard, windows)

    def silent(self, index: int, role: Role) -> Talk:
        """Nobody ever speaks: after the greeting the agent should not either."""
        silence = np.zeros(int((GREETING_SEC + SILENCE_SEC) / FRAME_SEC) * FRAME_SAMPLES, np.float32)
        greeted = int(GREETING_SEC / FRAME_SEC)
        windows = [Window("silence", greeted, _frames(silence))]
        return self._talk(index, role, [silence], windows)


def hold(session: Session, talks: list[Talk], options: dict, seed: int) -> None:
    """Holds the conversations, as many at once as the engine has slots; fills in what was said."""
    slots = session.engine.slots
    order = sorted(talks, key=lambda talk: len(talk.heard))
    for at in range(0, len(order), slots):
        with ExitStack() as stack:
            pairs = []
            for number, talk in enumerate(order[at : at + slots], at):
                voice = Voice(talk.voice_name, pcm=talk.voice_pcm)
                snapshot = session.prepare(voice=voice, text=talk.prompt)
                started = session.start(snapshot, SamplingOptions(seed=seed + number, **options))
                pairs.append((stack.enter_context(started), talk))
            _talk_together(session, pairs)


def _talk_together(session: Session, pairs: list[tuple[Conversation, Talk]]) -> None:
    frames = max(_frames(talk.heard) for _, talk in pairs)
    heard = {
        conversation: np.pad(talk.heard, (0, frames * FRAME_SAMPLES - len(talk.heard))).astype(np.float32)
        for conversation, talk in pairs
    }
    said: dict[Conversation, list[np.ndarray]] = {conversation: [] for conversation in heard}
    for frame in range(frames):
        span = slice(frame * FRAME_SAMPLES, (frame + 1) * FRAME_SAMPLES)
        for conversation, talk in pairs:
            if frame in talk.told:
                conversation.tell(talk.told[frame])
        out = session.step_together({conversation: pcm[span] for conversation, pcm in heard.items()})
        for conversation, talk in pairs:
            talk.tokens.append(out[conversation].text_token)
            said[conversation].append(out[conversation].pcm)
    for conversation, talk in pairs:
        talk.said = np.concatenate(said[conversation][: _frames(talk.heard)])


class Transcriber:
    """Reads the text row of a conversation."""

    def __init__(self, session: Session) -> None:
        self._tokenizer = session.tokenizer
        self._quiet = (session.loaded.config.lm.existing_text_padding_id, END_OF_PADDING_ID)

    def spoken_frames(self, talk: Talk, window: Window) -> list[int]:
        frames = range(window.start_frame, min(window.end_frame, len(talk.tokens)))
        return [frame for frame in frames if talk.tokens[frame] not in self._quiet]

    def text(self, talk: Talk, window: Window) -> str:
        return self._tokenizer.decode([talk.tokens[frame] for frame in self.spoken_frames(talk, window)])

    def sound(self, talk: Talk, window: Window) -> np.ndarray | None:
        frames = self.spoken_frames(talk, window)
        if not frames:
            return None
        start, end = max(0, frames[0] - SPEECH_LEAD_FRAMES), frames[-1] + SPEECH_TAIL_FRAMES
        return talk.said[start * FRAME_SAMPLES : end * FRAME_SAMPLES]


def _says(text: str, words: str) -> bool:
    return f" {' '.join(sentences.spoken_words(words))} " in f" {' '.join(sentences.spoken_words(text))} "


def right(talk: Talk, window: Window, text: str) -> bool:
    """Whether the text answers what the window expects."""
    role = talk.role
    if window.kind == sentences.GREET:
        return _says(text, role.name) and _says(text, role.place)
    kind = sentences.answer_kind(window.kind, role)
    wanted = (_WANTED[kind],) if kind in _WANTED else _OTHERS.get(kind) or sentences.TURNS[kind].answers
    return any(_says(text, answer.format(**vars(role))) for answer in wanted)


_listeners: tuple[Recogniser, Timbres] | None = None  # of this process, made on first use


def _heard(sound: np.ndarray, voices: Sequence[str]) -> tuple[list[str], str]:
    global _listeners
    if _listeners is None:
        rng = random.Random("timbres")
        samples = {voice: [speech.voice_prompt(rng, voice) for _ in range(TIMBRE_SAMPLES)] for voice in voices}
        _listeners = Recogniser(), Timbres(samples)
    recogniser, timbres = _listeners
    return recogniser.words(sound), timbres.nearest(sound)


@dataclass
class Answer:
    """The answer in a window: its text, the words recognised in the sound and the nearest voice ("": no sound)."""

    talk: Talk
    window: Window
    text: str
    heard: list[str]
    voice: str
    wait_sec: float


def answers(talks: list[Talk], transcriber: Transcriber, processes: int, voices: Sequence[str]) -> list[Answer]:
    """The answers in all windows but silent ones, with their sound recognised."""
    pairs = [(talk, window) for talk in talks for window in talk.windows if window.kind != "silence"]
    sounds = [transcriber.sound(talk, window) for talk, window in pairs]
    spoken = [sound for sound in sounds if sound is not None]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        found = iter(pool.map(partial(_heard, voices=voices), spoken, chunksize=8))
    made = []
    for (talk, window), sound in zip(pairs, sounds, strict=True):
        words, voice = next(found) if sound is not None else ([], "")
        frames = transcriber.spoken_frames(talk, window)
        ended = window.end_frame - int(ANSWER_SEC / FRAME_SEC)
        wait_sec = (frames[0] - ended) * FRAME_SEC if frames else float("nan")
        made.append(Answer(talk, window, transcriber.text(talk, window), words, voice, wait_sec))
    return made


def _label(answer: Answer) -> str:
    """The row an answer counts in; facts are split by whether the prompt tells them and training has their value."""
    kind, role = answer.window.kind, answer.talk.role
    if kind in FACT_KINDS and sentences.answer_kind(kind, role) == sentences.UNKNOWN:
        return "a fact nobody told it"
    return f"{kind} of a held-out value" if kind == "price" and role.price in domain.HELD_OUT_PRICES else kind


def figures(given: list[Answer]) -> dict[str, Share | float]:
    """The table: text rows against what was wanted, sound against text rows."""
    table: dict[str, Share | float] = {}
    greetings = [a for a in given if a.window.kind == sentences.GREET]
    table["greeting: name right (text)"] = Share.of([_says(a.text, a.talk.role.name) for a in greetings])
    table["greeting: place right (text)"] = Share.of([_says(a.text, a.talk.role.place) for a in greetings])
    table["greeting: name heard (sound)"] = Share.of([a.talk.role.name.lower() in a.heard for a in greetings])
    table["greeting: place heard (sound)"] = Share.of([_says(" ".join(a.heard), a.talk.role.place) for a in greetings])
    for voice in sorted({a.talk.voice_name for a in greetings}):
        named = [a.talk.role.name.lower() in a.heard for a in greetings if a.talk.voice_name == voice]
        table[f"greeting: name heard (sound), {voice}"] = Share.of(named)
    asked = [a for a in given if a.window.kind != sentences.GREET]
    for label in dict.fromkeys(map(_label, asked)):
        of_label = [a for a in asked if _label(a) == label]
        table[f"question: {label} answered (text)"] = Share.of([right(a.talk, a.window, a.text) for a in of_label])
        if of_label[0].window.kind in FACT_KINDS:
            heard = [right(a.talk, a.window, " ".join(a.heard)) for a in of_label]
            table[f"question: {label} answered (sound)"] = Share.of(heard)
    for voice in dict.fromkeys(a.window.user_voice for a in asked):
        chosen = [a for a in asked if a.window.user_voice == voice and a.window.kind in MEASURED_KINDS]
        table[f"name or place, asked by {voice}"] = Share.of([right(a.talk, a.window, a.text) for a in chosen])
    wanted = sum(len(sentences.spoken_words(a.text)) for a in given)
    errors = sum(word_errors(sentences.spoken_words(a.text), a.heard) for a in given)
    table["words of the text row heard in the sound"] = Share(max(0, wanted - errors), wanted)
    table["voice of the prompt kept"] = Share.of([a.voice == a.talk.voice_name for a in given if a.voice])
    waits = [a.wait_sec for a in asked if not np.isnan(a.wait_sec) and a.window.kind != sentences.MUMBLE]
    table["median wait for an answer, s"] = float(np.median(waits)) if waits else float("nan")
    return table


def example_answers(session: Session, options: dict, folder: Path, cast: str) -> list[str]:
    """The personas' answers to the example questions."""
    lines, talks = [], []
    for name, (text, _) in examples.QUESTIONS.items():
        preset = persona(name)
        pcm, _ = soundfile.read(folder / f"{name}.wav", dtype="float32")
        voice_name = examples.voices(cast).get(preset.nano_voice, "")
        voice_pcm = speech.at_loudness(soundfile.read(Path("voices") / f"{preset.nano_voice}.wav")[0])
        heard = np.pad(pcm, (0, int(EXAMPLE_SEC * tts.SAMPLE_RATE_HZ)))
        window = Window("example", 0, _frames(heard), text)
        talks.append(Talk(Role(name, ""), preset.prompt_for("nano"), voice_name, voice_pcm, heard, [window]))
    hold(session, talks, options, seed=1)
    reader = Transcriber(session)
    for talk in talks:
        lines.append(f"{talk.role.name}: {talk.windows[0].asked} -> {reader.text(talk, talk.windows[0])}")
    return lines


def make_talks(count: int, seed: int, voices: Sequence[str]) -> tuple[list[Talk], list[Talk]]:
    """Conversations with questions, and silent ones."""
    maker, personas = TalkMaker(seed, voices), domain.held_out_personas()
    users, others = HELD_OUT_USER_VOICES, [kind for kind in sentences.TURNS if kind not in MEASURED_KINDS]
    asked = []
    for index in range(count):
        name, place = personas[index % len(personas)]
        kinds = maker.rng.sample(MEASURED_KINDS, 2)
        user = users[index % len(users)]
        asked.append(maker.greeted(index, Role(name, place), [*kinds, others[index // len(users) % len(others)]], user))
        if index % 4 == 0:
            asked.append(maker.direct(index // 4, Role(*personas[-1 - index % len(personas)]), kinds, user))
        if index % 2 == 0:
            prices = domain.HELD_OUT_PRICES if index % 4 else domain.TRAINED_PRICES
            told = domain.with_facts(maker.rng, name, place, prices)
            asked.append(maker.direct(index // 2, told, maker.rng.sample(FACT_KINDS, 2), user))
    for index in range(count // 4):
        role = Role(*personas[index % len(personas)])
        asked.append(maker.direct(index, role, [sentences.MUMBLE] * 2, users[index % len(users)]))
    return asked, [maker.silent(index, Role(*personas[index])) for index in range(max(1, count // 10))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--format", default="auto")
    parser.add_argument("--personas", type=int, default=100)
    parser.add_argument("--cast", choices=sorted(agents.CASTS), default=agents.FLITE, help="the agent's voices")
    parser.add_argument("--slots", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2, help="that listen")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--text-temperature", type=float, default=SamplingOptions.temperature_text)
    parser.add_argument("--audio-temperature", type=float, default=SamplingOptions.temperature_audio)
    parser.add_argument("--questions", type=Path, default=Path("examples/questions"))
    parser.add_argument("--show", action="store_true", help="print every answer")
    parser.add_argument("--wavs", type=Path, help="write some conversations here: agent left, user right")
    options = parser.parse_args()
    session = Session(load_model(options.model, format=options.format, device="cpu"), slots=options.slots)
    sampling = dict(temperature_text=options.text_temperature, temperature_audio=options.audio_temperature)
    voices = tuple(agents.CASTS[options.cast])
    talks, silent = make_talks(options.personas, options.seed, voices)
    hold(session, talks + silent, sampling, options.seed)
    reader = Transcriber(session)
    given = answers(talks, reader, options.processes, voices)
    table = figures(given)
    spoken = sum(len(re.findall(r"\w+", reader.text(talk, talk.windows[0]))) for talk in silent)
    table["words a minute nobody asked for"] = spoken / (len(silent) * SILENCE_SEC / 60)
    if options.show:
        for a in given:
            mark = "ok " if right(a.talk, a.window, a.text) else "BAD"
            who = " | ".join(filter(None, vars(a.talk.role).values()))
            print(f"{mark} {who} | {a.window.asked} -> {a.text} | {' '.join(a.heard)}")
    if options.wavs:
        options.wavs.mkdir(parents=True, exist_ok=True)
        for index, talk in enumerate(talks[:6]):
            stereo = np.stack([talk.said, talk.heard[: len(talk.said)]], 1)
            soundfile.write(options.wavs / f"{index}.wav", stereo, tts.SAMPLE_RATE_HZ)
    if options.questions.is_dir():
        print("\n".join(example_answers(session, sampling, options.questions, options.cast)))
    print(report(table))


if __name__ == "__main__":
    main()
