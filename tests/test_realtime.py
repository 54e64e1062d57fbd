"""The WebRTC handler with a fake engine behind it and a clock of ours; no network."""

import asyncio
import contextvars

import av
import numpy as np
import pytest
from fake_session import PADDING, WORD, FakeSession, frame, said
from fastrtc import AdditionalOutputs
from fastrtc.utils import Context, current_context
from handler_call import WEBRTC_ID, Call, Channel, page, quicken, run

from personaplex.errors import InputError, PromptError
from personaplex.messages import ConversationState, EndReason, Limits, Phase
from personaplex.serving.server import DuplexServer
from personaplex.web.handler import Playout
from personaplex.web.updates import state_line


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    quicken(monkeypatch)


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


def test_the_meter_counts_what_never_arrived():
    """A network that reordered packets took 40 % of the microphone while the meter said that none was dropped."""

    async def scene():
        call = Call()
        await call.start()
        call.handler._microphone.lost_packets = 100  # before the conversation is live, all sound is thrown away
        call.server.tell(ConversationState(Phase.LISTENING))
        await call.next()
        call.handler._microphone.lost_packets += 40
        call.clock.pass_sec(1)
        call.server.say(said(frame(0.25), WORD))
        return page(await call.next())

    assert run(scene()).meter.dropped_frames == 10, "four packets of 20 ms make a frame"


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
