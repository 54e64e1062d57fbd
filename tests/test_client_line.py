"""A client's sound on its way to the engine, and the engine's events on theirs to a client."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
from fake_session import FRAME_SAMPLES, Clock, frame, said
from starlette.websockets import WebSocketDisconnect

from personaplex.messages import STOPPED, ConversationRequest, ConversationState, EndReason, Meter, Phase
from personaplex.protocols import talk as talk_module
from personaplex.protocols.feeder import FRAME_SEC, GAP_SEC, MOST_WAITING_SEC, QUIET_CLIENT_SEC, Feeder
from personaplex.protocols.line import MOST_UNREAD, Frame, Line
from personaplex.protocols.talk import Talk

LIVE = ConversationState(Phase.LISTENING)


class Fed:
    """A feeder, what it pushed, and its time."""

    def __init__(self, keeps_early=True):
        self.clock, self.pushed = Clock(), []
        self.feeder = Feeder(self.pushed.append, keeps_early=keeps_early, clock=self.clock)

    def put(self, frames: int, value: float = 0.5, paced: bool = False) -> None:
        for _ in range(frames):
            self.feeder.put(frame(value))
            self.clock.pass_sec(FRAME_SEC if paced else 0.0)

    def answer_all(self) -> None:
        answered = 0
        while answered < len(self.pushed):
            self.feeder.answered()
            answered += 1


def test_no_more_is_handed_over_than_the_server_keeps():
    fed = Fed()
    fed.feeder.begin()
    fed.put(10)
    assert len(fed.pushed) == 2
    for answered in range(1, 9):
        fed.feeder.answered()
        assert len(fed.pushed) == 2 + answered
    assert fed.feeder.unfed == 0 and fed.feeder.dropped == 0


def test_a_recording_sent_in_one_piece_waits_and_a_microphone_does_not():
    for paced, keeps, expected in ((False, True, 2), (True, True, 0), (False, False, 0)):
        fed = Fed(keeps)
        fed.put(50, paced=paced)
        assert not fed.pushed, "nothing is handed over before the conversation is live"
        fed.feeder.begin()
        assert len(fed.pushed) == expected
        fed.put(1, 0.1)
        fed.answer_all()
        assert fed.pushed[-1][0] == np.float32(0.1)


def test_what_waits_is_bounded_and_the_oldest_goes():
    fed = Fed()
    most = round(MOST_WAITING_SEC / FRAME_SEC)
    for number in range(most + 10):
        fed.feeder.put(frame(number))
    fed.feeder.begin()
    assert fed.feeder.unfed == most - 2 and fed.feeder.dropped == 10 and fed.pushed[0][0] == 10


def test_a_gap_is_filled_with_silence_after_the_rest_of_what_came():
    fed = Fed()
    fed.feeder.begin()
    fed.feeder.put(np.full(FRAME_SAMPLES + 100, 0.5, np.float32))
    fed.feeder.answered()
    fed.feeder.fill_gap()
    assert len(fed.pushed) == 1, "a network may hold packets back for a moment"
    fed.clock.pass_sec(GAP_SEC + 0.01)
    for _ in range(3):
        fed.feeder.fill_gap()
    assert len(fed.pushed) == 3, "no more than the engine answers"
    assert (fed.pushed[1][:100] == 0.5).all() and not fed.pushed[1][100:].any() and not fed.pushed[2].any()


def test_a_client_that_sent_nothing_yet_is_silent_from_the_start():
    fed = Fed()
    fed.feeder.fill_gap()
    assert not fed.pushed
    fed.feeder.begin()
    fed.feeder.fill_gap()
    assert len(fed.pushed) == 1


def test_silence_is_not_filled_in_for_ever():
    """Then the server's own rule ends the conversation, and its slot is free."""
    fed = Fed()
    fed.feeder.begin()
    fed.clock.pass_sec(QUIET_CLIENT_SEC + 0.01)
    fed.feeder.fill_gap()
    assert not fed.pushed
    fed.feeder.alive()
    fed.feeder.fill_gap()
    assert len(fed.pushed) == 1


# ---------------------------------------------------------------------------------- the line


class Server:
    """Hands out what was opened on it."""

    def __init__(self):
        self.pushed, self.closed, self.listener = [], 0, None

    def open(self, request, listener):
        self.listener = listener
        return SimpleNamespace(push=self.pushed.append, close=self._close)

    def _close(self, message=""):
        self.closed += 1


def answer(listener, count: int) -> None:
    for _ in range(count):
        listener.on_frame(said(frame(0.1)), frame(), Meter())


