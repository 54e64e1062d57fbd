"""Finding a way between browser and server (ICE, TURN), and what FastRTC leaves behind."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiortc import RTCPeerConnection
    from fastrtc import WebRTC

log = logging.getLogger(__name__)

STUN_ONLY = {"iceServers": [{"urls": "stun:stun.l.google.com:19302"}]}
NO_SERVERS: dict[str, Any] = {"iceServers": []}
LOOPBACK = ("127.0.0.1", "localhost", "::1")
TURN_WITHIN_SEC = 5.0
TURN_TTL_SEC = 3600
FORGET_AFTER_SEC = 2.0
STARTED_WITHIN_SEC = 30.0
KNOWN_WITHIN_SEC = 3.0
"""A page may ask for its updates a moment before its connection is known."""
JITTER_PACKETS, PREFETCHED_PACKETS = 4, 1
"""Of the microphone's 20 ms each. aiortc's own 16 and 4 hold 80 ms back, and 280 once a packet was lost."""

TRACK_CONSTRAINTS = {
    # Plain wishes: with {"exact": True} some browsers give no microphone at all. Automatic gain lifts a quiet
    # room's noise until the model takes it for speech and stops talking.
    "echoCancellation": True,
    "noiseSuppression": True,
    "autoGainControl": False,
    "channelCount": 1,
}

_JITTER_BUFFER = "_RTCRtpReceiver__jitter_buffer"  # aiortc has no setting for it

FetchTurn = Callable[[], Awaitable[dict[str, Any]]]


def is_loopback(host: str | None, environ: Mapping[str, str] | None = None) -> bool:
    """Whether only this machine can reach the page. Without a host Gradio asks its own variable, which Spaces sets."""
    environ = os.environ if environ is None else environ
    return (host or environ.get("GRADIO_SERVER_NAME") or LOOPBACK[0]) in LOOPBACK


def has_turn_credentials(environ: Mapping[str, str] | None = None) -> bool:
    environ = os.environ if environ is None else environ
    return bool(
        environ.get("HF_TOKEN")
        or (environ.get("CLOUDFLARE_TURN_KEY_ID") and environ.get("CLOUDFLARE_TURN_KEY_API_TOKEN"))
    )


async def cloudflare_turn() -> dict[str, Any]:
    """Credentials for an hour from Cloudflare, by its own key or by a Hugging Face token."""
    from fastrtc import get_cloudflare_turn_credentials_async

    return await get_cloudflare_turn_credentials_async(ttl=TURN_TTL_SEC)


def browser_configuration(
    local_only: bool, environ: Mapping[str, str] | None = None, fetch: FetchTurn = cloudflare_turn
) -> dict[str, Any] | Callable[[], Awaitable[dict[str, Any]]]:
    """What a browser is told: TURN when credentials are set, STUN otherwise, nothing on loopback.

    A function where credentials are fetched for each connection; it never raises, since an error would
    leave the page unconnected.
    """
    if local_only:
        return NO_SERVERS
    if not has_turn_credentials(environ):
        log.warning("neither HF_TOKEN nor a Cloudflare key is set: no relay, so visitors behind a firewall cannot talk")
        return STUN_ONLY

    async def configuration() -> dict[str, Any]:
        try:
            return await asyncio.wait_for(fetch(), TURN_WITHIN_SEC)
        except Exception as error:
            log.warning("no TURN credentials (%s); visitors behind strict firewalls will not connect", error)
            return STUN_ONLY

    return configuration


def server_configuration(local_only: bool) -> dict[str, Any]:
    """What the server itself uses: a server that cannot be reached would delay every connection by 5 s."""
    return NO_SERVERS if local_only else STUN_ONLY


async def network_round_trip_ms(pc: RTCPeerConnection | None) -> float | None:
    """The network's part of the delay, as RTCP measures it; None while it is not known."""
    for sender in pc.getSenders() if pc is not None else ():
        for report in (await sender.getStats()).values():
            seconds = getattr(report, "roundTripTime", None)
            if report.type == "remote-inbound-rtp" and seconds is not None:
                return seconds * 1000
    return None


