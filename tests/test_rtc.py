"""Which ICE servers are used when, and what happens when credentials do not come."""

import asyncio
import inspect
import time
from types import SimpleNamespace

import pytest
from aiortc import RTCPeerConnection
from aiortc.jitterbuffer import JitterBuffer
from aiortc.rtp import RtpPacket

from personaplex.web import webrtc as rtc_module
from personaplex.web.webrtc import (
    NO_SERVERS,
    STUN_ONLY,
    browser_configuration,
    guard,
    has_turn_credentials,
    is_loopback,
    network_round_trip_ms,
    server_configuration,
    shorten_jitter_buffer,
)

TURN = {"iceServers": [{"urls": "turn:turn.example:3478", "username": "u", "credential": "c"}]}


async def turn():
    return TURN


@pytest.mark.parametrize(
    ("environ", "has"),
    [
        ({}, False),
        ({"HF_TOKEN": "t"}, True),
        ({"HF_TOKEN": ""}, False),
        ({"CLOUDFLARE_TURN_KEY_ID": "i"}, False),
        ({"CLOUDFLARE_TURN_KEY_ID": "i", "CLOUDFLARE_TURN_KEY_API_TOKEN": "t"}, True),
    ],
)
def test_which_variables_are_credentials(environ, has):
    assert has_turn_credentials(environ) is has


def test_on_loopback_no_server_is_asked():
    assert is_loopback("127.0.0.1", {}) and is_loopback(None, {}) and not is_loopback("0.0.0.0", {})
    assert not is_loopback(None, {"GRADIO_SERVER_NAME": "0.0.0.0"}), "as on a Space"
    assert is_loopback("localhost", {"GRADIO_SERVER_NAME": "0.0.0.0"}), "what is given counts"
    assert browser_configuration(True, {"HF_TOKEN": "t"}, turn) == server_configuration(True) == NO_SERVERS


def test_without_credentials_stun_alone():
    assert browser_configuration(False, {}, turn) == STUN_ONLY == server_configuration(False)


def test_credentials_are_fetched_for_each_visitor():
    configuration = browser_configuration(False, {"HF_TOKEN": "t"}, turn)
    assert inspect.isfunction(configuration), "FastRTC calls plain functions only"
    assert asyncio.run(configuration()) == TURN


async def broken():
    raise ValueError("no such key")


async def hanging():
    await asyncio.sleep(60)


@pytest.mark.parametrize("fetch", [broken, hanging])
def test_credentials_that_do_not_come_fall_back_to_stun_with_a_line_in_the_log(fetch, caplog, monkeypatch):
    monkeypatch.setattr("personaplex.web.webrtc.TURN_WITHIN_SEC", 0.05)
    configuration = browser_configuration(False, {"HF_TOKEN": "secret-token"}, fetch)
    assert asyncio.run(configuration()) == STUN_ONLY
    assert "TURN" in caplog.text and "secret-token" not in caplog.text


class Report:
    def __init__(self, kind, seconds=None):
        self.type, self.roundTripTime = kind, seconds


class Peer:
    def __init__(self, *reports):
        self.reports = reports

    def getSenders(self):  # noqa: N802, aiortc's name
        return [self]

    async def getStats(self):  # noqa: N802, aiortc's name
        return dict(enumerate(self.reports))


@pytest.mark.parametrize(
    ("peer", "expected_ms"),
    [
        (None, None),
        (Peer(Report("outbound-rtp")), None),
        (Peer(Report("remote-inbound-rtp")), None),
        (Peer(Report("outbound-rtp"), Report("remote-inbound-rtp", 0.042)), 42.0),
    ],
)
def test_the_networks_round_trip_comes_from_rtcp(peer, expected_ms):
    assert asyncio.run(network_round_trip_ms(peer)) == expected_ms


# ---------------------------------------------------------------------------------- the microphone's packets


