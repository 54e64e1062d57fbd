"""The user's words: what the recognisers err, how late the words come, what they cost the talk. Ends in one JSON line.

    python -m benchmarks.user_words accuracy --people FOLDER              # words wrong: recordings, and in a talk
    python -m benchmarks.user_words accuracy --people FOLDER --echo -20   # … with the persona's echo, cleaned
    python -m benchmarks.user_words live --people FOLDER --minutes 2      # delay, dropped frames, order; in real time

FOLDER has recordings of people as docs/training.md lays them out; those that are kept for tests are played. ``live``
holds a conversation with nano on this machine, and wants it quiet.
"""

from __future__ import annotations

import argparse
import math
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from benchmarks.duplex.echo import Echo, EchoPath
from benchmarks.measuring import facts, run_benchmark
from personaplex.audio.cleaning import Cleaner
from personaplex.audio.files import read_recording
from personaplex.audio.frames import FRAME_SAMPLES, SAMPLE_RATE_HZ, split_frames
from personaplex.errors import InputError
from personaplex.files import shipped_folder
from personaplex.machine.choose import inspect_here
from personaplex.messages import ConversationRequest, ConversationState, FrameOutput, Limits, Meter
from personaplex.personas.presets import persona
from personaplex.personas.voices import voice_from_file
from personaplex.serving.server import DuplexServer
from personaplex.session.session import Session
from personaplex.text.dialogue import lines_of
from personaplex.text.transcript import Transcript, Word
from personaplex.weights.load import load_model
from personaplex.words.hearing import HeardWords, Recognition
from personaplex.words.models import load
from personaplex.words.recogniser import HOW_TO_GET, RATE_HZ, WHISPER, available
from training.codec.judge import Item, items_of_people
from training.recognisers import normal_words, same_words, words_wrong

FRAME_SEC = FRAME_SAMPLES / SAMPLE_RATE_HZ
BETWEEN_SEC = 2.0  # recordings
WITHIN_SEC = 120.0
ECHO_DELAY_MS, ECHO_ROOM_MS = 240.0, 300.0
OVERLAPS_SEC = (0.0, 1.0, math.inf)
PERSONA_SEC = 4.0  # that it speaks before the user does


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["accuracy", "live"])
    parser.add_argument("--people", type=Path, required=True)
    parser.add_argument("--kinds", nargs="+", default=list(available()), help="recognisers (default: all installed)")
    parser.add_argument("--count", type=int, default=20, help="recordings of each group (default %(default)s)")
    parser.add_argument("--groups", nargs="+", default=["librispeech-other", "arctic"])
    parser.add_argument("--echo", type=float, metavar="DB", help="accuracy: a persona speaks before, and comes back")
    parser.add_argument(
        "--overlap", nargs="+", type=float, default=list(OVERLAPS_SEC), metavar="SEC",
        help="accuracy: how long the persona goes on over the user; inf: to their end (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--minutes", type=float, default=2.0, help="live: of talk with each recogniser")
    given = parser.parse_args(arguments)
    run_benchmark(measure, given)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """The JSON line; raises InputError without a recogniser or recordings."""
    if not given.kinds:
        raise InputError(f"no recogniser is installed: {HOW_TO_GET}")
    items = [item for item in items_of_people(given.people, given.count) if item.group in given.groups and item.text]
    if not items:
        raise InputError(f"{given.people} has no recordings with words of {', '.join(given.groups)}")
    each = accuracy if given.what == "accuracy" else live
    told = {kind: each(kind, items, given) for kind in given.kinds}
    return {"benchmark": f"user_words {given.what}", "recordings": len(items), **told, **facts(inspect_here(), "cpu")}


# ---------------------------------------------------------------------------------- accuracy


def accuracy(kind: str, items: Sequence[Item], given: argparse.Namespace) -> dict[str, Any]:
    """Shares of words wrong: of the recordings as they are, and as a talk's recogniser writes them."""
    model, recognition = load(kind), Recognition(kind)
    try:
        whole = [model.words(soxr.resample(item.pcm, SAMPLE_RATE_HZ, RATE_HZ).astype(np.float32)) for item in items]
        figures: dict[str, Any] = {
            "offline": _wrong(items, whole),
            "in_talk": _wrong(items, _heard(recognition, items)),
        }
        if given.echo is not None:
            figures["echo_cleaned"] = {
                f"{overlap_sec:g} s": _wrong(items, _heard(recognition, items, given.echo, overlap_sec))
                for overlap_sec in given.overlap
            }
    finally:
        recognition.close()
    return figures


