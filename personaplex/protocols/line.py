"""A conversation as a protocol's client has it: its sound fed in, the engine's events out, in order and bounded."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from personaplex.messages import (
    ConversationHandle,
    ConversationRequest,
    ConversationServer,
    ConversationState,
    FrameOutput,
    Meter,
    Phase,
)
from personaplex.protocols.feeder import FRAME_SEC, Feeder

log = logging.getLogger(__name__)

MOST_UNREAD_SEC = 20.0
"""Speech that waits for a client that does not read; then its conversation is ended."""
MOST_UNREAD = round(MOST_UNREAD_SEC / FRAME_SEC)


@dataclass(frozen=True)
class Frame:
    """One frame of a conversation."""

    index: int  # frames since the conversation is live
    pcm: np.ndarray  # [frame_samples] float32, the persona's
    text_token: int
    heard: np.ndarray  # [frame_samples] float32, the client's, as the model heard it


Event = ConversationState | Frame


class Line:
    """The listener of one conversation. All but the ``on_…`` methods run on the event loop and do not block."""

    def __init__(
        self, server: ConversationServer, *, keeps_early_sound: bool = False, fills_gaps: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """``fills_gaps``: a client that stops sending is silent, not gone."""
        self._server, self._fills_gaps, self._clock = server, fills_gaps, clock
        self._loop = asyncio.get_running_loop()
        self._handle: ConversationHandle | None = None
        self._events: deque[Event] = deque()
        self._wake = asyncio.Event()
        self._frames = 0
        self.feeder = Feeder(self._push, keeps_early=keeps_early_sound, clock=clock)
        self.is_live = False
        self.overrun = asyncio.Event()
        """Set when the client has left MOST_UNREAD events unread."""

    @property
    def is_open(self) -> bool:
        """Whether the conversation was asked for."""
        return self._handle is not None

    def open(self, request: ConversationRequest) -> None:
        """Ask for the conversation: let in, queued or refused, all of which the events tell."""
        self._handle = self._server.open(request, self)

    async def events(self) -> AsyncIterator[Event]:
        """States and frames in the order in which they came, the end last."""
        while True:
            while self._events:
                event = self._events.popleft()
                yield event
                if isinstance(event, ConversationState) and event.phase is Phase.ENDED:
                    return
            self._wake.clear()
            await self._wake.wait()

    async def keep_time(self) -> None:
        """Fill the client's gaps with silence, at the pace of sound; never returns."""
        due = self._clock()
        while True:
            due = max(due + FRAME_SEC, self._clock() - FRAME_SEC)  # a loop that stood still is not caught up
            await asyncio.sleep(max(0.0, due - self._clock()))
            if self._fills_gaps:
                self.feeder.fill_gap()

    def tell(self, text: str) -> Future[int]:
        """Tell the model something new; see `ConversationHandle.tell`."""
        assert self._handle is not None, "a conversation is told something once it was asked for"
        return self._handle.tell(text)

    def close(self) -> None:
        """The client is gone, or wants to stop. Closing twice is harmless."""
        if self._handle is not None:
            self._handle.close()
        if self.feeder.dropped:
            log.info("%d frames of a client came too fast and were dropped", self.feeder.dropped)

    # -- called by the engine, from its own thread -----------------------------------------------

    def on_state(self, state: ConversationState) -> None:
        self._call(self._take_state, state)

    def on_frame(self, output: FrameOutput, heard: np.ndarray, meter: Meter) -> None:
        self._call(self._take_frame, output, heard)

    def _call(self, method: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(method, *arguments)
        except RuntimeError:  # the loop is closed because the process ends
            log.debug("a conversation's event loop is closed")

    # -- on the loop -----------------------------------------------------------------------------

    def _push(self, frame: np.ndarray) -> None:
        if self._handle is not None:
            self._handle.push(frame)

    def _take_state(self, state: ConversationState) -> None:
        if state.is_live and not self.is_live:
            self.is_live = True
            self.feeder.begin()
        self._add(state)

    def _take_frame(self, output: FrameOutput, heard: np.ndarray) -> None:
        self.feeder.answered()
        self._add(Frame(self._frames, output.pcm, output.text_token, heard))
        self._frames += 1

    def _add(self, event: Event) -> None:
        if len(self._events) >= MOST_UNREAD:
            self._events.clear()
            self.overrun.set()
        self._events.append(event)
        self._wake.set()
