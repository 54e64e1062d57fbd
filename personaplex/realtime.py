"""The WebRTC edge: one handler a connection, between FastRTC's event loop and the engine's thread.

Wiring, for the page:

    wiring = Wiring(server=lambda: server_or_none, tokenizer=lambda: tokenizer,
                    read_settings=read_settings, num_settings=7, on_finished=keep)
    handler = DuplexHandler(wiring)
    rtc.stream(handler, inputs=[rtc, *settings], outputs=[rtc], concurrency_limit=limits.slots + limits.waiting + 4)
    wiring.attach(rtc)
    rtc.on_additional_outputs(lambda update: (...), outputs=[...], concurrency_limit=None, show_progress="hidden")
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from personaplex.conversation import ConversationRequest, ConversationServer, ConversationState, Meter
from personaplex.text import TextTokenizer, Transcript, Word


@dataclass(frozen=True)
class PageUpdate:
    """What the page shows now: always the whole, never a difference."""

    state: ConversationState
    line: str  # the state in a sentence
    words: tuple[Word, ...] = ()  # the transcript so far
    meter: Meter = Meter()
    round_trip_ms: float | None = None  # microphone → speaker, estimated; None until it is known

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)


@dataclass
class Record:
    """What a conversation leaves behind; in memory only."""

    webrtc_id: str
    visitor: str | None  # Gradio's session_hash, None outside of an event
    transcript: Transcript
    state: ConversationState  # how it ended
    agent: np.ndarray  # [N] float32; empty unless recording was on
    heard: np.ndarray  # [N] float32, in step with it
    meter: Meter = field(default_factory=Meter)


@dataclass
class Wiring:
    """What a handler needs of the page and the engine's side."""

    server: Callable[[], ConversationServer | None]  # None while the model loads
    tokenizer: Callable[[], TextTokenizer]  # asked once the server is there
    read_settings: Callable[[list[Any]], ConversationRequest]
    """The page's settings (the last ``num_settings`` inputs, in order) → the request. Runs in a thread;
    a PersonaPlexError becomes a sentence on the page."""
    num_settings: int
    on_finished: Callable[[Record], None] = lambda record: None  # called on the event loop; must not block
