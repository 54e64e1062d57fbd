"""The WebRTC handler with a fake engine behind it and a clock of ours; no network."""

import asyncio
import contextvars
import threading
from types import SimpleNamespace

import av
import numpy as np
import pytest
from fake_session import PADDING, WORD, Clock, FakeSession, frame, said
from fastrtc import AdditionalOutputs, CloseStream
from fastrtc.utils import Context, current_context

from personaplex.errors import InputError, PromptError
from personaplex.messages import ConversationRequest, ConversationState, EndReason, Limits, Meter, Phase
from personaplex.serving.server import DuplexServer
from personaplex.text.transcript import Transcript
from personaplex.web import handler as realtime
from personaplex.web.handler import DuplexHandler, Playout
from personaplex.web.updates import PageUpdate, Wiring, state_line

WEBRTC_ID = "abc123"


class Pieces:
    """A vocabulary in which every token is one word."""

    def piece(self, token):
        return f"\u2581word{token}".encode()


class FakePeer:
    def __init__(self, rtc):
        self.rtc, self.closed = rtc, False

    def getSenders(self):  # noqa: N802, aiortc's name
        return []

    getReceivers = getSenders  # noqa: N815

    async def close(self):
        self.closed = True
        self.rtc.pcs.clear()


class FakeRTC:
    """FastRTC's tables."""

    def __init__(self):
        self.pcs = {WEBRTC_ID: FakePeer(self)}
        self.handlers, self.connections, self.data_channels = {WEBRTC_ID: 1}, {WEBRTC_ID: 1}, {WEBRTC_ID: 1}
        self.connection_timeouts = {WEBRTC_ID: 1}
        self.additional_outputs = {WEBRTC_ID: SimpleNamespace(quit=asyncio.Event())}


class Channel:
    def __init__(self):
        self.sent = []

    def send(self, message):
        self.sent.append(message)


class FakeServer:
    """Remembers who came; the test plays the engine."""

    def __init__(self):
        self.request = self.listener = self.handle = None

    def open(self, request, listener):
        self.request, self.listener = request, listener
        self.where = contextvars.copy_context()
        self.handle = SimpleNamespace(pushed=[], closed=0)
        self.handle.push = self.handle.pushed.append
        self.handle.close = lambda message="": setattr(self.handle, "closed", self.handle.closed + 1)
        return self.handle

    def say(self, *outputs, heard=0.0):
        """Answer as the engine's thread does."""

        def run():
            for output in outputs:
                self.frames = getattr(self, "frames", 0) + 1
                self.listener.on_frame(output, frame(heard), Meter(40.0, 55.0, self.frames, 0))

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()

    def tell(self, state):
        thread = threading.Thread(target=self.listener.on_state, args=[state])
        thread.start()
        thread.join()


class Call:
    """A handler in a call, without FastRTC around it."""

    def __init__(self, server=None, **wiring):
        self.clock, self.records, self.server = Clock(), [], server or FakeServer()
        self.settings = []

        def read_settings(values):
            self.settings.append(values)
            return ConversationRequest(text=values[0], record=True)

        self.wiring = Wiring(
            server=lambda: self.server, new_transcript=lambda: Transcript(Pieces()), read_settings=read_settings,
            num_settings=2, on_finished=self.records.append, clock=self.clock,
        )  # fmt: skip
        for name, value in wiring.items():
            setattr(self.wiring, name, value)
        self.wiring.attach(FakeRTC())
        self.handler = DuplexHandler(self.wiring).copy()

    async def start(self, settings=("a pirate", "NAF0")):
        current_context.set(Context(webrtc_id=WEBRTC_ID))
        self.channel = Channel()
        self.handler.set_channel(self.channel)
        starting = asyncio.create_task(self.handler.start_up())
        if settings is not None:
            await asyncio.sleep(0)
            self.handler.set_args(["__id__", *settings])
        await asyncio.wait_for(starting, 5)
        return self

    async def live(self):
        await self.start()
        self.server.tell(ConversationState(Phase.LISTENING))
        assert (await self.next()).args[0].state.is_live
        return self

    async def next(self, timeout_sec=2.0):
        return await asyncio.wait_for(self.handler.emit(), timeout_sec)

    async def until_close(self):
        updates = []
        while not isinstance(item := await self.next(), CloseStream):
            updates.append(item)
        return item.msg, updates


