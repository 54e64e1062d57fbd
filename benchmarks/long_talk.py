"""Whether a persona lasts: its facts and its voice, asked again and again in one long talk.

    python -m benchmarks.long_talk
    python -m benchmarks.long_talk --minutes 0.5 2 --personas 2 --context 400
    python -m benchmarks.long_talk --windows persona --personas 1    # the step's time with this window alone

Each persona talks in every window at once, with the same voice, user, noise and seed: ``persona`` keeps the prompt in
the cache, ``sinks`` the first four frames of it, ``published`` nothing. At each of ``--minutes`` the user asks for the
name, the place, the hours and a price, none of which the user ever names; between, every second user chats about other
things. An answer is right when its text holds the fact. The voice's figure is the cosine similarity of the answers'
sound to the voice prompt (``benchmarks/duplex/voice.py``), null without the encoder's weights. Steps are those of all
conversations at once, minute by minute, of the last personas; they and the memory must not grow once caches are full.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import psutil
import soxr

from benchmarks.duplex.speech_activity import SAMPLE_RATE_HZ as ENCODER_RATE_HZ
from benchmarks.duplex.voice import MIN_SPEECH_SEC, Encoder, find_encoder
from benchmarks.measuring import OtherLoad, facts, note, peak_memory_gb, run_benchmark, summary_ms
from benchmarks.models import add_model_arguments, open_measured
from personaplex.audio.frames import FRAME_SAMPLES, SAMPLE_RATE_HZ
from personaplex.config import NANO, PERSONA_WINDOW, PUBLISHED_WINDOW
from personaplex.engine.engine import Snapshot
from personaplex.engine.telling import HELD_NAME, KEPT_NAME
from personaplex.errors import InputError
from personaplex.files import shipped_folder
from personaplex.machine.inspect import GB
from personaplex.messages import SamplingOptions, Voice
from personaplex.personas.voices import catalogue
from personaplex.session.session import Conversation, Session
from training import domain, sentences, speech, tts
from training.evaluate import ANSWER_SEC, Talk, Transcriber, Window, right
from training.judge_talks import voice_prompts
from training.users import HELD_OUT_USER_VOICES

SINKS = "sinks"
WINDOWS = (PERSONA_WINDOW, SINKS, PUBLISHED_WINDOW)
SINK_FRAMES = 4
"""First entries of the cache that attention sinks keep (Xiao et al. 2023)."""

ASKED = ("name", "place", "hours", "price")
MINUTES = (1, 3, 5, 10, 20, 30, 60)
FRAMES_PER_MINUTE = 60 * SAMPLE_RATE_HZ // FRAME_SAMPLES
ANSWER_FRAMES = int(ANSWER_SEC * SAMPLE_RATE_HZ / FRAME_SAMPLES)
CHATTER_FRAMES = 125  # from one remark to the next
NOISE = 0.0008  # of the user's room, amplitude


def main() -> None:
    run_benchmark(measure, arguments())


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser)
    parser.add_argument("--windows", nargs="+", choices=WINDOWS, default=list(WINDOWS))
    parser.add_argument("--minutes", nargs="+", type=float, default=list(MINUTES), help="when it is asked")
    parser.add_argument("--personas", type=int, default=30)
    parser.add_argument("--at-once", type=int, default=4, help="personas; each takes a slot for each window")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(words)


def measure(given: argparse.Namespace) -> dict:
    if given.personas < 1 or given.at_once < 1 or min(given.minutes) <= 0:
        raise InputError("--personas, --at-once and each of --minutes must be above 0")
    given.at_once = min(given.at_once, given.personas)
    slots = given.at_once * len(given.windows)
    with open_measured(given, slots, given.context) as measured:
        session, load = Session(measured.model, slots=slots, context=given.context), OtherLoad()
        encoder, course = find_encoder(), Course()
        asked: list[Asked] = []
        for first in range(0, given.personas, given.at_once):
            group = range(first, min(first + given.at_once, given.personas))
            talks = [talk for index in group for talk in _talks(given, index)]
            _hold(session, talks, given, course)
            asked += [answer for talk in talks for answer in _answers(talk, session, encoder)]
            note(f"{group[-1] + 1} of {given.personas} personas have talked")
        return {
            "benchmark": "long_talk",
            **measured.described,
            "context": session.engine.context,
            "slots": slots,
            "personas": given.personas,
            "prompt_frames": course.prompt_frames,
            "windows": {window: _figures([a for a in asked if a.window == window]) for window in given.windows},
            "step_ms": course.step_ms,
            "rss_gb": course.rss_gb,
            "other_load_cores": load.cores(),
            **peak_memory_gb(given.device),
            **facts(measured.machine, given.device),
        }


# ---------------------------------------------------------------------------------- talks


@dataclass
class Question(Window):
    minute: str = ""  # in which it is asked


@dataclass
class LongTalk:
    """One persona in one window: what is asked and when, and what it says then."""

    window: str  # of the cache
    chatter: bool
    seed: int
    talk: Talk  # without its sound, of which only ``sound`` is kept
    questions: list[Question]
    heard: dict[int, np.ndarray]  # frame → [1920] float32, where the user speaks
    num_frames: int
    sound: dict[int, np.ndarray] = field(default_factory=dict)  # frame → [1920] float32, of the answers

    def frame(self, number: int, noise: np.ndarray) -> np.ndarray:
        room = noise[number % len(noise)]
        return room + self.heard[number] if number in self.heard else room


def _talks(given: argparse.Namespace, index: int) -> Iterator[LongTalk]:
    """The same talk for every window."""
    rng = random.Random(f"long talk {given.seed} {index}")
    personas = domain.held_out_personas()
    role = domain.with_facts(rng, *personas[index % len(personas)])
    names = [entry.name for entry in catalogue(NANO)]
    voice = names[index % len(names)]
    user = User(rng, HELD_OUT_USER_VOICES[index % len(HELD_OUT_USER_VOICES)], role)
    questions: list[Question] = []
    chatter, at = index % 2 == 1, 0
    for minute in sorted(given.minutes):
        starts = int(minute * FRAMES_PER_MINUTE)
        while chatter and at + CHATTER_FRAMES <= starts:
            user.say(user.remark(), at)
            at += CHATTER_FRAMES
        at = max(at, starts)
        for kind in ASKED:
            text = rng.choice(sentences.TURNS[kind].questions).format(good=role.good)
            end = user.say(text, at) + ANSWER_FRAMES
            questions.append(Question(kind, at, end, text, minute=f"{minute:g}"))
            at = end
    prompt, pcm = domain.role_prompt(role), voice_prompts(shipped_folder("voices", "catalogue.json"), [voice])[voice]
    for window in given.windows:
        talk = Talk(role, prompt, voice, pcm, np.zeros(0, np.float32), [])
        yield LongTalk(window, chatter, given.seed + index, talk, questions, user.heard, at)


class User:
    """Speaks with one held-out voice and never names what the persona should know."""

    def __init__(self, rng: random.Random, voice: str, role: domain.Role) -> None:
        self._rng, self._voice, self._role = rng, voice, role
        self._spoken: dict[str, np.ndarray] = {}
        self.heard: dict[int, np.ndarray] = {}

    def remark(self) -> str:
        kinds = [kind for kind in sentences.TURNS if kind not in (*ASKED, "bye")]
        return self._rng.choice(sentences.TURNS[self._rng.choice(kinds)].questions).format(good=self._role.good)

    def say(self, text: str, at: int) -> int:
        """Speak from frame ``at`` on → the frame in which it is over."""
        if text not in self._spoken:
            pcm = speech.at_loudness(tts.trimmed(tts.speak(text, self._voice))[0])
            self._spoken[text] = np.pad(pcm, (0, -len(pcm) % FRAME_SAMPLES)).reshape(-1, FRAME_SAMPLES)
        frames = self._spoken[text]
        self.heard |= dict(enumerate(frames, at))
        return at + len(frames)


@dataclass
class Course:
    """Step time and the process's memory, minute by minute: the last group's."""

    step_ms: dict[str, dict[str, float]] = field(default_factory=dict)
    rss_gb: dict[str, float] = field(default_factory=dict)
    prompt_frames: list[int] = field(default_factory=list)

    def note(self, minute: int, times_ms: list[float]) -> None:
        self.step_ms[str(minute)] = summary_ms(times_ms)
        self.rss_gb[str(minute)] = round(psutil.Process().memory_info().rss / GB, 3)


def _started(session: Session, long: LongTalk, course: Course) -> Conversation:
    snapshot = session.prepare(voice=Voice(long.talk.voice_name, pcm=long.talk.voice_pcm), text=long.talk.prompt)
    kept = int(snapshot.tensors[KEPT_NAME])
    course.prompt_frames.append(kept)
    keeps = {PERSONA_WINDOW: kept, SINKS: SINK_FRAMES, PUBLISHED_WINDOW: 0}[long.window]
    first = snapshot.tensors[KEPT_NAME].new_tensor(keeps)
    tensors = {**snapshot.tensors, KEPT_NAME: first, HELD_NAME: first}
    return session.start(Snapshot(tensors, snapshot.noise), SamplingOptions(seed=long.seed))


def _hold(session: Session, talks: list[LongTalk], given: argparse.Namespace, course: Course) -> None:
    """Hold them all at once, each to its end; fill in their tokens and the sound of their answers."""
    course.prompt_frames.clear()
    going = {_started(session, long, course): long for long in talks}
    noise = np.random.default_rng(given.seed).normal(0, NOISE, (FRAMES_PER_MINUTE, FRAME_SAMPLES)).astype(np.float32)
    answering = {conversation: _frames_of(long) for conversation, long in going.items()}
    times_ms: list[float] = []
    for number in range(max(long.num_frames for long in talks)):
        for conversation in [c for c, long in going.items() if long.num_frames == number]:
            conversation.close()
            del going[conversation]
        heard = {conversation: long.frame(number, noise) for conversation, long in going.items()}
        started = time.perf_counter()
        out = session.step_together(heard)
        times_ms.append(1000 * (time.perf_counter() - started))
        for conversation, long in going.items():
            long.talk.tokens.append(out[conversation].text_token)
            if number in answering[conversation]:
                long.sound[number] = out[conversation].pcm
        if len(times_ms) == FRAMES_PER_MINUTE:
            course.note(number // FRAMES_PER_MINUTE + 1, times_ms)
            times_ms = []
    for conversation in going:
        conversation.close()


def _frames_of(long: LongTalk) -> set[int]:
    return {frame for asked in long.questions for frame in range(asked.start_frame, asked.end_frame)}


# ---------------------------------------------------------------------------------- figures


@dataclass(frozen=True)
class Asked:
    """One minute of one talk."""

    window: str
    chatter: bool
    minute: str
    right: dict[str, bool]
    similarity: float | None  # of the answers' voice to the prompt's


def _answers(long: LongTalk, session: Session, encoder: Encoder | None) -> Iterator[Asked]:
    reader, talk = Transcriber(session), long.talk
    prompt = None if encoder is None else encoder(_for_encoder(talk.voice_pcm))
    for minute in dict.fromkeys(question.minute for question in long.questions):
        windows = [question for question in long.questions if question.minute == minute]
        correct = {window.kind: right(talk, window, reader.text(talk, window)) for window in windows}
        spoken = [frame for window in windows for frame in reader.spoken_frames(talk, window)]
        similarity = None
        if encoder is not None and len(spoken) * FRAME_SAMPLES >= MIN_SPEECH_SEC * SAMPLE_RATE_HZ:
            said = np.concatenate([long.sound[frame] for frame in spoken])
            similarity = float(prompt @ encoder(_for_encoder(said)))
        yield Asked(long.window, long.chatter, minute, correct, similarity)


def _for_encoder(pcm: np.ndarray) -> np.ndarray:
    return soxr.resample(pcm, SAMPLE_RATE_HZ, ENCODER_RATE_HZ).astype(np.float32)


def _figures(asked: list[Asked]) -> dict[str, dict]:
    """Minute → what was right of how many, by kind and with and without chatter, and how near the voice was."""
    table: dict[str, dict] = {}
    for minute in dict.fromkeys(a.minute for a in asked):
        here = [a for a in asked if a.minute == minute]
        near = [a.similarity for a in here if a.similarity is not None]
        table[minute] = {
            "of": len(here),
            **{kind: sum(a.right[kind] for a in here) for kind in ASKED},
            "share": _share(here),
            "share_with_chatter": _share([a for a in here if a.chatter]),
            "share_without": _share([a for a in here if not a.chatter]),
            "voice": round(statistics.mean(near), 3) if near else None,
        }
    return table


def _share(asked: list[Asked]) -> float | None:
    answers = [correct for a in asked for correct in a.right.values()]
    return round(sum(answers) / len(answers), 3) if answers else None


if __name__ == "__main__":
    main()
