"""Offers and candidates on FastRTC's own tables with aiortc's own connections; no network beyond this machine."""

import asyncio
import logging
import os
import re
import time
from types import SimpleNamespace

import pytest
from aiortc import RTCConfiguration, RTCPeerConnection
from aiortc.mediastreams import AudioStreamTrack
from fastrtc import AsyncStreamHandler
from fastrtc.webrtc_connection_mixin import WebRTCConnectionMixin
from test_candidates import CHROMIUM, FIREFOX

from personaplex.web.webrtc import NO_SERVERS, IceServers
from personaplex.web.workarounds import fastrtc_offers
from personaplex.web.workarounds.fastrtc_offers import PENDING_OF_ALL, PENDING_OF_ONE_ADDRESS, guard


class Handler(AsyncStreamHandler):
    """Never started here; ``webrtc_id`` says whether it was, as in the page's own handler."""

    webrtc_id = ""

    def copy(self):
        return Handler()

    async def receive(self, frame):
        pass

    async def emit(self):
        await asyncio.sleep(60)

    async def shutdown(self):
        pass


class Component(WebRTCConnectionMixin):
    """FastRTC's component without Gradio around it."""

    def __init__(self, visitors=4):
        super().__init__()
        self.concurrency_limit, self.event_handler, self.time_limit = visitors, Handler(), None
        self.modality, self.mode, self.allow_extra_tracks = "audio", "send-receive", False
        self.server_rtc_configuration = None


def guarded(visitors=4):
    rtc = Component(visitors)
    return rtc, guard(rtc, IceServers(local_only=True))


def request(address="203.0.113.5", **headers):
    return SimpleNamespace(client=SimpleNamespace(host=address), headers=headers)


class Caller:
    """A browser's side: makes offers."""

    def __init__(self, sound=True, channel=True):
        self.pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        if sound:
            self.pc.addTrack(AudioStreamTrack())
        if channel:
            self.pc.createDataChannel("text")

    async def sdp(self):
        await self.pc.setLocalDescription(await self.pc.createOffer())
        return self.pc.localDescription.sdp


async def offer_of(webrtc_id, **kinds):
    caller = Caller(**kinds)
    sdp = await caller.sdp()
    await caller.pc.close()
    return {"type": "offer", "sdp": sdp, "webrtc_id": webrtc_id}


def begin(rtc, webrtc_id):
    """As once the connection stands and the page has sent its settings."""
    rtc.handlers[webrtc_id].webrtc_id = webrtc_id
    rtc.handlers[webrtc_id].args_set.set()


def error_of(answer):
    return answer["meta"]["error"]


def is_empty(rtc):
    tables = (rtc.pcs, rtc.connections, rtc.handlers, rtc.data_channels, rtc.connection_timeouts)
    return not any(tables) and not rtc.additional_outputs


async def close_all(rtc):
    for pc in list(rtc.pcs.values()):
        await pc.close()
    await asyncio.sleep(0)


def descriptors():
    return len(os.listdir("/proc/self/fd"))


# ---------------------------------------------------------------------------------- candidates


def remote_candidates(rtc, webrtc_id):
    transport = rtc.pcs[webrtc_id].getTransceivers()[0].receiver.transport.transport
    return {(each.ip, each.port) for each in transport.getRemoteCandidates()}


@pytest.mark.parametrize("line", [FIREFOX, CHROMIUM])
def test_candidates_reach_the_connection_before_and_after_its_offer(line, caplog):
    async def scene():
        rtc, offers = guarded()
        early, late = ({"candidate": line.replace("192.0.2.2", ip), "sdpMid": "0"} for ip in ("192.0.2.8", "192.0.2.9"))
        for candidate in (early, {"candidate": ""}):
            sent = {"type": "ice-candidate", "webrtc_id": "a", "candidate": candidate}
            assert (await offers.offer(sent, request()))["status"] == "success"
        body = await offer_of("a")  # a browser's has no candidates yet
        body["sdp"] = re.sub(r"a=(candidate|end-of-candidates)[^\n]*\n", "", body["sdp"])
        await offers.offer(body, request("127.0.0.1"))
        for candidate in (late, {"candidate": "", "sdpMid": "0"}, None):
            await offers.offer({"type": "ice-candidate", "webrtc_id": "a", "candidate": candidate}, request())
        found = remote_candidates(rtc, "a")
        await close_all(rtc)
        return {ip for ip, _ in found}

    assert {"192.0.2.8", "192.0.2.9"} == asyncio.run(scene())
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_visitor_cannot_pile_up_candidates():
    async def scene():
        rtc, offers = guarded()
        await offers.offer(await offer_of("a"), request())
        for number in range(200):
            candidate = {"candidate": FIREFOX.replace("40487", str(1000 + number)), "sdpMid": "0"}
            last = await offers.offer({"type": "ice-candidate", "webrtc_id": "a", "candidate": candidate}, request())
        found = len(remote_candidates(rtc, "a"))
        await close_all(rtc)
        return last, found

    last, found = asyncio.run(scene())
    assert error_of(last) == "too_many_candidates" and found < 100


