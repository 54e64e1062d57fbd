"""Messages between the engine and its edges (page, command line, protocols): requests, states, outputs.

Nothing here computes or imports torch, so an edge can be imported, or run on another machine, without it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

import numpy as np

from personaplex.audio.frames import SAMPLE_RATE_HZ
from personaplex.errors import InputError
from personaplex.strict import check_range

MAX_TOP_K = 250
NEW_SEED, MAX_SEED = -1, 2**31 - 1
"""What a client gives for a seed of chance, and the largest that it may give."""
"""Largest top-k of the samplers."""

LEAST_LIMIT_SEC = 1e-3
"""A time limit is a time."""

Progress = Callable[[int, int], None]
"""Called with (done, total) while something long is under way: bytes of a file, frames of a prompt or a recording."""

STOPPED = "You stopped the conversation. Press Start to talk again."
OVER = "the conversation is over; nothing can be told in it any more"
STOPPING = "The server is being stopped. Please come back in a minute."


@dataclass(frozen=True)
class Limits:
    """Limits of what one machine serves."""

    slots: int = 1  # conversations at once
    waiting: int = 8  # visitors who may queue for a slot
    conversation_sec: float = 600.0
    notice_sec: float = 30.0  # the end is announced so long before it
    idle_sec: float = 15.0  # a conversation that no sound reaches for so long is over
    max_waiting_frames: int = 2  # of one conversation; a further one drops the oldest

    def __post_init__(self) -> None:
        for name, least in (
            ("slots", 1), ("waiting", 0), ("max_waiting_frames", 1),
            ("conversation_sec", LEAST_LIMIT_SEC), ("idle_sec", LEAST_LIMIT_SEC), ("notice_sec", 0),
        ):  # fmt: skip
            check_range(name, getattr(self, name), least)


def minutes(seconds: float) -> str:
    """60 → "1 minute", 600 → "10 minutes"."""
    number = f"{seconds / 60:.3g}"
    return f"{number} minute" if number == "1" else f"{number} minutes"


@dataclass(frozen=True)
class Voice:
    """A voice for the prompt, from exactly one source."""

    name: str
    pcm: np.ndarray | None = None  # [N] float32 at the codec's rate, at the prompt's loudness
    embeddings_path: Path | None = None  # a published .pt file
    snapshot_path: Path | None = None  # a saved state after the voice
    notes: tuple[str, ...] = ()  # warnings for the user
    of_model: bool = False  # the one of this name that lies beside the model, to be found on the machine that runs it

    def __post_init__(self) -> None:
        sources = [self.pcm, self.embeddings_path, self.snapshot_path, self.of_model or None]
        assert sum(source is not None for source in sources) == 1, "a voice has one source"

    @property
    def duration_sec(self) -> float | None:
        """Length of the recording, if it is one."""
        return None if self.pcm is None else len(self.pcm) / SAMPLE_RATE_HZ


@dataclass(frozen=True)
class SamplingOptions:
    """Sampling of a conversation's tokens; the defaults are the published ones."""

    temperature_audio: float = 0.8
    top_k_audio: int = 250
    temperature_text: float = 0.7
    top_k_text: int = 25
    greedy: bool = False  # the most likely token always; temperatures and top-k are ignored
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("temperature_audio", "temperature_text"):
            advice = " (for no randomness choose greedy)"
            check_range(name, getattr(self, name), 0.01, 10, error=InputError, advice=advice)
        for name in ("top_k_audio", "top_k_text"):
            check_range(name, getattr(self, name), 1, MAX_TOP_K, error=InputError)
        check_range("seed", self.seed, 0, 2**63 - 1, error=InputError)


@dataclass(frozen=True)
class ConversationRequest:
    """Everything that is fixed at a conversation's start."""

    voice: Voice | None = None  # None: the model's own
    text: str = ""  # the role; empty leaves the text segment out
    sampling: SamplingOptions | None = None  # None: the published values
    wait_for_greeting: bool = False  # the model hears silence until its greeting is over
    clean_microphone: bool = False
    """Take the persona's echo and rumble out of the microphone first, for clients that do not do so themselves."""
    write_user_words: bool = False  # the edge has a recogniser write down what the model hears
    record: bool = False  # keep the sound of both sides for the visitor
    truncate_text: bool = False
    question: np.ndarray | None = None
    """[N] float32: a recording to be answered as fast as the machine can, instead of a live microphone."""


