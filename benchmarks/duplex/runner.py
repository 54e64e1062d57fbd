"""The runner: plays every item to the model, several at once, and writes its answer.

Of ``TASK/ID/input.wav`` comes, under the run's folder, ``TASK/ID/output.wav`` (16 kHz mono, exactly as long and
in step with it) and ``text.json`` (the words of the model's text stream with their times), beside copies of the
annotations, so that the published scripts find everything in one place. An item whose ``text.json`` is there is
whole and is not run again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import soxr
from tqdm import tqdm

from benchmarks.duplex import layout
from benchmarks.duplex.echo import EchoPath
from benchmarks.duplex.layout import Item, Kind
from benchmarks.duplex.speech_activity import SAMPLE_RATE_HZ
from personaplex.audio.cleaning import Cleaner
from personaplex.audio.files import read_recording, write_wav
from personaplex.audio.frames import split_frames
from personaplex.engine.engine import Snapshot
from personaplex.errors import InputError
from personaplex.files import write_text
from personaplex.messages import FrameOutput, SamplingOptions
from personaplex.session.session import Conversation, Session
from personaplex.text.transcript import Transcript

RUN_FILE = "run.json"


class Prompts(Protocol):
    """Turns an item into the state in which its conversation starts."""

    def __call__(self, item: Item) -> Snapshot: ...


@dataclass(frozen=True)
class Take:
    """One recording to answer: an item has one, or two where v1.5 adds a clean one."""

    item: Item
    given: str  # input.wav or clean_input.wav
    folder: Path  # where the answer goes
    stem: str  # output or clean_output

    @property
    def sound(self) -> Path:
        return self.folder / f"{self.stem}.wav"

    @property
    def heard(self) -> Path:
        """What the model heard, where that is not what was given."""
        return self.folder / f"{self.stem.replace('output', 'heard')}.wav"

    @property
    def text(self) -> Path:
        """The text stream's words; written last, so the take is whole when it is there."""
        return self.folder / f"{self.stem.replace('output', 'text')}.json"

    @property
    def words(self) -> Path:
        """The form that the published scripts read."""
        return self.folder / f"{self.stem}.json"

    @property
    def asr(self) -> Path:
        """The words a recogniser heard."""
        return self.folder / f"{self.stem.replace('output', 'asr')}.json"

    @property
    def speech(self) -> Path:
        """Where the agent spoke, as Silero VAD finds it."""
        return self.folder / f"{self.stem.replace('output', 'speech')}.json"

    def seed(self, seed: int) -> int:
        """The same for this take whatever else is run, in whatever order."""
        digest = hashlib.sha256(f"{seed}/{self.item.key}/{self.given}".encode()).digest()
        return int.from_bytes(digest[:4], "big")


def takes_of(items: Sequence[Item], out: Path) -> list[Take]:
    return [Take(item, given, out / item.place, stem) for item in items for given, stem in item.inputs().items()]


def settle_run(out: Path, settings: dict) -> None:
    """Write what the run is made with, or check that it goes on with the same; raises InputError if not."""
    path = out / RUN_FILE
    if path.is_file():
        before = layout.read_json(path)
        changed = [key for key in settings if before.get(key) != settings[key]]
        if changed:
            told = "; ".join(f"{key} was {before.get(key)!r} and is {settings[key]!r}" for key in changed)
            raise InputError(f"{out} holds a run with other settings ({told}); give the same or another folder")
        return
    out.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(settings, indent=1) + "\n")


def run(
    session: Session, items: Sequence[Item], out: Path, prompts: Prompts, *, slots: int, options: SamplingOptions,
    clean: bool = False, progress: bool = True,
) -> int:  # fmt: skip
    """Answer all that is not answered yet; → how many takes were run.

    ``options``' seed and the item's name make each take's own seed, so a run can be stopped and gone on with.
    ``clean``: every talk has a Cleaner between its sound and the model.
    Raises InputError, before the work, where an item's annotation cannot be read.
    """
    for item in items:
        _check(item)
    waiting = deque(take for take in takes_of(items, out) if not take.text.is_file())
    count = len(waiting)
    talks: list[_Talk] = []
    with tqdm(total=count, unit="item", desc="talking", disable=not progress) as bar:
        try:
            while waiting or talks:
                while waiting and len(talks) < slots:
                    take = waiting.popleft()
                    snapshot = prompts(take.item)
                    seeded = replace(options, seed=take.seed(options.seed))
                    talks.append(_Talk(take, session, session.start(snapshot, seeded), clean))
                outputs = session.step_together({talk.conversation: talk.next_frame() for talk in talks})
                for talk in talks:
                    talk.hear_back(outputs[talk.conversation])
                for talk in [talk for talk in talks if talk.over]:
                    talk.conversation.close()
                    talk.write()
                    talks.remove(talk)
                    bar.update()
        finally:
            for talk in talks:
                talk.conversation.close()
    return count