async def until(condition, timeout_sec=5.0):
    async def poll():
        while not condition():
            await asyncio.sleep(0.005)

    await asyncio.wait_for(poll(), timeout_sec)


def run(coroutine):
    return asyncio.run(coroutine)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The loop's own waits are short; what is counted is counted on the clock of ours."""
    monkeypatch.setattr(realtime, "SETTINGS_WITHIN_SEC", 0.1)
    monkeypatch.setattr(realtime, "WATCH_EVERY_SEC", 0.01)
    monkeypatch.setattr("personaplex.web.webrtc.FORGET_AFTER_SEC", 0.02)


# ---------------------------------------------------------------------------------- starting


def test_settings_are_taken_once_from_the_end_of_the_arguments():
    async def scene():
        call = Call()
        await call.start(settings=("something else", "a pirate", "NAF0"))
        call.handler.set_args(["__id__", "an edit", "during the call"])
        return call

    call = run(scene())
    assert call.settings == [["a pirate", "NAF0"]] and call.server.request.text == "a pirate"
    assert "send_input" in call.channel.sent[0]


def test_a_page_that_sends_no_settings_is_told():
    async def scene():
        return await (await Call().start(settings=None)).until_close()

    message, _ = run(scene())
    assert "settings" in message


def test_a_refused_persona_closes_with_its_own_sentence_and_takes_no_slot():
    def refuse(values):
        raise PromptError("the prompt has 612 tokens; this model takes at most 200")

    async def scene():
        call = await Call(read_settings=refuse).start()
        return call, await call.until_close()

    call, (message, updates) = run(scene())
    assert "612 tokens" in message and call.server.request is None
    assert updates[-1].args[0].state.reason is EndReason.REFUSED


def test_a_mistake_of_ours_closes_without_its_details(caplog):
    async def scene():
        return await (await Call(read_settings=lambda values: {}["secret"]).start()).until_close()

    message, _ = run(scene())
    assert "secret" not in message and "Start" in message and "KeyError" in caplog.text


def test_a_visitor_who_comes_while_the_model_loads_waits_for_it():
    async def scene():
        ready = []
        call = Call()
        server, call.wiring.server = call.server, lambda: ready[0] if ready else None
        starting = asyncio.create_task(call.start())
        update = await call.next()
        assert update.args[0].state.phase is Phase.LOADING and "loading" in update.args[0].line
        assert call.settings == [], "settings may need the model"
        ready.append(server)
        await starting
        return call

    assert run(scene()).server.request is not None


def test_a_model_that_cannot_be_had_is_told_to_whoever_starts():
    def server():
        raise InputError("The model could not be loaded: accept the licence first")

    async def scene():
        call = Call()
        call.wiring.server = server
        return await (await call.start()).until_close()

    message, _ = run(scene())
    assert "accept the licence" in message


def test_the_conversation_is_opened_in_the_visitors_own_context():
    billed = contextvars.ContextVar("billed", default="nobody")

    async def scene():
        call = Call()
        current_context.set(Context(webrtc_id=WEBRTC_ID))
        call.handler.set_channel(Channel())
        starting = asyncio.create_task(call.handler.start_up())
        visitor = contextvars.copy_context()
        visitor.run(billed.set, "the visitor")
        visitor.run(call.handler.set_args, ["__id__", "a", "b"])
        await starting
        return call

    assert run(scene()).server.where[billed] == "the visitor"


# ---------------------------------------------------------------------------------- sound


def test_pieces_of_20_ms_become_frames_of_80():
    async def scene():
        call = await Call().live()
        for piece in range(8):
            await call.handler.receive((24000, np.full((1, 480), 100 * piece, np.int16)))
        return call.server.handle.pushed

    pushed = run(scene())
    assert [len(pcm) for pcm in pushed] == [1920, 1920] and pushed[0].dtype == np.float32
    assert pushed[1][0] * 32768 == 400 and pushed[1][-1] * 32768 == 700


def test_fastrtc_hands_over_pieces_of_20_ms():
    handler = Call().handler
    sizes = []
    for number in range(10):
        packet = av.AudioFrame.from_ndarray(np.zeros((1, 1920), np.int16), format="s16", layout="stereo")
        packet.sample_rate, packet.pts = 48000, number * 960
        sizes += [piece.samples for piece in handler.resample(packet)]
    assert set(sizes) == {480} and len(sizes) >= 9


