"""A replica: one process with the model, which holds as many conversations as it has places.

Serve gives a place by calling ``hold``, and the place is taken for as long as that call streams. The sound does not
come through Serve: the replica dials the page that asked (``serving.line``).
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from personaplex.cluster.facts import Facts, described
from personaplex.cluster.options import ClusterOptions
from personaplex.cluster.request import decode_request
from personaplex.cluster.watch import BEAT_SEC, PAGE_SILENT_SEC, REPLACE_AFTER_SEC, Watch
from personaplex.errors import PersonaPlexError
from personaplex.messages import ConversationRequest, ConversationState, EndReason, FrameOutput, Meter, Phase
from personaplex.serving.layout import Kind
from personaplex.serving.line import Line, dial
from personaplex.serving.worker import LineListener, pass_on
from personaplex.settings import Settings

if TYPE_CHECKING:
    import numpy as np

    from personaplex.messages import ConversationHandle, ServerStatus
    from personaplex.serving.host import ModelHost
    from personaplex.serving.hosted import Hosted

log = logging.getLogger(__name__)

NEVER_WAIT_SEC = 0.0
"""A page that reads nothing must not hold up other conversations: its line is given up once its buffers are full."""


class Talks:
    """The Serve deployment. Every conversation of a replica is on one ``DuplexServer``: frames are stepped together."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = ClusterOptions.read(options)
        self.host = self.load()
        self._held: set[Held] = set()
        self.show = self.gauges()

    def gauges(self) -> Callable[[ServerStatus, int], None]:
        """Takes the engine's status and the number of conversations held, now and then."""
        return Gauges(self.options.slots).show

    def load(self) -> ModelHost:
        """The model, ready to talk."""
        from personaplex.serving.host import ModelHost

        given = self.options
        host = ModelHost(
            Settings(
                model=given.model, device=given.device, dtype=given.dtype, context=given.context, window=given.window,
                kv_cache=given.kv_cache,
                conversations=given.slots, waiting=given.slots, conversation_sec=given.conversation_sec,
            )
        )  # fmt: skip
        host.start()
        host.wait()
        if host.hosted is None:
            raise RuntimeError(host.loading.sentence)
        return host

    async def describe(self) -> dict[str, Any]:
        """What a page must know of the model, as plain values."""
        hosted = self.host.hosted
        assert hosted is not None, "a replica has loaded its model"
        facts = Facts.of(hosted, self.options.slots, self.options.conversation_sec, self.options.window)
        return described(facts, hosted.finder.config, hosted.tokenizer)

    async def hold(self, address: str, ticket: bytes, request: bytes) -> AsyncIterator[str]:
        """One conversation from its prompt to its end; yields where it is held, once it is."""
        over = asyncio.Event()
        loop = asyncio.get_running_loop()
        held = await asyncio.to_thread(self._take_up, address, ticket, request, lambda: _set(loop, over))
        try:
            yield str(os.getpid())
            while not over.is_set():
                held.beat()
                try:
                    await asyncio.wait_for(over.wait(), BEAT_SEC)
                except asyncio.TimeoutError:  # its own class before Python 3.11
                    continue
        finally:
            self._held.discard(held)
            held.close()

    def _take_up(self, address: str, ticket: bytes, request: bytes, on_over: Callable[[], None]) -> Held:
        held = Held(dial(address, ticket), on_over)
        self._held.add(held)
        try:
            self._open(held, request)
        except BaseException:
            self._held.discard(held)
            held.close()
            raise
        return held

    def _open(self, held: Held, request: bytes) -> None:
        hosted = self.host.hosted
        assert hosted is not None, "a replica has loaded its model"
        asked = decode_request(request, held.folder)
        try:
            asked = _with_own_voice(asked, hosted)
        except PersonaPlexError as error:
            held.on_state(ConversationState(Phase.ENDED, reason=EndReason.REFUSED, message=str(error)))
            return
        held.begin(hosted.server.open(asked, held))

    def check_health(self) -> None:
        """Called by Serve every two seconds; a replica that raises here is replaced."""
        hosted = self.host.hosted
        assert hosted is not None, "a replica has loaded its model"
        status = hosted.server.status()
        self.show(status, len(self._held))
        late_sec = max((held.watch.late_sec() for held in list(self._held)), default=0.0)
        if late_sec > REPLACE_AFTER_SEC:
            raise RuntimeError(f"the engine has not answered for {late_sec:.0f} s")
        if not status.healthy:
            raise RuntimeError(status.message)


