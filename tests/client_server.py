"""The websockets of other programs on a port of their own, in front of a session without a model; clients for tests."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from fake_host import golden_hosted
from fake_session import FRAME_SAMPLES, FakeSession
from starlette.applications import Starlette
from starlette.middleware import Middleware
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from benchmarks.ports import free_port
from personaplex.audio.opus import OpusReader, OpusWriter
from personaplex.messages import Limits
from personaplex.personas.voices import VoiceFinder
from personaplex.protocols.door import Door
from personaplex.protocols.port import Port
from personaplex.protocols.routes import all_routes
from personaplex.serving.server import DuplexServer
from personaplex.settings import Settings
from personaplex.web.access import Access
from personaplex.web.listeners import Listeners

MANY_PACKETS = 10_000
TONE = np.sin(2 * np.pi * 12 * np.arange(FRAME_SAMPLES) / FRAME_SAMPLES).astype(np.float32)  # 150 Hz, whole periods
WITHIN_SEC = 20.0


@dataclass
class Served:
    """A server with its door, and what it runs on."""

    url: str
    session: FakeSession
    server: DuplexServer
    door: Door
    model: SimpleNamespace | None
    loading: str = "Loading: getting ready"
    is_lent: bool = False
    sockets: list[ClientConnection] = field(default_factory=list)

    def connect(self, path: str, **more: object) -> ClientConnection:
        self.sockets.append(connect(self.url + path, max_size=None, compression=None, open_timeout=60, **more))
        return self.sockets[-1]

    def wait_until(self, is_so: Callable[[], bool], within_sec: float = WITHIN_SEC) -> None:
        until = time.monotonic() + within_sec
        while not is_so():
            assert time.monotonic() < until, self.server.status()
            time.sleep(0.005)

    def wait_until_free(self, within_sec: float = 1.0) -> None:
        self.wait_until(lambda: not self.server.status().running and not self.door.connections, within_sec)


@contextlib.contextmanager
def serving(
    session: FakeSession | None = None, *, home: Path | None = None, tokenizer: object = None, **settings: object
) -> Iterator[Served]:
    """The websockets, until the end of the test; ``settings`` as the page's, limits among them."""
    given = Settings(**{"model": "nano", **settings})  # type: ignore[arg-type]
    slots = given.conversations or 1
    limits = Limits(
        slots=slots, waiting=given.waiting, conversation_sec=given.conversation_sec or 600.0
    )  # fmt: skip
    session = session or FakeSession(slots=slots)
    server = DuplexServer(session, limits)
    hosted = golden_hosted()
    finder = replace(hosted.finder, home=home) if isinstance(hosted.finder, VoiceFinder) else hosted.finder
    model = SimpleNamespace(
        name="nano-1", server=server, finder=finder, tokenizer=tokenizer or hosted.tokenizer,
        text_padding_id=hosted.text_padding_id,
    )  # fmt: skip
    port = free_port()
    served = Served(f"ws://127.0.0.1:{port}", session, server, None, model)  # type: ignore[arg-type]
    served.door = Door(given, lambda: served.model, loading=lambda: served.loading, is_lent=lambda: served.is_lent)  # type: ignore[arg-type]
    routes = all_routes(served.door)
    access = Middleware(Access, names=("localhost",), listeners=Listeners(), sockets=routes)
    listening = Port(Starlette(routes=routes, middleware=[access]), "127.0.0.1", port, None, None)
    listening.start()
    try:
        yield served
    finally:
        for socket in served.sockets:
            with contextlib.suppress(OSError):
                socket.socket.close()
        server.close()
        listening.close()


class MoshiClient:
    """`/api/chat` from the other side."""

    def __init__(self, socket: ClientConnection):
        self.socket = socket
        self._reader, self._writer = OpusReader(), OpusWriter()
        self.text, self.error, self.about = "", "", b""
        self.sound = np.zeros(0, np.float32)
        self.is_live = False

    def listen(self) -> int:
        """Take one message; returns its kind."""
        message = self.socket.recv(timeout=WITHIN_SEC)
        kind, content = message[0], message[1:]
        if kind == 0:
            self.is_live = True
        elif kind == 1:
            self.sound = np.concatenate([self.sound, self._reader.push(content, MANY_PACKETS)[0]])
        elif kind == 2:
            self.text += content.decode()
        elif kind == 4:
            self.about = content
        elif kind == 5:
            self.error = content.decode()
        return kind

    def wait_for_handshake(self) -> MoshiClient:
        while not self.is_live:
            self.listen()
        return self

    def say(self, pcm: np.ndarray) -> None:
        self.socket.send(b"\1" + self._writer.push(pcm))

    def talk(self, frames: int, loudness: float = 0.1) -> None:
        """Send frames of a tone, and wait for as many answers."""
        self.talk_unanswered(frames, loudness)
        answers = 0
        while answers < frames:
            answers += self.listen() == 1

    def talk_unanswered(self, frames: int, loudness: float = 0.1) -> None:
        for _ in range(frames):
            self.say(loudness * TONE)

    def until_closed(self) -> int:
        """Listen to the end; returns the close code."""
        try:
            while True:
                self.listen()
        except ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd else 1006