class Phase(str, Enum):
    """Phase of a conversation."""

    LOADING = "loading"  # the model is not there yet
    QUEUED = "queued"
    PREPARING = "preparing"
    LISTENING = "listening"
    TALKING = "talking"
    ENDED = "ended"


class EndReason(str, Enum):
    """Reason of a conversation's end."""

    STOPPED = "stopped"  # by the visitor
    FINISHED = "finished"  # a recording was answered to its end
    TIME_LIMIT = "time_limit"
    IDLE = "idle"  # no sound came any more
    REFUSED = "refused"  # full, or the request cannot be used
    FAILED = "failed"
    SHUTDOWN = "shutdown"


@dataclass(frozen=True)
class ConversationState:
    """State of a conversation, for its visitor; fields that do not belong to the phase keep their defaults."""

    phase: Phase
    place: int = 0  # queued: 1 is next
    done: int = 0  # preparing: frames of the prompt
    total: int = 0
    left_sec: float | None = None  # listening, talking: time that is left, once the notice is due
    reason: EndReason | None = None  # ended
    message: str = ""  # ended: a sentence for the visitor

    @property
    def is_live(self) -> bool:
        return self.phase in (Phase.LISTENING, Phase.TALKING)


@dataclass(frozen=True)
class Meter:
    """Timing of a conversation."""

    step_ms: float = 0.0  # median of the newest steps, to be held against the frame's 80 ms
    answer_ms: float = 0.0  # from a frame's last sample coming in to its answer, likewise
    frames: int = 0
    dropped_frames: int = 0


@dataclass(frozen=True)
class ServerStatus:
    """Load and health of a server."""

    running: int
    waiting: int
    slots: int
    step_p50_ms: float
    step_p99_ms: float
    dropped_frames: int
    errors: int
    healthy: bool
    message: str = ""  # what is wrong, if not healthy


@dataclass(frozen=True)
class FrameOutput:
    """Output of one 80 ms frame of a conversation."""

    pcm: np.ndarray  # [frame_samples] float32, the agent's speech
    text_token: int
    tokens: np.ndarray  # [17] int64, exactly what the step returned


class Listener(Protocol):
    """Callbacks of a conversation. They are called from the engine's thread and must not block."""

    def on_state(self, state: ConversationState) -> None: ...

    def on_frame(self, output: FrameOutput, heard: np.ndarray, meter: Meter) -> None:
        """One frame: the model's output, and the input it heard ([frame_samples] float32)."""


class ConversationHandle(Protocol):
    """A conversation from outside; every method may be called from any thread and returns at once."""

    def push(self, pcm: np.ndarray) -> None:
        """Hand over one frame of the microphone, [frame_samples] float32; ignored unless it is live."""

    def tell(self, text: str) -> Future[int]:
        """Tell the model something new, between two frames: "The pool is closed today."; see ``Conversation.tell``.

        Texts are told in their order, and before the conversation is live they wait for it. The microphone's frames
        wait meanwhile, and none is dropped for it. → how many tokens may be told still, or the PersonaPlexError that
        says why this one was refused (the conversation goes on, if it was not over). The future's callbacks run on the
        engine's thread and must not block; in a coroutine: ``await asyncio.wrap_future(handle.tell(text))``.
        """

    def close(self, message: str = "") -> None:
        """The visitor is gone, or wants to stop. Closing twice is harmless."""


class ConversationServer(Protocol):
    """Opens conversations."""

    def open(self, request: ConversationRequest, listener: Listener) -> ConversationHandle:
        """Never blocks, and raises nothing for a visitor's mistakes: they are told through ``on_state``."""

    def close(self) -> None:
        """End every conversation with a message to its visitor, within 5 s."""

    def status(self) -> ServerStatus: ...
