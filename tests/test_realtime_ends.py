"""How a conversation ends: what the page is told, what is recorded, what is freed."""

import asyncio
import re
from types import SimpleNamespace

import numpy as np
import pytest
from fake_session import WORD, Clock, FakeSession, Notes, frame, said
from handler_call import WEBRTC_ID, Call, page, quicken, run, until

from personaplex.messages import STOPPED, STOPPING, ConversationRequest, ConversationState, EndReason, Limits, Phase
from personaplex.serving.server import DuplexServer
from personaplex.web import handler as realtime
from personaplex.web.updates import state_line


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    quicken(monkeypatch)


# ---------------------------------------------------------------------------------- every reason


class Scene:
    """A conversation on a real server whose turns and clock are the test's."""

    def __init__(self, **request):
        self.session, self.clock, self.notes = FakeSession(), Clock(), Notes()
        self.server = DuplexServer(self.session, Limits(waiting=0), clock=self.clock, start=False)
        self.handle = self.server.open(ConversationRequest(**request), self.notes)
        for _ in range(5):
            self.server.turn()

    def pass_sec(self, seconds, *, hearing):
        for _ in range(seconds):
            self.clock.pass_sec(1)
            if hearing:
                self.handle.push(frame(0.1))
            self.server.turn()

    def refuse_a_second(self):
        self.notes = Notes()
        self.server.open(ConversationRequest(), self.notes)

    def fail(self):
        self.session.on_step = lambda conversation, pcm: 1 / 0
        self.handle.push(frame(0.1))


PROVOKE = {
    EndReason.STOPPED: lambda scene: scene.handle.close(),
    EndReason.FINISHED: lambda scene: None,
    EndReason.TIME_LIMIT: lambda scene: scene.pass_sec(601, hearing=True),
    EndReason.IDLE: lambda scene: scene.pass_sec(16, hearing=False),
    EndReason.REFUSED: Scene.refuse_a_second,
    EndReason.FAILED: Scene.fail,
    EndReason.SHUTDOWN: lambda scene: scene.server.close(),
}
WHAT_TO_DO = re.compile(r"\. (Please )?(press Start|try again|come back|choose|check it)", re.IGNORECASE)


def says_why_and_what_to_do(sentence):
    return sentence.count(".") >= 2 and WHAT_TO_DO.search(sentence)


@pytest.mark.parametrize("reason", EndReason)
def test_every_end_says_why_and_what_to_do(reason):
    scene = Scene(question=frame(0.1) if reason is EndReason.FINISHED else None)
    PROVOKE[reason](scene)
    for _ in range(5):
        scene.server.turn()
    assert scene.notes.last.reason is reason
    assert says_why_and_what_to_do(state_line(scene.notes.last)), state_line(scene.notes.last)
    without = state_line(ConversationState(Phase.ENDED, reason=reason))
    assert says_why_and_what_to_do(without), "an end that brings no sentence of its own"


@pytest.mark.parametrize("sentence", [realtime.LOST, STOPPED, STOPPING])
def test_the_handlers_own_ends_do_too(sentence):
    assert says_why_and_what_to_do(sentence)


# ---------------------------------------------------------------------------------- once, and with a record


def test_an_end_on_the_engines_side_is_told_once_and_recorded():
    async def scene():
        call = await Call().live()
        call.server.say(said(frame(0.25), WORD), heard=0.5)
        call.server.tell(ConversationState(Phase.ENDED, reason=EndReason.TIME_LIMIT, message="That was the limit."))
        message, updates = await call.until_close()
        await call.handler.shutdown()
        return call, message, updates

    call, message, updates = run(scene())
    assert message == "That was the limit." and page(updates[-1]).state.reason is EndReason.TIME_LIMIT
    (record,) = call.records
    assert record.webrtc_id == WEBRTC_ID and record.state.reason is EndReason.TIME_LIMIT
    assert record.transcript.text == "word42"
    assert (record.agent == 8192).all() and (record.heard == 16_384).all() and len(record.agent) == 1920