def lags(jitter, lost=100, count=400):
    """How many packets each one waits in a jitter buffer before it goes on, when one is lost."""
    waits = {}
    for number in range(count):
        if number == lost:
            continue
        packet = RtpPacket(sequence_number=number, timestamp=960 * number)
        packet._data = b"sound"
        _, played = jitter.add(packet)
        if played is not None:
            waits[played.timestamp // 960] = number - played.timestamp // 960
    return waits


def test_a_lost_packet_delays_nothing_for_good():
    async def shortened():
        peer = RTCPeerConnection()
        receiver = peer.addTransceiver("audio").receiver
        shorten_jitter_buffer(peer)
        await peer.close()
        return getattr(receiver, rtc_module._JITTER_BUFFER)

    jitter = asyncio.run(shortened())
    waits = lags(jitter)
    assert max(waits[number] for number in range(99)) == 1 and max(waits.values()) <= 3
    assert len(waits) >= 400 - 1 - 1 - 3, "the lost one, the last one, and a few around the loss"
    theirs = lags(JitterBuffer(capacity=16, prefetch=4))
    assert theirs[300] > 10, "aiortc catches up by itself now: leave its buffer alone"


def test_an_aiortc_that_keeps_its_buffer_elsewhere_is_told_of(caplog):
    shorten_jitter_buffer(SimpleNamespace(getReceivers=lambda: [object()]))
    assert "jitter buffer" in caplog.text
    shorten_jitter_buffer(None)


# ---------------------------------------------------------------------------------- hostile visitors


class FastRtc:
    """Its two entries: an offer that fails half-way, and updates that nobody ever ends."""

    def __init__(self):
        self.pcs, self.handlers, self.cleaned, self.closed = {}, {}, [], []

    async def handle_offer(self, body, set_outputs):
        async def close():
            self.closed.append(body["webrtc_id"])

        self.pcs[body["webrtc_id"]] = SimpleNamespace(close=close)
        if body["sdp"] == "broken":
            raise ValueError("no ICE password")
        return {"sdp": "answer"}

    async def output_stream(self, webrtc_id):
        yield "update"

    def clean_up(self, webrtc_id):
        self.pcs.pop(webrtc_id)
        self.cleaned.append(webrtc_id)


def test_an_offer_that_fails_leaves_nothing_behind():
    async def scene():
        rtc = FastRtc()
        guard(rtc)
        assert await rtc.handle_offer({"webrtc_id": "good", "sdp": "fine"}, None) == {"sdp": "answer"}
        for name in ("bad", "good"):  # the second in the name of a connection that stands
            before = rtc.pcs.get(name)
            with pytest.raises(ValueError, match="ICE"):
                await rtc.handle_offer({"webrtc_id": name, "sdp": "broken"}, None)
            assert before is None or name == "good"
        return rtc

    rtc = asyncio.run(scene())
    assert rtc.cleaned == rtc.closed == ["bad", "good"] and not rtc.pcs


def test_a_connection_that_begins_nothing_is_closed(monkeypatch):
    """Without sound, or without a data channel, it never starts, and no limit of a conversation ends it."""
    monkeypatch.setattr(rtc_module, "STARTED_WITHIN_SEC", 0.05)

    async def scene():
        rtc = FastRtc()
        guard(rtc)
        for name in ("mute", "talks", "left"):
            await rtc.handle_offer({"webrtc_id": name, "sdp": "fine"}, None)
            rtc.handlers[name] = SimpleNamespace(webrtc_id=name if name == "talks" else "")
        rtc.pcs.pop("left")
        await asyncio.sleep(0.2)
        return rtc

    rtc = asyncio.run(scene())
    assert rtc.cleaned == rtc.closed == ["mute"] and set(rtc.pcs) == {"talks"}


def test_a_clock_that_is_set_back_holds_no_sound_back():
    import fastrtc.tracks

    guard(FastRtc())
    before = time.monotonic()
    assert before <= fastrtc.tracks.time.time() <= time.monotonic()


def test_updates_are_for_connections_that_exist(monkeypatch):
    monkeypatch.setattr(rtc_module, "KNOWN_WITHIN_SEC", 0.2)

    async def scene():
        rtc = FastRtc()
        guard(rtc)
        nobody = [update async for update in rtc.output_stream("nobody")]
        asyncio.get_running_loop().call_later(0.1, rtc.pcs.setdefault, "late", object())
        return nobody, [update async for update in rtc.output_stream("late")]

    assert asyncio.run(scene()) == ([], ["update"])