def shorten_jitter_buffer(pc: RTCPeerConnection | None) -> None:
    """Hold as little of the microphone back as puts neighbouring packets in order."""
    from aiortc.jitterbuffer import JitterBuffer

    for receiver in pc.getReceivers() if pc is not None else ():
        if hasattr(receiver, _JITTER_BUFFER):
            setattr(receiver, _JITTER_BUFFER, JitterBuffer(capacity=JITTER_PACKETS, prefetch=PREFETCHED_PACKETS))
        else:
            log.warning("this aiortc keeps its jitter buffer elsewhere: the microphone arrives late")


def guard(rtc: WebRTC) -> None:
    """Let offers that fail or begin nothing leave nothing behind, and unknown connections have no updates.

    FastRTC keeps them for ever, and a few of them would lock the page for everybody.
    """
    import fastrtc.tracks

    # It paces sound by the wall clock: one that is set back would hold the sound back for as long.
    fastrtc.tracks.time = SimpleNamespace(time=time.monotonic)
    handle, stream = rtc.handle_offer, rtc.output_stream
    unfinished: set[asyncio.Future] = set()  # the loop itself holds them weakly

    def newer(name: str, before: RTCPeerConnection | None) -> RTCPeerConnection | None:
        pc = rtc.pcs.get(name)
        return None if pc is before else pc

    def drop(name: str) -> Coroutine[Any, Any, None]:
        """Forgotten at once; what is returned closes it."""
        pc = rtc.pcs[name]
        rtc.clean_up(name)
        return pc.close()

    async def handle_offer(body: dict[str, Any], set_outputs: Any) -> Any:
        name = body.get("webrtc_id")
        before = rtc.pcs.get(name)
        try:
            answer = await handle(body, set_outputs)
        except Exception:
            if newer(name, before):
                await drop(name)
            raise
        if pc := newer(name, before):
            asyncio.get_running_loop().call_later(STARTED_WITHIN_SEC, close_unless_started, name, pc)
        return answer

    def close_unless_started(name: str, pc: RTCPeerConnection) -> None:
        """A connection without sound or without a data channel never begins a conversation, and nothing ends it."""
        if rtc.pcs.get(name) is pc and not getattr(rtc.handlers.get(name), "webrtc_id", name):
            log.info("a connection that began no conversation is closed")
            closing = asyncio.ensure_future(drop(name))
            unfinished.add(closing)
            closing.add_done_callback(unfinished.discard)

    async def output_stream(webrtc_id: str) -> AsyncIterator[Any]:
        until = time.monotonic() + KNOWN_WITHIN_SEC
        while webrtc_id not in rtc.pcs:
            if time.monotonic() > until:
                return
            await asyncio.sleep(0.05)
        async for outputs in stream(webrtc_id):
            yield outputs

    rtc.handle_offer, rtc.output_stream = handle_offer, output_stream


class QuietChannel:
    """A data channel to a page that may have left already: what it can no longer be told is nobody's error."""

    def __init__(self, channel: Any):
        self._channel = channel

    def send(self, message: str) -> None:
        if self._channel.readyState == "open":
            self._channel.send(message)


def forget_connection(rtc: WebRTC | None, webrtc_id: str, track: Any = None) -> None:
    """Take a closed connection out of FastRTC's tables: after a failure it leaves some entries behind.

    A little later, since the page may still be fetching its last update.
    """

    def forget() -> None:
        if track is not None:
            track.stop()
        if rtc is None or webrtc_id in rtc.pcs:
            return
        for table in (rtc.handlers, rtc.connections, rtc.data_channels, rtc.connection_timeouts):
            table.pop(webrtc_id, None)
        outputs = rtc.additional_outputs.pop(webrtc_id, None)
        if outputs is not None:
            outputs.quit.set()

    asyncio.get_running_loop().call_later(FORGET_AFTER_SEC, forget)