def _wrong(items: Sequence[Item], heard: Sequence[str]) -> dict[str, float]:
    groups = list(dict.fromkeys(item.group for item in items))
    rates = {"all": words_wrong([str(item.text) for item in items], heard)}
    for group in groups:
        pairs = [(str(item.text), text) for item, text in zip(items, heard, strict=True) if item.group == group]
        rates[group] = words_wrong(*zip(*pairs, strict=True))
    return {name: round(100 * rate, 1) for name, rate in rates.items()}


def _heard(
    recognition: Recognition, items: Sequence[Item], echo_db: float | None = None, overlap_sec: float = 0.0
) -> list[str]:
    texts = []
    for item in items:
        if echo_db is None:
            pcm = np.concatenate([_silence(1.0), item.pcm, _silence(1.0)])
        else:
            pcm = echoing(item.pcm, echo_db, overlap_sec)
        texts.append(" ".join(word.text for word in recognition.words_of(pcm, WITHIN_SEC)))
    return texts


def echoing(user: np.ndarray, level_db: float, overlap_sec: float) -> np.ndarray:
    """user: [N] float32 → what is heard of them through the canceller: [M] float32.

    A persona speaks ``PERSONA_SEC`` before the user does, goes on for ``overlap_sec``, or to the user's end, and comes
    back as an echo. The more of it is double talk, the harder for a canceller.
    """
    frames = split_frames(np.concatenate([_silence(PERSONA_SEC), user, _silence(1.0)]))
    voices = [
        read_recording(path).pcm for path in sorted(shipped_folder("voices", "catalogue.json").glob("nano-*.wav"))
    ]
    speaks_sec = PERSONA_SEC + min(overlap_sec, len(user) / SAMPLE_RATE_HZ)
    spoken = np.resize(np.concatenate(voices), frames.size)
    spoken[round(speaks_sec * SAMPLE_RATE_HZ) :] = 0.0
    path = EchoPath(Echo(level_db, ECHO_DELAY_MS, ECHO_ROOM_MS, seed=0), SAMPLE_RATE_HZ, FRAME_SAMPLES)
    cleaner, heard = Cleaner(), []
    for theirs, persona_says in zip(frames, split_frames(spoken), strict=True):
        heard.append(cleaner.hear(theirs + path.next_frame()))
        for ear in (path, cleaner):
            ear.said(persona_says)
    return np.concatenate(heard)


def _silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * SAMPLE_RATE_HZ), np.float32)


# ---------------------------------------------------------------------------------- live


@dataclass
class Seen:
    """The user's words as they came: how many there were at which second of the talk."""

    began_at: float = 0.0
    counts: list[tuple[float, list[Word]]] = field(default_factory=list)

    def delays_sec(self, said: Sequence[Word], start_sec: float, end_sec: float) -> list[float]:
        """From each word's end to the moment since which it is there for good.

        said: the words between ``start_sec`` and ``end_sec``, with their true ends. Those never written, or not as they
        were said, are left out; what is written and taken back again does not count.
        """
        shown = [
            (at_sec, [normal_words(word.text) for word in words if start_sec <= word.start_sec < end_sec])
            for at_sec, words in self.counts
            if at_sec > start_sec
        ]
        if not shown:
            return []
        final = shown[-1][1]
        since, there = dict[int, float](), set(range(len(final)))
        for at_sec, words in reversed(shown):
            there &= same_words(final, words).keys()
            since.update(dict.fromkeys(there, at_sec))
        right = same_words(final, [normal_words(word.text) for word in said])
        return [max(0.0, since[place] - said[truly].end_sec) for place, truly in right.items()]


class Talk:
    """A listener that takes part in a live conversation and pushes what it hears to the recogniser."""

    def __init__(self, transcript: Transcript) -> None:
        self.transcript, self.meter, self.is_live = transcript, Meter(), threading.Event()
        self.words: HeardWords | None = None

    def on_state(self, state: ConversationState) -> None:
        if state.is_live:
            self.is_live.set()

    def on_frame(self, output: FrameOutput, heard: np.ndarray, meter: Meter) -> None:
        self.transcript.push(output.text_token, meter.frames - 1)
        self.meter = meter
        if self.words is not None:
            self.words.push(heard)