def test_stop_closes_the_conversation_and_leaves_the_record():
    async def scene():
        call = await Call().live()
        call.server.say(said(frame(0.25)))
        await call.handler.shutdown()
        assert await call.next() is None, "FastRTC's reader must come back"
        call.server.tell(ConversationState(Phase.ENDED, reason=EndReason.STOPPED))
        await asyncio.sleep(0)
        return call

    call = run(scene())
    assert call.server.handle.closed == 1 and [r.state.reason for r in call.records] == [EndReason.STOPPED]


def test_a_page_that_has_left_is_told_nothing_and_nobody_complains():
    """FastRTC would log a traceback for each message to a closed channel."""

    class Track:
        channel = SimpleNamespace(readyState="open", sent=[])

        def clear(self):
            pass

        def stop(self):
            pass

    async def scene():
        call, track = Call(), Track()
        plain = track.channel
        plain.send = plain.sent.append
        call.handler._clear_queue = track.clear
        await call.start()
        track.channel.send("first")
        plain.readyState = "closing"
        track.channel.send("second")
        return plain.sent

    assert run(scene()) == ["first"]


def test_without_recording_no_sound_is_kept():
    async def scene():
        call = Call()
        call.wiring.read_settings = lambda values: ConversationRequest(record=False)
        await call.live()
        call.server.say(said(frame(0.25), WORD))
        await asyncio.sleep(0)
        await call.handler.shutdown()
        return call.records[0]

    record = run(scene())
    assert len(record.agent) == len(record.heard) == 0 and record.transcript.text == "word42"


def test_a_record_that_nobody_takes_is_no_reason_to_fail(caplog):
    async def scene():
        call = await Call(on_finished=lambda record: 1 / 0).live()
        await call.handler.shutdown()
        return call

    assert run(scene()).server.handle.closed == 1


async def pass_time(call, seconds, hearing):
    """Let the watchdog look once a second, on the clock of ours."""
    for _ in range(seconds):
        looks = call.looks
        call.clock.pass_sec(1)
        if hearing:
            await call.handler.receive((24000, np.zeros((1, 480), np.int16)))
        await until(lambda looks=looks: call.looks >= looks + 2 or call.handler._is_gone)


@pytest.fixture
def looking(monkeypatch):
    """A call that counts how often its watchdog has looked."""
    call = Call()
    call.looks = 0

    async def look(peer):
        call.looks += 1

    monkeypatch.setattr(realtime, "network_round_trip_ms", look)
    return call


def test_a_dead_peer_is_noticed_after_four_seconds_and_everything_is_freed(looking):
    async def scene():
        call = await looking.live()
        rtc = call.wiring.rtc
        peer, outputs = rtc.pcs[WEBRTC_ID], rtc.additional_outputs[WEBRTC_ID]
        await pass_time(call, 10, hearing=True)
        assert not peer.closed, "a muted microphone still sends"
        await pass_time(call, 3, hearing=False)
        assert not peer.closed
        await pass_time(call, 2, hearing=False)
        await until(lambda: peer.closed)
        assert call.server.handle.closed
        tables = (rtc.handlers, rtc.connections, rtc.data_channels, rtc.connection_timeouts, rtc.additional_outputs)
        await until(lambda: not any(tables))
        assert outputs.quit.is_set()
        return call

    assert run(scene()).records[0].state.reason is EndReason.IDLE


def test_a_loop_that_stood_still_is_no_dead_peer(looking):
    """The first event of a page may keep the loop busy for seconds; it once cost the first visitor the connection."""

    async def scene():
        call = await looking.live()
        looks = call.looks
        call.clock.pass_sec(30)
        await until(lambda: call.looks >= looks + 2)
        assert not call.wiring.rtc.pcs[WEBRTC_ID].closed

    run(scene())


def test_a_client_that_ignores_the_end_is_closed(looking):
    async def scene():
        call = await looking.live()
        call.server.tell(ConversationState(Phase.ENDED, reason=EndReason.TIME_LIMIT, message="Over."))
        await call.until_close()
        await pass_time(call, 5, hearing=True)
        await until(lambda: not call.wiring.rtc.pcs)
        return call

    assert not run(scene()).server.handle.pushed


def test_a_loop_that_is_gone_does_not_stop_the_engine():
    call = Call()
    run(call.start())
    call.server.say(said(frame()))  # from another thread, after the loop was closed
