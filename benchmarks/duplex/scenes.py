"""One synthetic item: the user's side of a conversation and what is annotated of it."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.duplex import layout, texts
from benchmarks.duplex.echo import Echo
from benchmarks.duplex.layout import Interruption, Kind
from benchmarks.duplex.metrics import EPSILON, WINDOW_SEC, Span
from benchmarks.duplex.speakers import Speaker
from benchmarks.duplex.speech_activity import SAMPLE_RATE_HZ
from personaplex.audio.files import write_wav
from personaplex.files import write_text
from personaplex.text.transcript import Word
from training import users

START_SEC = (0.3, 0.6)
GREETING_SEC = 10.0  # of a user who says nothing
ANSWER_SEC = 5.0  # of silence in which the agent may answer
PAUSE_SEC = (0.7, 1.6)
BETWEEN_SENTENCES_SEC = (0.6, 1.0)
BEFORE_INTERRUPTION_SEC = (0.9, 1.4)  # the agent should have begun its answer by then
NOD_SEC = 0.8  # after a sentence's end, where a listener may say "uh-huh"
LEVEL_DBFS = -24.0


@dataclass(frozen=True)
class Scene:
    """The sound played to the model, and its annotations."""

    pcm: np.ndarray  # [N] float32 at 16 kHz
    words: tuple[Word, ...]
    pauses: tuple[Span, ...] = ()
    turn_end_sec: float | None = None
    interruption: Interruption | None = None
    nods: tuple[Span, ...] = ()  # where a listener may say a word aside
    echo: Echo | None = None  # what the agent hears of itself

    @property
    def duration_sec(self) -> float:
        return len(self.pcm) / SAMPLE_RATE_HZ

    def later(self, seconds: float) -> Scene:
        """The same after some silence."""
        broken = self.interruption

        def moved(spans: tuple[Span, ...]) -> tuple[Span, ...]:
            return tuple((start + seconds, end + seconds) for start, end in spans)

        return Scene(
            np.concatenate([_silence(seconds), self.pcm]),
            tuple(Word(w.text, w.start_sec + seconds, w.end_sec + seconds) for w in self.words),
            moved(self.pauses),
            None if self.turn_end_sec is None else self.turn_end_sec + seconds,
            broken and replace(broken, start_sec=broken.start_sec + seconds, end_sec=broken.end_sec + seconds),
            moved(self.nods),
            self.echo,
        )


def _silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * SAMPLE_RATE_HZ), np.float32)


class _Tape:
    """A recording that grows."""

    def __init__(self, rng: random.Random):
        self._parts = [_silence(rng.uniform(*START_SEC))]
        self.words: list[Word] = []

    @property
    def now_sec(self) -> float:
        return sum(map(len, self._parts)) / SAMPLE_RATE_HZ

    def wait(self, seconds: float) -> None:
        self._parts.append(_silence(seconds))

    def say(self, speaker: Speaker, text: str) -> Span:
        spoken, start = speaker.say(text), self.now_sec
        self._parts.append(spoken.pcm)
        self.words += [Word(w.text, round(start + w.start_sec, 3), round(start + w.end_sec, 3)) for w in spoken.words]
        return start, self.now_sec

    def scene(self, **annotations) -> Scene:
        pcm = np.concatenate(self._parts)
        pcm = (pcm * 10 ** (LEVEL_DBFS / 20) / users.level(pcm)).clip(-1, 1).astype(np.float32)
        return Scene(pcm, tuple(self.words), **annotations)


# ---------------------------------------------------------------------------------- the tasks


def pause_scene(rng: random.Random, speaker: Speaker) -> Scene:
    """A question with a pause for thought in it; the file ends with the speech, as the published ones do."""
    tape = _Tape(rng)
    broken = {" ".join(halves): halves for halves in texts.BROKEN_QUESTIONS}
    first, second = broken[rng.choice(texts.held_out(broken))]
    _, start_sec = tape.say(speaker, f"{rng.choice(texts.OPENERS)} {first}".strip())
    tape.wait(rng.uniform(*PAUSE_SEC))
    end_sec = tape.now_sec
    tape.say(speaker, second)
    return tape.scene(pauses=((start_sec, end_sec),))


def turn_scene(rng: random.Random, speaker: Speaker) -> Scene:
    """A question, then silence."""
    tape = _Tape(rng)
    _, text = texts.question(rng)
    _, end_sec = tape.say(speaker, f"{rng.choice(texts.OPENERS)} {text}".strip())
    tape.wait(ANSWER_SEC)
    return tape.scene(turn_end_sec=end_sec)


def backchannel_scene(rng: random.Random, speaker: Speaker) -> Scene:
    """Someone tells a story; the file ends with it."""
    tape, nods = _Tape(rng), []
    told = texts.story(rng, rng.randint(4, 5))
    for number, text in enumerate(told):
        _, end_sec = tape.say(speaker, text)
        if number < len(told) - 1:
            nods.append((end_sec, end_sec + NOD_SEC))
            tape.wait(rng.uniform(*BETWEEN_SENTENCES_SEC))
    return tape.scene(nods=tuple(nods))


def interruption_scene(rng: random.Random, speaker: Speaker) -> Scene:
    """A question, and another one over its answer."""
    tape = _Tape(rng)
    asked, context = texts.question(rng, texts.INTERRUPTED_QUESTIONS)
    others = [kind for kind in texts.BREAKING_QUESTIONS if kind != asked]
    tape.say(speaker, context)
    tape.wait(rng.uniform(*BEFORE_INTERRUPTION_SEC))
    _, text = texts.question(rng, others)
    text = f"{rng.choice(texts.INTERJECTIONS)} {text[0].lower()}{text[1:]}"
    start_sec, end_sec = tape.say(speaker, text)
    tape.wait(ANSWER_SEC)
    return tape.scene(interruption=Interruption(context, text, start_sec, end_sec))


def asking_scene(rng: random.Random, speaker: Speaker, text: str) -> Scene:
    """One given question, then silence."""
    tape = _Tape(rng)
    _, end_sec = tape.say(speaker, text)
    tape.wait(ANSWER_SEC)
    return tape.scene(turn_end_sec=end_sec)


def greeting_scene(rng: random.Random, speaker: Speaker) -> Scene:
    """Nobody speaks to the agent, which greets and waits."""
    return Scene(_silence(GREETING_SEC), ())


TASKS = {
    "synthetic_pause_handling": pause_scene,
    "synthetic_turn_taking": turn_scene,
    "synthetic_backchannel": backchannel_scene,
    "synthetic_user_interruption": interruption_scene,
    "synthetic_greeting": greeting_scene,
}


# ---------------------------------------------------------------------------------- as files


def write_scene(scene: Scene, folder: Path, kind: Kind) -> None:
    """``input.wav``, ``transcription.json`` and the task's annotation."""
    folder.mkdir(parents=True, exist_ok=True)
    write_wav(folder / layout.INPUT, scene.pcm, SAMPLE_RATE_HZ)
    _write_json(folder / layout.TRANSCRIPTION, layout.transcript_of(scene.words))
    if scene.echo is not None:
        _write_json(folder / layout.ECHO, asdict(scene.echo))
    if kind is Kind.PAUSE:
        marks = [{"text": "[PAUSE]", "timestamp": _rounded(span)} for span in scene.pauses]
        _write_json(folder / "pause.json", marks)
    elif kind is Kind.TURN and scene.turn_end_sec is not None:
        gap = (scene.turn_end_sec, scene.turn_end_sec + 0.5)
        _write_json(folder / "turn_taking.json", [{"text": "[TURN-TAKING]", "timestamp": _rounded(gap)}])
    elif kind is Kind.INTERRUPTION and scene.interruption is not None:
        broken = scene.interruption
        span = _rounded((broken.start_sec, broken.end_sec))
        _write_json(
            folder / "interrupt.json", [{"context": broken.context, "interrupt": broken.text, "timestamp": span}]
        )


def nod_distribution(scene: Scene) -> list[float]:
    """A scripted listener's backchannels per 200 ms: uniform after each sentence but the last, zero elsewhere."""
    shares = np.full(int(scene.duration_sec / WINDOW_SEC) + 1, EPSILON)
    for start_sec, end_sec in scene.nods:
        shares[int(start_sec / WINDOW_SEC) : int(end_sec / WINDOW_SEC) + 1] = 1.0
    return (shares / shares.sum()).tolist()


def _rounded(span: Span) -> list[float]:
    return [round(span[0], 3), round(span[1], 3)]


def _write_json(path: Path, content: object) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")