def live(kind: str, items: Sequence[Item], given: argparse.Namespace) -> dict[str, Any]:
    """A talk in real time: a question, an interruption of its answer, then people's recordings."""
    aligner: Any = load(WHISPER)
    recognition, seen = Recognition(kind), Seen()
    session = Session(load_model("nano"), slots=1)
    session.engine.warm_up()
    server = DuplexServer(session, Limits(conversation_sec=3600.0))
    config = session.loaded.config
    talk = Talk(Transcript(session.tokenizer, config.lm.existing_text_padding_id, config.mimi.frame_sec))
    try:
        recognition.warm_up(WITHIN_SEC)
        talk.words = words = recognition.listen(
            lambda utterance: seen.counts.append((time.perf_counter() - seen.began_at, words.words))
        )
        voice = voice_from_file(shipped_folder("voices", "catalogue.json") / "nano-f.wav", config=config)
        handle = server.open(ConversationRequest(voice=voice, text=persona("bank").prompt_for("nano")), talk)
        talk.is_live.wait(WITHIN_SEC)
        seen.began_at = time.perf_counter()
        clock = _Clock(seen.began_at, handle.push)
        _interrupt(clock, talk)
        delays: list[float] = []
        played = _play(clock, items, given.minutes * 60)
        words.finish()
        words.wait(WITHIN_SEC)
        for item, start_sec in played:
            said = aligner.timed_words(soxr.resample(item.pcm, SAMPLE_RATE_HZ, RATE_HZ).astype(np.float32))
            end_sec = start_sec + len(item.pcm) / SAMPLE_RATE_HZ + BETWEEN_SEC / 2
            said = [replace(word, end_sec=start_sec + word.end_sec) for word in said]
            delays += seen.delays_sec(said, start_sec, end_sec)
        handle.close()
    finally:
        server.close()
        recognition.close()
    opening = [word for word in words.words if word.start_sec < played[0][1]]
    spoken = [word for word in talk.transcript.words if word.start_sec < played[0][1]]
    return {
        "delay_median_sec": round(statistics.median(delays), 2) if delays else None,
        "words": len(delays),
        "dropped_frames": talk.meter.dropped_frames,
        "step_ms": round(talk.meter.step_ms, 1),
        "opening": [f"{line.start_sec:.1f} {line.speaker}: {line.text}" for line in lines_of(spoken, opening)],
    }


class _Clock:
    """Pushes frames when they are due."""

    def __init__(self, began_at: float, push: Any) -> None:
        self.frames, self._began_at, self._push = 0, began_at, push

    @property
    def now_sec(self) -> float:
        return self.frames * FRAME_SEC

    def play(self, pcm: np.ndarray) -> None:
        for frame in split_frames(pcm):
            self.frames += 1
            time.sleep(max(0.0, self._began_at + self.now_sec - time.perf_counter()))
            self._push(frame)


def _interrupt(clock: _Clock, talk: Talk) -> None:
    """A question once the greeting is over, and another one 1.2 s after its answer has begun."""
    first, second = (_question(name) for name in ("bank", "teacher"))
    clock.play(_silence(6.0))
    greeted = len(talk.transcript.words)
    clock.play(first)
    until_sec = clock.now_sec + 8.0
    while len(talk.transcript.words) <= greeted and clock.now_sec < until_sec:
        clock.play(_silence(FRAME_SEC))
    clock.play(_silence(1.2))
    clock.play(second)
    clock.play(_silence(6.0))


def _question(name: str) -> np.ndarray:
    return read_recording(shipped_folder("examples", "personas.json") / "questions" / f"{name}.wav").pcm


def _play(clock: _Clock, items: Sequence[Item], seconds: float) -> list[tuple[Item, float]]:
    """People's recordings until the time is over → each with its start."""
    played = []
    for item in items:
        played.append((item, clock.now_sec))
        clock.play(np.concatenate([item.pcm, _silence(BETWEEN_SEC)]))
        if clock.now_sec >= seconds:
            break
    return played


if __name__ == "__main__":
    main()