def _check(item: Item) -> None:
    """Check, before the work, that the annotations scoring needs can be read."""
    readers = {
        Kind.TURN: layout.turn_end_sec,
        Kind.INTERRUPTION: layout.interruption,
        Kind.ROLE: layout.role,
    }
    layout.persona(item.folder)
    if item.kind in readers:
        readers[item.kind](item.folder)
    if item.kind is Kind.BACKCHANNEL:
        layout.distribution(item)
    if layout.is_lead_in(item.condition):
        layout.user_begins_sec(item.folder)


class _Talk:
    """A take in progress."""

    def __init__(self, take: Take, session: Session, conversation: Conversation, clean: bool):
        config = session.loaded.config
        self.take, self.conversation = take, conversation
        self._rate_hz = config.mimi.sample_rate
        recording = read_recording(take.item.folder / take.given, sample_rate_hz=self._rate_hz)
        self._samples = round(recording.duration_sec * SAMPLE_RATE_HZ)
        self._frames = split_frames(recording.pcm, config.mimi.frame_samples)
        self._transcript = Transcript(session.tokenizer, config.lm.existing_text_padding_id, config.mimi.frame_sec)
        self._said: list[np.ndarray] = []
        self._heard: list[np.ndarray] = []
        echo, frame_samples = layout.echo(take.item.folder), config.mimi.frame_samples
        self._echo = EchoPath(echo, self._rate_hz, frame_samples) if echo is not None else None
        self._cleaner = Cleaner(self._rate_hz) if clean else None

    @property
    def over(self) -> bool:
        return len(self._said) == len(self._frames)

    def next_frame(self) -> np.ndarray:
        """What the model hears: the recording, the agent's own echo, both cleaned where that is asked for."""
        frame = self._frames[len(self._said)]
        if self._echo is not None:
            frame = (frame + self._echo.next_frame()).clip(-1, 1)
        if self._cleaner is not None:
            frame = self._cleaner.hear(frame)
        self._heard.append(frame)
        return frame

    def hear_back(self, output: FrameOutput) -> None:
        for path in (self._echo, self._cleaner):
            if path is not None:
                path.said(output.pcm)
        self._transcript.push(output.text_token, len(self._said))
        self._said.append(output.pcm)

    def write(self) -> None:
        folder = self.take.folder
        folder.mkdir(parents=True, exist_ok=True)
        item = self.take.item
        for stale in (self.take.words, self.take.asr, self.take.speech):
            stale.unlink(missing_ok=True)
        for path in item.files():
            _bring(path, folder / path.name)
        if item.kind is Kind.BACKCHANNEL:
            _bring(layout.distribution_file(item), folder.parent / layout.DISTRIBUTION)
        self._write_sound(self.take.sound, self._said)
        if self._echo is not None or self._cleaner is not None:
            self._write_sound(self.take.heard, self._heard)
        words = [word for word in self._transcript.words if word.start_sec * SAMPLE_RATE_HZ < self._samples]
        write_text(self.take.text, json.dumps(layout.transcript_of(words), indent=1) + "\n")

    def _write_sound(self, path: Path, frames: list[np.ndarray]) -> None:
        """As long as what was given, at 16 kHz."""
        pcm = soxr.resample(np.concatenate(frames), self._rate_hz, SAMPLE_RATE_HZ)
        write_wav(path, np.pad(pcm, (0, max(0, self._samples - len(pcm))))[: self._samples], SAMPLE_RATE_HZ)


def _bring(path: Path, target: Path) -> None:
    """A file of the set into the run, unless it is there: as a link where that is possible."""
    if target.exists():
        return
    try:
        os.link(path.resolve(), target)
    except OSError:
        shutil.copy2(path, target)
