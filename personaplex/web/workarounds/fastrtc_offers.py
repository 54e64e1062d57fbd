"""Admission of WebRTC offers in front of FastRTC 0.0.34, which accepts and keeps all of them.

Its ``handle_offer`` looks an id up among connections with sound only, so that further offers of one id each leave an
open peer connection behind; it counts offers that never connect as visitors, for 30 s; it raises on a malformed body
and logs the visitor's text. One client could exhaust the descriptors or keep everybody else out.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from gradio.components.base import server
from gradio.route_utils import Request

from personaplex.web.address import is_elsewhere, visitor_address
from personaplex.web.webrtc import IceServers
from personaplex.web.workarounds.fastrtc_candidates import MOST_OF_ONE, EarlyCandidates, complete_candidate
from personaplex.web.workarounds.patch import replace

if TYPE_CHECKING:
    from fastrtc import WebRTC
    from starlette.requests import HTTPConnection

log = logging.getLogger(__name__)

STARTED_WITHIN_SEC = 10.0
"""From the offer to the handler's start, after which a connection is closed; a browser takes 0.3 to 6 s."""
PENDING_OF_ONE_ADDRESS = 6
PENDING_OF_ALL = 32
"""Offers whose connection and settings are still to come. They take no visitor's place."""
KNOWN_WITHIN_SEC = 3.0
"""A page may ask for its updates a moment before its connection is known."""
MAX_SDP_CHARS = 30_000
"""A browser's offer of one microphone and a data channel has 2 to 8 thousand."""

_WEBRTC_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class RefusedError(Exception):
    """An offer or candidate that is not taken; its text is FastRTC's name for the reason."""


@dataclass(frozen=True, eq=False)
class _Pending:
    """An offer whose page has not sent its settings over the connection yet."""

    address: str


class _Handlers(dict[str, Any]):
    """FastRTC's table of handlers; its ``submit`` event raises a KeyError for an unknown id."""

    def __missing__(self, webrtc_id: str) -> None:
        return None


@dataclass
class Offers:
    """Stands in for the WebRTC component's server functions ``offer``, ``turn`` and ``quit_output_stream``."""

    rtc: WebRTC
    ice: IceServers
    most_connected: int  # visitors who talk or wait, all together
    early: EarlyCandidates = field(default_factory=EarlyCandidates)
    _pending: dict[str, _Pending] = field(default_factory=dict)
    _candidates: Counter[str] = field(default_factory=Counter)
    _closing: set[asyncio.Future[None]] = field(default_factory=set)  # the event loop holds tasks weakly

    async def offer(self, body: Any, request: HTTPConnection | None) -> Any:
        """A page's offer or ICE candidate: FastRTC's answer, or why it is refused. Never raises."""
        try:
            webrtc_id = _webrtc_id(body)
            if body.get("type") == "ice-candidate":
                return await self._take_candidate(webrtc_id, body.get("candidate"))
            return await self._take_offer(webrtc_id, body, request)
        except RefusedError as error:
            return _failed(str(error))

    async def turn(self, request: HTTPConnection | None) -> dict[str, Any]:
        """The ``RTCConfiguration`` for this visitor's browser."""
        return await self.ice.for_browser(is_elsewhere(request))

    async def quit_output_stream(self, body: Any) -> dict[str, Any]:
        """The page has stopped and wants no more updates."""
        try:
            outputs = self.rtc.additional_outputs.get(_webrtc_id(body))
        except RefusedError as error:
            return _failed(str(error))
        if outputs is not None:
            outputs.quit.set()
        return {"success": True}

    # -- candidates --------------------------------------------------------------------------

    async def _take_candidate(self, webrtc_id: str, given: Any) -> Any:
        try:
            candidate = complete_candidate(given)
        except ValueError as error:
            raise RefusedError("invalid_candidate_format") from error
        if candidate is None:  # aiortc goes on waiting for candidates, which does no harm
            return {"status": "success"}
        if webrtc_id not in self.rtc.pcs:
            self.early.keep(webrtc_id, candidate)
            return {"status": "success"}
        self._candidates[webrtc_id] += 1
        if self._candidates[webrtc_id] > MOST_OF_ONE:
            raise RefusedError("too_many_candidates")
        return await self._hand_over(webrtc_id, candidate)

    async def _hand_over(self, webrtc_id: str, candidate: dict[str, Any]) -> Any:
        body = {"type": "ice-candidate", "webrtc_id": webrtc_id, "candidate": candidate}
        return await self.rtc.handle_offer(body, None)

    # -- offers ------------------------------------------------------------------------------

    async def _take_offer(self, webrtc_id: str, body: dict[str, Any], request: HTTPConnection | None) -> Any:
        sdp, kind = body.get("sdp"), body.get("type")
        if kind != "offer" or not isinstance(sdp, str) or len(sdp) > MAX_SDP_CHARS:
            raise RefusedError("invalid_offer")
        if sdp.count("a=candidate:") > MOST_OF_ONE:
            raise RefusedError("too_many_candidates")
        pending = self._admit(webrtc_id, visitor_address(request))
        self.rtc.server_rtc_configuration = self.rtc.convert_to_aiortc_format(
            self.ice.for_server(is_elsewhere(request))
        )
        asyncio.get_running_loop().call_later(STARTED_WITHIN_SEC, self._close_unless_started, webrtc_id, pending)
        body = {"type": kind, "sdp": sdp, "webrtc_id": webrtc_id}
        try:  # FastRTC reads the configuration and enters the connection into its table before it first awaits
            answer = await self.rtc.handle_offer(body, self.rtc.set_additional_outputs(webrtc_id))
        except Exception as error:
            log.info("an offer could not be used: %s", type(error).__name__)
            await asyncio.sleep(0)  # FastRTC's timer, which may just have been made, has to begin before it can end
            await self._drop(webrtc_id)
            raise RefusedError("invalid_offer") from error
        if len(self.rtc.connections.get(webrtc_id, ())) != 1:
            log.info("an offer without exactly one microphone was refused")
            await self._drop(webrtc_id)
            raise RefusedError("invalid_offer")
        for candidate in self.early.take(webrtc_id):
            await self._hand_over(webrtc_id, candidate)
        return answer

    def _admit(self, webrtc_id: str, address: str) -> _Pending:
        """Raises RefusedError for an id that is known and where there is no room."""
        self._forget_settled()
        if webrtc_id in self.rtc.pcs or webrtc_id in self.rtc.connections:
            raise RefusedError("connection_already_exists")
        of_address = sum(pending.address == address for pending in self._pending.values())
        connected = len(self.rtc.pcs) - len(self._pending)
        if connected >= self.most_connected:
            raise RefusedError("concurrency_limit_reached")
        if of_address >= PENDING_OF_ONE_ADDRESS or len(self._pending) >= PENDING_OF_ALL:
            log.info("an offer was refused: too many of its kind are not connected yet")
            raise RefusedError("concurrency_limit_reached")
        self._pending[webrtc_id] = pending = _Pending(address)
        return pending

    # -- what becomes of them ----------------------------------------------------------------

    def _has_started(self, webrtc_id: str) -> bool:
        """Whether sound and a data channel have come through, so that the handler runs."""
        handler = self.rtc.handlers.get(webrtc_id)
        return handler is not None and bool(getattr(handler, "webrtc_id", True))

    def _is_settled(self, webrtc_id: str) -> bool:
        """Whether the page has sent its settings too, which is what a visitor's place is given for."""
        settings: asyncio.Event | None = getattr(self.rtc.handlers.get(webrtc_id), "args_set", None)
        return self._has_started(webrtc_id) and settings is not None and settings.is_set()

    def _forget_settled(self) -> None:
        for webrtc_id in list(self._pending):
            if webrtc_id not in self.rtc.pcs or self._is_settled(webrtc_id):
                del self._pending[webrtc_id]
        for webrtc_id in self._candidates.keys() - self.rtc.pcs.keys():
            del self._candidates[webrtc_id]

    def _close_unless_started(self, webrtc_id: str, pending: _Pending) -> None:
        self._forget_settled()
        if self._pending.get(webrtc_id) is pending and not self._has_started(webrtc_id):
            log.info("a connection that began no conversation within %.0f s is closed", STARTED_WITHIN_SEC)
            closing = asyncio.ensure_future(self._drop(webrtc_id))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    def _drop(self, webrtc_id: str) -> Coroutine[Any, Any, None]:
        """Forget a connection at once; the coroutine closes it and never raises."""
        self._pending.pop(webrtc_id, None)
        self.early.take(webrtc_id)
        pc = self.rtc.pcs.get(webrtc_id)
        # FastRTC's own timer would run for 30 s and then clean up whoever has this id by then.
        self.rtc.connection_timeouts[webrtc_id].set()
        for track in self.rtc.clean_up(webrtc_id):
            track.stop()

        async def close() -> None:
            try:
                if pc is not None:
                    await pc.close()
            except Exception as error:  # aiortc cannot close one whose offer it refused half-way
                log.info("a connection was not closed in order: %s", type(error).__name__)

        return close()


