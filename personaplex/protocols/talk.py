"""One websocket and one conversation: read and speak until either side ends, and free the slot at once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from personaplex.errors import PersonaPlexError
from personaplex.messages import STOPPING, ConversationState, EndReason, Phase
from personaplex.protocols.asked import Model
from personaplex.protocols.line import Frame, Line

log = logging.getLogger(__name__)

HANG_UP_WITHIN_SEC = 1.0
MAX_MESSAGE_BYTES = 2_000_000
"""Of one message: 31 s of PCM in base64. The servers of both ports are told; parsing JSON stops the event loop."""

NORMAL, GOING_AWAY, POLICY, FAILURE, TRY_LATER = 1000, 1001, 1008, 1011, 1013
CLOSE_CODES = {
    EndReason.STOPPED: NORMAL,
    EndReason.FINISHED: NORMAL,
    EndReason.TIME_LIMIT: POLICY,
    EndReason.IDLE: POLICY,
    EndReason.REFUSED: TRY_LATER,
    EndReason.FAILED: FAILURE,
    EndReason.SHUTDOWN: GOING_AWAY,
}
"""RFC 6455, 7.4.1, and the registry's 1013. A client may take 1000 for an invitation to come again at once."""
SENTENCES = {
    EndReason.TIME_LIMIT: "The time for one conversation is over.",
    EndReason.IDLE: "No sound came any more.",
    EndReason.FAILED: "The conversation failed on the server. Please try again.",
    EndReason.SHUTDOWN: STOPPING,
}
"""For ends whose own message speaks of the page's buttons."""


def sentence_of(state: ConversationState) -> str:
    """Why a conversation ended, for a client."""
    reason = state.reason or EndReason.FAILED
    return SENTENCES.get(reason) or state.message or "The conversation is over."


class Talk(ABC):
    """A protocol on one websocket. Subclasses say what messages mean; all of it runs on the event loop."""

    opens_within_sec = 120.0
    """A client that has not asked for a conversation by then is sent away."""

    def __init__(self, socket: WebSocket, model: Model, line: Line) -> None:
        self.socket, self.model, self.line = socket, model, line
        self.has_asked = False
        """Whether the client asked for a conversation; to find its voice takes a while on a busy machine."""
        self._code = NORMAL
        self._beside: set[asyncio.Task[object]] = set()

    # -- for subclasses --------------------------------------------------------------------------

    async def begin(self) -> None:  # noqa: B027 - most protocols wait for the client
        """The websocket is accepted."""

    @abstractmethod
    async def take(self, message: str | bytes) -> bool:
        """A message of the client; false when it hangs up."""

    @abstractmethod
    async def tell(self, event: ConversationState | Frame) -> None:
        """An event of the conversation, other than its end."""

    @abstractmethod
    async def last_words(self, state: ConversationState) -> None:
        """The conversation has ended, and not by the client's wish."""

    async def refuse(self, sentence: str, reason: EndReason = EndReason.REFUSED) -> None:
        """End before, or instead of, a conversation."""
        self._code = CLOSE_CODES[reason] if reason is not EndReason.REFUSED else POLICY
        await self.last_words(ConversationState(Phase.ENDED, reason=reason, message=sentence))

    def beside(self, work: Coroutine[Any, Any, object]) -> None:
        """Do something that may take long, without keeping the client's further messages waiting."""
        task = asyncio.create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    # -- the course of a talk --------------------------------------------------------------------

    async def run(self) -> None:
        """Until either side ends. Whatever happens, the slot is free afterwards."""
        work = [self._converse(), self._speak(), self._watch(), self.line.keep_time()]
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(each) for each in work]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.line.close()
            tasks += self._beside
            for task in tasks:
                task.cancel()
            for error in await asyncio.gather(*tasks, return_exceptions=True):
                self._note(error)
        # A client that does not read would make this wait for ever.
        with contextlib.suppress(asyncio.TimeoutError, WebSocketDisconnect, RuntimeError):
            await asyncio.wait_for(self.socket.close(self._code), HANG_UP_WITHIN_SEC)

    async def _converse(self) -> None:
        """The client's messages, until it is gone."""
        try:
            await self.begin()
            while True:
                message: dict[str, Any] = dict(await self.socket.receive())
                if message["type"] == "websocket.disconnect":
                    return
                self.line.feeder.alive()
                content = message.get("text") if message.get("text") is not None else message.get("bytes")
                if content is not None and not await self.take(content):
                    return
        except PersonaPlexError as error:  # its text may quote the client, so it is not logged
            log.info("a client's conversation was refused: %s", type(error).__name__)
            await self.refuse(str(error)[:1].upper() + str(error)[1:] + ".")

    async def _speak(self) -> None:
        """What the engine says, until the conversation's end."""
        async for event in self.line.events():
            if isinstance(event, ConversationState) and event.phase is Phase.ENDED:
                reason = event.reason or EndReason.FAILED
                self._code = CLOSE_CODES[reason]
                if reason is not EndReason.STOPPED:
                    await self.last_words(event)
                return
            await self.tell(event)

    async def _watch(self) -> None:
        """Ends a client that does not read, and one that asks for nothing."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.line.overrun.wait(), self.opens_within_sec)
        if not self.has_asked:
            await self.refuse("No conversation was asked for in time.")
            return
        await self.line.overrun.wait()
        log.info("a client does not read what it is sent; its conversation ends")
        self._code = POLICY

    def _note(self, error: BaseException | None) -> None:
        """Log what is ours to mend; a client that is gone is not."""
        expected = (asyncio.CancelledError, WebSocketDisconnect)
        if error is None or isinstance(error, expected) or "websocket.close" in str(error):
            return
        self._code = FAILURE
        log.error("a client's talk failed", exc_info=error)