class Held(LineListener):
    """One conversation that a replica holds, and its line to the page."""

    def __init__(self, line: Line, on_over: Callable[[], None]) -> None:
        super().__init__(line, NEVER_WAIT_SEC, on_over)
        self.line, self.watch = line, Watch()
        self._files = tempfile.TemporaryDirectory(prefix="personaplex-talk-")
        self.folder = Path(self._files.name)
        self._handle: ConversationHandle | None = None

    def begin(self, handle: ConversationHandle) -> None:
        """Hear what the page sends, in a thread of its own."""
        self._handle = handle
        threading.Thread(target=self._hear, name="held-line", daemon=True).start()

    def beat(self) -> None:
        """A sign of life, so that the page can tell a replica that hangs from one that has nothing to say."""
        self.send(Kind.BEAT)

    def push(self, pcm: np.ndarray) -> None:
        """A frame of the microphone, [frame_samples] float32."""
        assert self._handle is not None, "a conversation that hears has begun"
        self.watch.asked()
        self._handle.push(pcm)

    def tell(self, text: str) -> Future[int]:
        """Something new for the model; see ``messages.ConversationHandle``."""
        assert self._handle is not None, "a conversation that hears has begun"
        return self._handle.tell(text)

    def on_frame(self, output: FrameOutput, heard: np.ndarray, meter: Meter) -> None:
        self.watch.answered()
        super().on_frame(output, heard, meter)

    def close(self, message: str = "") -> None:
        if self._handle is not None:
            self._handle.close(message)
        self.line.close()
        self._files.cleanup()

    def _hear(self) -> None:
        try:
            while pass_on(self.line, self, self, PAGE_SILENT_SEC):
                pass
        except (OSError, ValueError) as error:
            log.info("the page of a conversation is gone: %s", error)
        assert self._handle is not None, "a conversation that hears has begun"
        self._handle.close()


class Gauges:
    """A replica's figures for Prometheus, exported by Ray on each machine."""

    def __init__(self, slots: int) -> None:
        from ray.util.metrics import Gauge

        self._slots = slots
        self._gauges = {
            name: Gauge(f"personaplex_replica_{name}", description=what) for name, what in REPLICA_FIGURES.items()
        }

    def show(self, status: ServerStatus, held: int) -> None:
        """``held``: conversations that this replica holds, those that are being prepared included."""
        values = {
            "conversations": held, "slots": self._slots, "healthy": int(status.healthy), "errors": status.errors,
            "step_p50_ms": status.step_p50_ms, "step_p99_ms": status.step_p99_ms,
            "dropped_frames": status.dropped_frames,
        }  # fmt: skip
        for name, value in values.items():
            self._gauges[name].set(value)


REPLICA_FIGURES = {
    "conversations": "Conversations that a replica holds",
    "slots": "Conversations that it can hold at once",
    "healthy": "1 when it can hold conversations",
    "errors": "Failures of its model since its start",
    "step_p50_ms": "Median of its newest 1000 steps",
    "step_p99_ms": "99th percentile of its newest 1000 steps",
    "dropped_frames": "Microphone frames that newer ones replaced, since its start",
}


def _set(loop: asyncio.AbstractEventLoop, over: asyncio.Event) -> None:
    try:
        loop.call_soon_threadsafe(over.set)
    except RuntimeError:
        log.debug("the replica is being stopped")


def _with_own_voice(asked: ConversationRequest, hosted: Hosted) -> ConversationRequest:
    """The request with a voice that is here; raises PersonaPlexError where the model has none of that name."""
    if asked.voice is None or not asked.voice.of_model:
        return asked
    return replace(asked, voice=hosted.finder.find(asked.voice.name))
