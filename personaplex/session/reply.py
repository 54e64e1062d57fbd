"""A reply to a recorded question: the conversation, and the files written of it."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

from personaplex.audio.cleaning import Cleaner
from personaplex.audio.files import write_stereo_wav, write_wav
from personaplex.audio.frames import FRAME_SAMPLES, SAMPLE_RATE_HZ, split_frames
from personaplex.engine.engine import Snapshot
from personaplex.errors import InputError, OutputError, PersonaPlexError
from personaplex.files import check_writable, write_atomically, write_text
from personaplex.messages import FrameOutput, Progress, SamplingOptions
from personaplex.session.session import Session
from personaplex.text.dialogue import Dialogue
from personaplex.text.prompt import prepare_told
from personaplex.text.tokenizer import TextTokenizer
from personaplex.text.transcript import Transcript, Word

MAX_TAIL_SEC = 600.0
_SUFFIXES = {
    "answer": (".wav",),
    "stereo": (".wav",),
    "transcript": (".json", ".txt", ".vtt"),
    "tokens": (".npy",),
}


@dataclass(frozen=True)
class Outputs:
    """Files to write; None leaves one out."""

    answer: Path | None = None  # the agent, mono WAV
    stereo: Path | None = None  # agent left, user right, WAV
    transcript: Path | None = None  # words and times: JSON, text or WebVTT by its ending
    tokens: Path | None = None  # [17, T] int64, NumPy

    def paths(self) -> dict[str, Path]:
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: Path(path) for name, path in given.items() if path is not None}

    def check(self, inputs: tuple[Path, ...] = ()) -> None:
        """Raise OutputError, before the work, for a path that cannot be written or would be written twice."""
        taken = {_real(path): f"the input {path}" for path in inputs}
        for name, path in self.paths().items():
            check_writable(path, _SUFFIXES[name])
            if _real(path) in taken:
                raise OutputError(f"{path} is {taken[_real(path)]} too; give each output a path of its own")
            taken[_real(path)] = f"the {name}"


def _real(path: Path) -> Path:
    return Path(path).resolve()


@dataclass(frozen=True)
class Reply:
    """Input and output of a conversation, frame by frame; complete, or up to where it was stopped."""

    pcm: np.ndarray  # [N] float32: the agent, as long as the question and its tail
    heard: np.ndarray  # [N] float32: the user, in step with it
    tokens: np.ndarray  # [17, T] int64: exactly what the steps returned
    transcript: Transcript
    frame_sec: float
    wall_sec: float
    complete: bool  # false: stopped before the end
    user_words: tuple[Word, ...] | None = None  # None: nobody wrote them down

    @property
    def num_frames(self) -> int:
        return self.tokens.shape[1]

    @property
    def real_time_factor(self) -> float:
        """Time needed over time spoken: below 1 is faster than real time."""
        return self.wall_sec / max(self.num_frames * self.frame_sec, self.frame_sec)

    def write(self, outputs: Outputs, sample_rate_hz: int) -> None:
        """Each file whole, or not at all, small ones first; raises OutputError when all were tried."""
        writers: dict[str, Callable[[Path], None]] = {
            "transcript": self._write_transcript,
            "tokens": lambda path: write_atomically(path, lambda file: np.save(file, self.tokens)),
            "answer": lambda path: write_wav(path, self.pcm, sample_rate_hz),
            "stereo": lambda path: write_stereo_wav(path, self.pcm, self.heard, sample_rate_hz),
        }
        paths, problems = outputs.paths(), []
        for name in sorted(paths, key=list(writers).index):
            try:
                writers[name](paths[name])
            except OutputError as error:
                problems.append(str(error))
        if problems:
            raise OutputError("; ".join(problems))

    def _write_transcript(self, path: Path) -> None:
        dialogue = Dialogue(self.transcript, self.user_words)
        kinds = {".txt": dialogue.to_text, ".vtt": dialogue.to_webvtt}
        write_text(path, kinds.get(path.suffix.lower(), dialogue.to_json)())


Tells = Sequence[tuple[float, str]]
"""What a persona is told meanwhile: (seconds from the question's beginning, text), in the order of the times."""


def check_times(tells: Tells, heard_sec: float, frame_sec: float = FRAME_SAMPLES / SAMPLE_RATE_HZ) -> None:
    """Raise InputError for something to be told when no frame of the ``heard_sec`` (question and tail) begins."""
    last_sec = max(math.ceil(heard_sec / frame_sec - 1e-9) - 1, 0) * frame_sec
    for at_sec, text in tells:
        if not 0 <= at_sec <= last_sec + 1e-9:
            raise InputError(
                f"'{text:.60}' is to be told at {at_sec} s; 0 to {last_sec:.2f} s are allowed, until the last frame of "
                "the question and its tail begins"
            )


def told_tokens(tells: Tells, tokenizer: TextTokenizer) -> int:
    """Tokens of all of them, tags included; raises PromptError for more than a conversation may be told."""
    told = 0
    for _, text in tells:
        told += len(prepare_told(text, tokenizer, told).tokens)
    return told


def answer(
    session: Session, snapshot: Snapshot, question: np.ndarray, *, options: SamplingOptions | None = None,
    tail_sec: float = 0.0, clean: bool = False, loudspeaker: np.ndarray | None = None,
    progress: Progress | None = None, stop: Callable[[], bool] | None = None, tells: Tells = (),
) -> Reply:  # fmt: skip
    """Play a question to a prompted persona and keep what it says meanwhile.

    question: [N] float32 at the codec's rate. The answer has N samples and those of ``tail_sec``, in
    which the user is silent. ``clean`` takes rumble out of the question, and the echo of ``loudspeaker``: [M] float32,
    what was played beside the microphone meanwhile. ``tells``: what it is told meanwhile (``Conversation.tell``), each
    before the first frame that begins at its time or later. ``stop`` ends it early, and so does Ctrl-C: what was said
    so far is returned with ``complete`` false. Raises PersonaPlexError where the model's numbers are lost.
    """
    mimi = session.loaded.config.mimi
    heard = _with_tail(question, tail_sec, mimi.sample_rate)
    if clean:
        heard = cleaned(heard, loudspeaker, mimi.sample_rate, mimi.frame_samples)
    frames = split_frames(heard, mimi.frame_samples)
    check_times(tells, len(heard) / mimi.sample_rate, mimi.frame_sec)
    told_tokens(tells, session.tokenizer)
    to_tell = deque(sorted(tells, key=lambda tell: tell[0]))
    lm = session.loaded.config.lm
    said = _Said(Transcript(session.tokenizer, lm.existing_text_padding_id, mimi.frame_sec), mimi.frame_sec)
    started = time.perf_counter()
    with session.start(snapshot, options) as conversation:
        try:
            for frame in frames:
                if stop is not None and stop():
                    break
                while to_tell and to_tell[0][0] <= said.seconds + 1e-9:
                    conversation.tell(to_tell.popleft()[1])
                said.take(conversation.step(frame))
                if progress is not None:
                    progress(len(said.columns), len(frames))
        except KeyboardInterrupt:
            del said.columns[len(said.spoken) :]
    num_samples = min(len(said.spoken) * mimi.frame_samples, len(heard))
    return Reply(
        pcm=np.concatenate([*said.spoken, np.zeros(0, np.float32)])[:num_samples],
        heard=heard[:num_samples],
        tokens=np.stack(said.columns, axis=1) if said.columns else np.zeros((lm.num_streams, 0), np.int64),
        transcript=said.transcript,
        frame_sec=mimi.frame_sec,
        wall_sec=time.perf_counter() - started,
        complete=len(said.spoken) == len(frames),
    )


@dataclass
class _Said:
    """What was said so far."""

    transcript: Transcript
    frame_sec: float
    spoken: list[np.ndarray] = field(default_factory=list)
    columns: list[np.ndarray] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return len(self.columns) * self.frame_sec

    def take(self, out: FrameOutput) -> None:
        if not np.isfinite(out.pcm).all():
            raise PersonaPlexError(
                f"the model's numbers stopped being finite after {self.seconds:.1f} s: try --dtype float32, and get "
                "the model's files anew if it happens again"
            )
        self.columns.append(out.tokens)
        self.spoken.append(out.pcm)
        self.transcript.push(out.text_token, len(self.columns) - 1)


def _with_tail(question: np.ndarray, tail_sec: float, sample_rate_hz: int) -> np.ndarray:
    if not 0 <= tail_sec <= MAX_TAIL_SEC:
        raise InputError(f"a tail of {tail_sec} s was asked for; 0 to {MAX_TAIL_SEC:.0f} s are allowed")
    return np.concatenate([question, np.zeros(round(tail_sec * sample_rate_hz), np.float32)]).astype(np.float32)


def cleaned(heard: np.ndarray, loudspeaker: np.ndarray | None, sample_rate_hz: int, frame_samples: int) -> np.ndarray:
    """heard: [N] float32 → the same without rumble and the echo of ``loudspeaker``, [M] float32, in step with it."""
    cleaner = Cleaner(sample_rate_hz)
    played = np.zeros(len(heard), np.float32)
    if loudspeaker is not None:
        played[: len(loudspeaker)] = loudspeaker[: len(heard)]
    frames = []
    for frame, said in zip(split_frames(heard, frame_samples), split_frames(played, frame_samples), strict=True):
        cleaner.said(said)
        frames.append(cleaner.hear(frame))
    return np.concatenate([*frames, np.zeros(0, np.float32)])[: len(heard)]