def test_an_answer_is_handed_on_as_int16_with_the_rate():
    async def scene():
        call = await Call().live()
        call.server.say(said(frame(0.5)))
        return await call.next()

    item = run(scene())
    rate, sound = item[0] if isinstance(item[1], AdditionalOutputs) else item
    assert rate == 24000 and sound.shape == (1, 1920) and sound.dtype == np.int16 and (sound == 16384).all()


def test_emit_waits_without_spinning():
    async def scene():
        call = await Call().live()
        waiting = asyncio.create_task(call.handler.emit())
        await asyncio.sleep(0.05)
        assert not waiting.done()
        call.server.say(said(frame()))
        return await asyncio.wait_for(waiting, 1)

    assert run(scene()) is not None


def test_a_burst_is_left_out_and_not_played_late():
    async def scene():
        call = await Call().live()
        call.server.say(*[said(frame(0.1))] * 25)
        await asyncio.sleep(0)
        return len(call.handler._audio), call.handler._playout.left_out

    waiting, left_out = run(scene())
    assert waiting <= 3 and waiting + left_out == 25


def test_a_speaker_that_stays_behind_is_brought_up_again():
    playout = Playout()
    played = [playout.accepts(0.1) for _ in range(30)]
    assert played == [True] * 24 + [False] + [True] * 5
    steady = Playout()
    assert all(steady.accepts(ahead) for ahead in [0.0, 0.12] * 100), "jitter alone is no delay"


# ---------------------------------------------------------------------------------- what the page sees


def page(item):
    outputs = item if isinstance(item, AdditionalOutputs) else item[1]
    assert isinstance(outputs.args[0], PageUpdate)
    return outputs.args[0]


def test_words_arrive_whole_each_time_and_as_they_are_spoken():
    async def scene():
        call = await Call().live()
        seen = []
        for token in [WORD, PADDING, PADDING, WORD + 1]:
            call.clock.pass_sec(0.08)
            call.server.say(said(frame(0.1), token))
            item = await call.next()
            if isinstance(item[1], AdditionalOutputs):
                seen.append(page(item).text)
        return seen

    assert run(scene()) == ["word42", "word42 word43"]


def test_a_silent_agent_still_moves_the_meter():
    async def scene():
        call = await Call().live()
        updates = 0
        for _ in range(25):
            call.clock.pass_sec(0.08)
            call.server.say(said(frame()))
            updates += isinstance((await call.next())[1], AdditionalOutputs)
        return updates

    assert 4 <= run(scene()) <= 6, "about every 0.4 s"


def test_the_page_sees_place_progress_and_time_left():
    assert "number 3" in state_line(ConversationState(Phase.QUEUED, place=3))
    assert "40 %" in state_line(ConversationState(Phase.PREPARING, done=40, total=100))
    assert "%" not in state_line(ConversationState(Phase.PREPARING))
    assert state_line(ConversationState(Phase.LISTENING)) == "Listening."
    assert state_line(ConversationState(Phase.TALKING), 24.6) == "Talking. 25 s are left."
    assert state_line(ConversationState(Phase.ENDED, message="Bye.")) == "Bye."


def test_the_time_left_counts_down():
    async def scene():
        call = await Call().live()
        call.server.tell(ConversationState(Phase.LISTENING, left_sec=30.0))
        first = page(await call.next()).line
        call.clock.pass_sec(10)
        call.server.say(said(frame()))
        return first, page(await call.next()).line

    first, second = run(scene())
    assert "30 s" in first and "20 s" in second


# ---------------------------------------------------------------------------------- ends


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


# ---------------------------------------------------------------------------------- with the real server


def test_a_whole_call_on_the_real_engines_thread():
    async def scene():
        session = FakeSession()
        session.on_step = lambda conversation, pcm: said(pcm / 2, WORD)
        server = DuplexServer(session, Limits())
        call = await Call(server).start()
        while not page(await call.next()).state.is_live:
            pass
        heard = []
        for _ in range(5):
            for _ in range(4):
                await call.handler.receive((24000, np.full((1, 480), 1000, np.int16)))
            while not (isinstance(item := await call.next(), tuple)):
                pass
            heard.append(item[0][1] if isinstance(item[0], tuple) else item[1])
        server.close()
        message, _ = await call.until_close()
        return call, heard, message, session

    call, heard, message, session = run(scene())
    assert len(heard) == 5 and all((sound == 500).all() for sound in heard)
    assert "stopped" in message and session.free == [0] and call.records[0].state.reason is EndReason.SHUTDOWN