# ---------------------------------------------------------------------------------- floods


def test_a_known_id_is_refused_and_nothing_piles_up(monkeypatch):
    """Offers with a data channel alone used to replace each other in the table and stay open."""

    async def scene():
        rtc, offers = guarded()
        one = await offer_of("same")
        no_sound = await offer_of("same", sound=False)
        answer = await offers.offer(one, request())
        before = descriptors()
        refused = {error_of(await offers.offer(body, request())) for body in [one, no_sound] * 10}
        held = len(rtc.pcs), descriptors() - before
        await close_all(rtc)
        return answer, refused, held

    answer, refused, (peers, more) = asyncio.run(scene())
    assert "sdp" in answer and refused == {"connection_already_exists"}
    assert peers == 1 and more <= 2


@pytest.mark.parametrize("kinds", [dict(sound=False), dict(channel=False, sound=False)])
def test_an_offer_without_a_microphone_leaves_nothing(kinds):
    async def scene():
        rtc, offers = guarded()
        before = descriptors()
        if any(kinds.values()):
            body = await offer_of("a", **kinds)
        else:
            body = {"type": "offer", "sdp": "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\n", "webrtc_id": "a"}
        for _ in range(10):
            assert error_of(await offers.offer(body, request())) == "invalid_offer"
        await asyncio.sleep(0.05)
        # What FastRTC waits with for a microphone would go on for ever.
        waiting = [task for task in asyncio.all_tasks() if "set_channel" in repr(task)]
        return is_empty(rtc), descriptors() - before, waiting

    empty, more, waiting = asyncio.run(scene())
    assert empty and more <= 1 and not waiting


def test_one_address_may_have_few_unconnected_offers_and_others_get_in():
    async def scene():
        rtc, offers = guarded(visitors=2)
        body = await offer_of("x")
        told = []
        for number in range(PENDING_OF_ONE_ADDRESS + 5):
            told.append(await offers.offer({**body, "webrtc_id": f"flood{number}"}, request("203.0.113.5")))
        other = await offers.offer({**body, "webrtc_id": "other"}, request("198.51.100.9"))
        held = len(rtc.pcs)
        await close_all(rtc)
        return told, other, held

    told, other, held = asyncio.run(scene())
    assert ["sdp" in answer for answer in told] == [True] * PENDING_OF_ONE_ADDRESS + [False] * 5
    assert "sdp" in other and held == PENDING_OF_ONE_ADDRESS + 1


def test_many_addresses_together_are_bounded_too():
    async def scene():
        rtc, offers = guarded()
        body = await offer_of("x")
        for number in range(PENDING_OF_ALL + 3):
            last = await offers.offer({**body, "webrtc_id": f"n{number}"}, request(f"203.0.113.{number}"))
        held = len(rtc.pcs)
        await close_all(rtc)
        return last, held

    last, held = asyncio.run(scene())
    assert error_of(last) == "concurrency_limit_reached" and held == PENDING_OF_ALL


def test_conversations_are_limited_apart_from_offers():
    async def scene():
        rtc, offers = guarded(visitors=2)
        body = await offer_of("x")
        told = []
        for name in ("first", "second", "third"):
            told.append(await offers.offer({**body, "webrtc_id": name}, request()))
            if name in rtc.handlers:
                begin(rtc, name)
        await close_all(rtc)
        return told

    first, second, third = asyncio.run(scene())
    assert "sdp" in first and "sdp" in second and error_of(third) == "concurrency_limit_reached"


def test_connections_without_settings_take_no_visitors_place():
    """Connected clients that send nothing more once kept everybody out, too."""

    async def scene():
        rtc, offers = guarded(visitors=2)
        body = await offer_of("x")
        told = []
        for number in range(PENDING_OF_ONE_ADDRESS + 1):
            told.append(await offers.offer({**body, "webrtc_id": f"n{number}"}, request("203.0.113.5")))
            if "sdp" in told[-1]:
                rtc.handlers[f"n{number}"].webrtc_id = f"n{number}"  # connected
        other = await offers.offer({**body, "webrtc_id": "other"}, request("198.51.100.9"))
        await close_all(rtc)
        return told[-1], other

    last, other = asyncio.run(scene())
    assert error_of(last) == "concurrency_limit_reached" and "sdp" in other


def test_a_connection_that_begins_nothing_is_closed_soon_and_completely(monkeypatch):
    monkeypatch.setattr(fastrtc_offers, "STARTED_WITHIN_SEC", 0.4)

    async def scene():
        rtc, offers = guarded()
        before = descriptors()
        body = await offer_of("x")
        for name in ("mute", "talks"):
            await offers.offer({**body, "webrtc_id": name}, request())
        begin(rtc, "talks")
        await asyncio.sleep(0.6)
        left = set(rtc.pcs)
        again = await offers.offer({**body, "webrtc_id": "mute"}, request())
        await close_all(rtc)
        await asyncio.sleep(0.05)
        timers = [task for task in asyncio.all_tasks() if "connection_timeout" in repr(task)]
        return left, again, descriptors() - before, timers

    left, again, more, timers = asyncio.run(scene())
    assert left == {"talks"} and "sdp" in again and more <= 1
    assert len(timers) <= 2, "FastRTC's timer of the closed connection would clean up its successor after 30 s"