def guard(rtc: WebRTC, ice: IceServers) -> Offers:
    """Put admission in front of a WebRTC component. Call it after ``rtc.stream``, which sets the limit."""
    import fastrtc.tracks

    # FastRTC paces sound by the wall clock: setting the clock back would hold the sound back for as long.
    replace(fastrtc.tracks, time=SimpleNamespace(time=time.monotonic))
    most_connected = rtc.concurrency_limit or 1
    offers = Offers(rtc, ice, most_connected)
    rtc.concurrency_limit = most_connected + PENDING_OF_ALL
    rtc.handlers = _Handlers(rtc.handlers)

    # By the annotation Gradio passes the request of the HTTP call, a Starlette one.
    @server
    async def offer(body: Any, request: Request) -> Any:
        return await offers.offer(body, cast("HTTPConnection", request))

    @server
    async def turn(_: Any, request: Request) -> dict[str, Any]:
        return await offers.turn(cast("HTTPConnection", request))

    @server
    async def quit_output_stream(body: Any) -> dict[str, Any]:
        return await offers.quit_output_stream(body)

    rtc.offer, rtc.turn, rtc.quit_output_stream = offer, turn, quit_output_stream
    replace(rtc, output_stream=_known_only(rtc))
    return offers


def _known_only(rtc: WebRTC) -> Callable[[str], AsyncGenerator[Any, None]]:
    """``output_stream`` for known connections; FastRTC's would create an entry for any id and never end."""
    stream = rtc.output_stream

    async def output_stream(webrtc_id: str) -> AsyncGenerator[Any, None]:
        until = time.monotonic() + KNOWN_WITHIN_SEC
        while webrtc_id not in rtc.pcs:
            if time.monotonic() > until:
                return
            await asyncio.sleep(0.05)
        async for outputs in stream(webrtc_id):
            yield outputs

    return output_stream


def _webrtc_id(body: Any) -> str:
    """The id of a request's connection; raises RefusedError for anything but a short word."""
    webrtc_id = body.get("webrtc_id") if isinstance(body, dict) else None
    if not isinstance(webrtc_id, str) or not _WEBRTC_ID.fullmatch(webrtc_id):
        raise RefusedError("invalid_webrtc_id")
    return webrtc_id


def _failed(error: str) -> dict[str, Any]:
    return {"status": "failed", "meta": {"error": error}}
