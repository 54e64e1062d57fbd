"""The worker's side of a conversation's line: what happens is sent to the page, what the page sends is heard."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from personaplex.messages import ConversationState, EndReason, Phase
from personaplex.serving.layout import Kind, decode_sound, encode_frame, encode_state, encode_told

if TYPE_CHECKING:
    import numpy as np

    from personaplex.messages import ConversationHandle, FrameOutput, Meter
    from personaplex.serving.line import Line


class LineListener:
    """Sends what happens over the line, from the engine's thread."""

    def __init__(self, line: Line, within_sec: float, on_over: Callable[[], None] = lambda: None):
        """``within_sec``: how long a page that reads nothing may hold the engine up before its line is given up.

        ``on_over`` is called from any thread once the conversation has ended or its line is broken.
        """
        self._line, self._within_sec, self._on_over = line, within_sec, on_over
        self.is_over = threading.Event()
        self.failed = False

    def on_state(self, state: ConversationState) -> None:
        self.send(Kind.STATE, encode_state(state))
        self.failed = self.failed or state.reason is EndReason.FAILED
        if state.phase is Phase.ENDED:
            self._end()

    def on_frame(self, output: FrameOutput, heard: np.ndarray, meter: Meter) -> None:
        self.send(Kind.FRAME, encode_frame(output, heard, meter))

    def on_told(self, future: Future[int]) -> None:
        error = future.exception()
        told = encode_told(future.result()) if error is None else encode_told(0, str(error) or type(error).__name__)
        self.send(Kind.TOLD, told)

    def send(self, kind: Kind, payload: bytes = b"") -> None:
        """Send a message; where that fails the conversation is over."""
        try:
            self._line.send(kind, payload, within_sec=self._within_sec)
        except OSError:
            self._end()

    def _end(self) -> None:
        self.is_over.set()
        self._on_over()


def pass_on(line: Line, handle: ConversationHandle, listener: LineListener, within_sec: float | None) -> bool:
    """Wait for the page's next message and hand it to the conversation; false once the page has hung up.

    Raises TimeoutError if none comes within ``within_sec`` (None: wait), OSError or ValueError if the line is broken.
    """
    kind, payload = line.receive(within_sec=within_sec)
    if kind == Kind.SOUND:
        handle.push(decode_sound(payload))
    elif kind == Kind.TELL:
        handle.tell(payload.decode()).add_done_callback(listener.on_told)
    return kind != Kind.HANG_UP