# ---------------------------------------------------------------------------------- malformed requests


@pytest.mark.parametrize(
    "body",
    [None, "text", 7, [], {}, {"webrtc_id": 5}, {"webrtc_id": ""}, {"webrtc_id": "a" * 65},
     {"webrtc_id": "a\nINFO forged"}, {"webrtc_id": "a"}, {"webrtc_id": "a", "type": "offer"},
     {"webrtc_id": "a", "type": "offer", "sdp": f"v=0\r\na={FIREFOX}\r\n" + f"a={FIREFOX}\r\n" * 99},
     {"webrtc_id": "a", "type": "offer", "sdp": 5}, {"webrtc_id": "a", "type": "offer", "sdp": "nonsense"},
     {"webrtc_id": "a", "type": "answer", "sdp": "v=0"}, {"webrtc_id": "a", "type": "offer", "sdp": "v=0\r\n" * 99_999},
     {"webrtc_id": "a\nERROR forged", "type": "ice-candidate", "candidate": {"candidate": FIREFOX}},
     {"webrtc_id": "a", "type": "ice-candidate", "candidate": {"candidate": "a\nERROR forged"}},
     {"webrtc_id": "a", "type": "ice-candidate", "candidate": 5}],
)  # fmt: skip
def test_a_malformed_request_is_answered_and_leaves_no_trace(body, caplog):
    async def scene():
        rtc, offers = guarded()
        answer = await offers.offer(body, request())
        await asyncio.sleep(0)
        return answer, is_empty(rtc)

    answer, empty = asyncio.run(scene())
    assert answer["status"] == "failed" and empty
    assert "forged" not in caplog.text and not any(record.exc_info for record in caplog.records)


def test_an_offer_that_is_refused_half_way_is_answered(caplog):
    """aiortc's ``close`` raises for a connection whose offer it took in part, and the answer was status 500."""

    async def scene():
        rtc, offers = guarded()
        body = await offer_of("a")
        assert "a=mid:0" in body["sdp"]
        answer = await offers.offer({**body, "sdp": body["sdp"].replace("a=mid:0", "a=mid:forged")}, request())
        await asyncio.sleep(0.05)
        return answer, is_empty(rtc)

    answer, empty = asyncio.run(scene())
    assert error_of(answer) == "invalid_offer" and empty and "forged" not in caplog.text


def test_a_microphone_twice_or_a_camera_is_refused():
    async def scene():
        rtc, offers = guarded()
        caller = Caller()
        caller.pc.addTransceiver("audio")
        two = {"type": "offer", "sdp": await caller.sdp(), "webrtc_id": "a"}
        answer = await offers.offer(two, request())
        await caller.pc.close()
        return answer, is_empty(rtc)

    answer, empty = asyncio.run(scene())
    assert error_of(answer) == "invalid_offer" and empty


def test_stopping_updates_of_an_unknown_connection_is_harmless():
    async def scene():
        rtc, _ = guarded()
        for body in (None, {}, {"webrtc_id": 5}, {"webrtc_id": "nobody"}):
            await rtc.quit_output_stream(body)
        rtc.set_input_on_submit("nobody", 1)
        return is_empty(rtc)

    assert asyncio.run(scene())


def test_updates_are_for_connections_that_exist(monkeypatch):
    monkeypatch.setattr(fastrtc_offers, "KNOWN_WITHIN_SEC", 0.2)

    async def scene():
        rtc, offers = guarded()
        nobody = [update async for update in rtc.output_stream("nobody")]
        unknown = is_empty(rtc)
        await offers.offer(await offer_of("a"), request())
        rtc.additional_outputs["a"].queue.put_nowait("update")
        stream = rtc.output_stream("a")
        first = await anext(stream)
        await stream.aclose()
        await close_all(rtc)
        return nobody, unknown, first

    assert asyncio.run(scene()) == ([], True, "update")


def test_the_component_serves_what_stands_in_front_of_it():
    """Gradio calls a server function by its name, and gives it the request by its annotation."""
    from gradio.helpers import special_args

    rtc, _ = guarded()
    for name, takes_request in (("offer", True), ("turn", True), ("quit_output_stream", False)):
        function = getattr(rtc, name)
        inputs, _, _ = special_args(function, [{}], request(), None)
        assert function._is_server_fn and len(inputs) == 1 + takes_request
    assert asyncio.run(rtc.turn(None, request("127.0.0.1", host="localhost:7860"))) == NO_SERVERS


def test_a_clock_that_is_set_back_holds_no_sound_back():
    import fastrtc.tracks

    guarded()
    before = time.monotonic()
    assert before <= fastrtc.tracks.time.time() <= time.monotonic()
