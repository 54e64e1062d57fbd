"""Messages between the WebRTC handler and the page, and a state as a sentence."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from personaplex.messages import (
    STOPPED,
    STOPPING,
    ConversationHandle,
    ConversationRequest,
    ConversationServer,
    ConversationState,
    EndReason,
    Meter,
    Phase,
)
from personaplex.text.transcript import Transcript, Word
from personaplex.words.hearing import HeardWords, Recognition

if TYPE_CHECKING:
    from fastrtc import WebRTC


END_SENTENCES = {
    EndReason.STOPPED: STOPPED,
    EndReason.FINISHED: "The whole recording is answered. Choose another one to go on.",
    EndReason.TIME_LIMIT: "The time for one conversation is over. Press Start to talk again.",
    EndReason.IDLE: "No sound came from your microphone any more. Check it and press Start again.",
    EndReason.REFUSED: "The conversation was refused. Please try again in a few minutes.",
    EndReason.FAILED: "The conversation failed on the server. Please press Start again.",
    EndReason.SHUTDOWN: STOPPING,
}
"""Why a conversation ended and what to do; for an end that has no message of its own."""


@dataclass(frozen=True)
class PageUpdate:
    """Everything the page shows of a conversation; never a difference to the update before."""

    state: ConversationState
    line: str  # the state in a sentence
    words: tuple[Word, ...] = ()  # the transcript so far
    user_words: tuple[Word, ...] | None = None  # None: nobody writes them down
    meter: Meter = Meter()
    round_trip_ms: float | None = None  # microphone → speaker, estimated; None until it is known

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)


@dataclass
class Record:
    """A conversation that is over; in memory only."""

    webrtc_id: str
    visitor: str | None  # Gradio's session_hash, None outside of an event
    transcript: Transcript
    state: ConversationState  # how it ended
    agent: np.ndarray  # [N] int16; empty unless recording was on
    heard: np.ndarray  # [N] int16, in step with it
    meter: Meter = field(default_factory=Meter)
    heard_words: HeardWords | None = None

    def user_words(self, timeout_sec: float) -> tuple[Word, ...] | None:
        """What the user said, the last words waited for; None where nobody wrote it down."""
        if self.heard_words is None:
            return None
        self.heard_words.wait(timeout_sec)
        return tuple(self.heard_words.words)


@dataclass
class Wiring:
    """A handler's connections to the page and to the conversation server."""

    server: Callable[[], ConversationServer | None]
    """None while the model loads; a PersonaPlexError where it cannot be had becomes a sentence on the page."""
    new_transcript: Callable[[], Transcript]  # an empty one; asked for once the server is there
    read_settings: Callable[[list[Any]], ConversationRequest]
    """The page's settings (the last ``num_settings`` inputs, in order) → the request. Runs in a thread, once the
    server is there; a PersonaPlexError becomes a sentence on the page."""
    num_settings: int
    on_finished: Callable[[Record], None] = lambda record: None  # called on the event loop; must not block
    recognition: Recognition | None = None  # writes the user's words down, where the request asks for it
    clock: Callable[[], float] = time.monotonic
    rtc: WebRTC | None = None
    handles: dict[str, ConversationHandle] = field(default_factory=dict)
    """Conversations by their visitor (Gradio's session_hash), for the page's other events."""

    def attach(self, rtc: WebRTC) -> None:
        """Give the handlers the component, through which they close dead connections."""
        self.rtc = rtc


def state_line(state: ConversationState, left_sec: float | None = None) -> str:
    """A state as a sentence for the visitor."""
    if state.phase is Phase.ENDED:
        return state.message or END_SENTENCES[state.reason or EndReason.FAILED]
    if state.phase is Phase.QUEUED and not state.place:
        return "Waiting for a GPU …"
    if state.phase is Phase.QUEUED:
        return f"All places are taken. You are number {state.place} in the queue and will be let in."
    if state.phase is Phase.PREPARING:
        share = f": {100 * state.done // state.total} %" if state.total else ""
        return f"Preparing the persona{share} …"
    if state.phase is Phase.LOADING:
        return "The model is loading. Your conversation starts as soon as it is there …"
    left = "" if left_sec is None else f" {max(0, round(left_sec))} s are left."
    return ("Talking." if state.phase is Phase.TALKING else "Listening.") + left
