"""A WebRTC handler in a call without FastRTC: its tables, the engine and the clock are the test's."""

import asyncio
import contextvars
import threading
from types import SimpleNamespace

from fake_session import Clock, frame
from fastrtc import AdditionalOutputs, CloseStream
from fastrtc.utils import Context, current_context

from personaplex.messages import ConversationRequest, ConversationState, Meter, Phase
from personaplex.text.transcript import Transcript
from personaplex.web import handler as realtime
from personaplex.web.handler import DuplexHandler
from personaplex.web.updates import PageUpdate, Wiring

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


def quicken(monkeypatch):
    """Shorten what the event loop itself waits for; everything else is counted on the test's clock."""
    monkeypatch.setattr(realtime, "SETTINGS_WITHIN_SEC", 0.1)
    monkeypatch.setattr("personaplex.web.watchdog.LOOK_EVERY_SEC", 0.01)
    monkeypatch.setattr("personaplex.web.workarounds.fastrtc_leftovers.FORGET_AFTER_SEC", 0.02)


def page(item):
    outputs = item if isinstance(item, AdditionalOutputs) else item[1]
    assert isinstance(outputs.args[0], PageUpdate)
    return outputs.args[0]