def test_events_come_in_order_with_the_end_last():
    async def run():
        server = Server()
        line = Line(server)
        line.open(ConversationRequest())
        for state in (ConversationState(Phase.QUEUED, place=2), LIVE):
            line.on_state(state)
        answer(line, 3)
        line.on_state(ConversationState(Phase.ENDED, reason=EndReason.STOPPED, message=STOPPED))
        return [event async for event in line.events()]

    events = asyncio.run(run())
    assert [event.phase.value for event in events if isinstance(event, ConversationState)] == [
        "queued", "listening", "ended",
    ]  # fmt: skip
    assert [event.index for event in events if isinstance(event, Frame)] == [0, 1, 2]


def test_silence_keeps_the_pace_of_sound():
    async def run():
        server = Server()
        line = Line(server, fills_gaps=True)
        line.open(ConversationRequest())
        line.on_state(LIVE)
        task = asyncio.create_task(line.keep_time())
        for _ in range(5):
            await asyncio.sleep(FRAME_SEC)
            answer(line, len(server.pushed) - line._frames)
        task.cancel()
        return len(server.pushed)

    assert 2 <= asyncio.run(run()) <= 7


def test_what_a_client_leaves_unread_is_bounded():
    async def run():
        line = Line(Server())
        line.open(ConversationRequest())
        line.on_state(LIVE)
        answer(line, 3 * MOST_UNREAD)
        await asyncio.sleep(0)
        return line.overrun.is_set(), len(line._events)

    overrun, kept = asyncio.run(run())
    assert overrun and kept <= MOST_UNREAD


# ---------------------------------------------------------------------------------- a talk


class Echo(Talk):
    """Sends a message for each event; opens at the first message."""

    async def take(self, message):
        if message == "boom":
            raise ValueError("You are called Qwxyz.")
        self.has_asked = True
        await asyncio.sleep(0.1 if message == "slow" else 0.0)
        self.line.open(ConversationRequest())
        return message != "bye"

    async def tell(self, event):
        await self.socket.send_text("event")

    async def last_words(self, state):
        await self.socket.send_text(state.message)


class Socket:
    """A websocket whose client sends ``messages`` and then waits; it reads if ``reads``."""

    def __init__(self, *messages, reads=True):
        self.messages, self.reads, self.sent, self.code = list(messages), reads, [], None
        self.is_stuck = asyncio.Event()

    async def receive(self):
        if self.messages:
            found = self.messages.pop(0)
            return {"type": "websocket.disconnect"} if found is None else {"type": "websocket.receive", "text": found}
        return await asyncio.Event().wait()

    async def send_text(self, text):
        if not self.reads:
            self.is_stuck.set()
            await asyncio.Event().wait()
        if self.reads == "gone":
            raise WebSocketDisconnect(1006)
        self.sent.append(text)

    async def close(self, code):
        if not self.reads:
            await asyncio.Event().wait()
        self.code = code


def talk(socket, server, then=lambda line: None, monkeypatch=None):
    async def run():
        echo = Echo(socket, None, Line(server))
        echo.opens_within_sec = 0.05
        task = asyncio.create_task(echo.run())
        while not (echo.line.is_open or task.done()):
            await asyncio.sleep(0)
        then(echo.line)
        await asyncio.wait_for(task, 5)

    asyncio.run(run())


@pytest.mark.parametrize("messages", [["hi", None], ["bye"]])
def test_a_talk_ends_when_its_client_leaves(messages):
    server, socket = Server(), Socket(*messages)
    talk(socket, server)
    assert server.closed == 1 and socket.code == 1000


def test_a_client_that_is_gone_ends_quietly(caplog):
    server, socket = Server(), Socket("hi", reads="gone")
    talk(socket, server, lambda line: line.on_state(LIVE))
    assert server.closed == 1 and not caplog.records


def test_a_client_that_never_reads_is_ended_and_holds_nothing(monkeypatch):
    monkeypatch.setattr(talk_module, "HANG_UP_WITHIN_SEC", 0.05)
    server, socket = Server(), Socket("hi", reads=False)

    def flood(line):
        line.on_state(LIVE)
        answer(line, 2 * MOST_UNREAD)

    talk(socket, server, flood)
    assert server.closed == 1 and not socket.sent


def test_a_client_that_asks_for_nothing_is_sent_away():
    socket = Socket()
    talk(socket, Server())
    assert socket.code == 1008 and socket.sent == ["No conversation was asked for in time."]


def test_a_client_whose_voice_takes_long_to_find_is_not_sent_away():
    """On a busy machine a telephone's start of ten seconds was not enough for it."""
    server, socket = Server(), Socket("slow", None)
    talk(socket, server)
    assert server.closed == 1 and socket.code == 1000


def test_an_error_of_ours_frees_the_slot_and_is_logged_by_its_class(caplog):
    server, socket = Server(), Socket("hi", "boom")
    talk(socket, server)
    assert server.closed == 1 and socket.code == 1011
    assert [record.getMessage() for record in caplog.records] == ["a client's talk failed"]
