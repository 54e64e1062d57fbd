"""The WebRTC edge: one handler for each connection, between FastRTC's event loop and the engine's thread.

    wiring = Wiring(server=lambda: server_or_none, new_transcript=lambda: Transcript(tokenizer, padding_id),
                    read_settings=read_settings, num_settings=7, on_finished=keep)
    rtc.stream(DuplexHandler(wiring), inputs=[rtc, *settings], outputs=[rtc], concurrency_limit=visitors)
    wiring.attach(rtc)
    rtc.on_additional_outputs(lambda update: (...), outputs=[...], concurrency_limit=None, show_progress="hidden")

``on_finished`` gets the Record, which names the connection: the page asks for it by the same id.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from fastrtc import AdditionalOutputs, AsyncStreamHandler, CloseStream, get_current_context
from gradio.context import LocalContext

from personaplex.audio.frames import SAMPLE_RATE_HZ, FrameBuffer, from_int16, to_int16
from personaplex.errors import PersonaPlexError
from personaplex.messages import (
    STOPPED,
    ConversationHandle,
    ConversationState,
    EndReason,
    Meter,
    Phase,
)
from personaplex.text.transcript import Transcript
from personaplex.web.playout import FRAME_SEC, Playout
from personaplex.web.updates import PageUpdate, Record, Wiring, state_line
from personaplex.web.watchdog import Watchdog
from personaplex.web.webrtc import network_round_trip_ms
from personaplex.web.workarounds.aiortc_jitter import Reordering, reorder_microphone
from personaplex.web.workarounds.fastrtc_leftovers import QuietChannel, forget_connection
from personaplex.words.hearing import HeardWords
from personaplex.words.recogniser import Utterance

if TYPE_CHECKING:
    from aiortc import RTCPeerConnection
    from fastrtc.tracks import EmitType

    from personaplex.messages import FrameOutput

log = logging.getLogger(__name__)

PACKET_SEC = 0.02
CHUNK_SAMPLES = round(SAMPLE_RATE_HZ * PACKET_SEC)
"""The microphone is resampled in pieces of one packet; FastRTC's own 40 ms would add 20 ms of delay."""
SETTINGS_WITHIN_SEC = 10.0
UPDATE_EVERY_SEC = 0.4
GONE_POLL_SEC = 0.05
PATH_MS = 165.0
"""Buffers and coding between a browser and the engine, both ways, measured on loopback without network."""
LOST = "The connection to your browser was lost. Press Start to talk again."


class DuplexHandler(AsyncStreamHandler):
    """One visitor's connection. All but the ``on_…`` methods run on the event loop and must not block."""

    def __init__(self, wiring: Wiring):
        super().__init__("mono", output_sample_rate=SAMPLE_RATE_HZ, input_sample_rate=SAMPLE_RATE_HZ)
        self.wiring = wiring
        self.webrtc_id = ""
        self._context: contextvars.Context | None = None
        self._visitor: str | None = None
        self._handle: ConversationHandle | None = None
        self._state: ConversationState | None = None
        self._ends_at: float | None = None
        self._transcript: Transcript | None = None
        self._heard: HeardWords | None = None
        self._meter = Meter()
        self._microphone = Reordering()
        self._to_packets: av.AudioResampler | None = None
        self._lost_before_live = 0
        self._network_ms: float | None = None
        self._recording: list[tuple[np.ndarray, np.ndarray]] | None = None
        self._frames = FrameBuffer()
        self._playout = Playout()
        self._last_update_at = 0.0
        self._watchdog = Watchdog(wiring.clock)
        self._watching: asyncio.Task[None] | None = None
        # Taken by ``emit``.
        self._audio: deque[np.ndarray] = deque()
        self._update: PageUpdate | None = None
        self._closing: str | None = None
        self._is_gone = False
        self._wake = asyncio.Event()

    def copy(self) -> DuplexHandler:
        return DuplexHandler(self.wiring)

    # -- called by FastRTC ---------------------------------------------------------------------

    def set_args(self, args: list[Any]) -> None:
        """The page's settings, from inside a Gradio event, which alone knows the visitor; also for edits mid-call."""
        if self._context is None:
            self._context = contextvars.copy_context()
            self._visitor = getattr(LocalContext.request.get(None), "session_hash", None)
        super().set_args(args)

    async def start_up(self) -> None:
        self.webrtc_id = get_current_context().webrtc_id
        self._loop = asyncio.get_running_loop()
        self._watchdog.heard()
        self._watching = asyncio.create_task(self._watch())
        self._microphone = reorder_microphone(self._peer)
        if self._track is not None:
            self._track.channel = QuietChannel(self._track.channel)
        try:
            await self._open()
        except TimeoutError:
            log.info("a conversation was refused: its page sent no settings")
            self._finish(_refused("The page did not send its settings. Please press Start again."))
        except PersonaPlexError as error:  # its text may quote the visitor, so it goes to the page and not to the log
            log.info("a conversation was refused: %s", type(error).__name__)
            self._finish(_refused(str(error)))
        except Exception:
            log.exception("a conversation could not be opened")
            self._finish(_refused("The conversation could not be opened. Please press Start again."))

    async def _open(self) -> None:
        try:
            await asyncio.wait_for(self.wait_for_args(), SETTINGS_WITHIN_SEC)
        except asyncio.TimeoutError as error:  # its own class before Python 3.11
            raise TimeoutError from error
        # Copied once: edits on the page overwrite ``latest_args`` during the conversation.
        given = list(self.latest_args)[-self.wiring.num_settings :] if self.wiring.num_settings else []
        while (server := self.wiring.server()) is None:
            self._take_state(ConversationState(Phase.LOADING))
            await asyncio.sleep(0.25)
            if self._is_over:
                return
        request = await asyncio.to_thread(self.wiring.read_settings, given)
        self._transcript = await asyncio.to_thread(self.wiring.new_transcript)
        if request.write_user_words and self.wiring.recognition is not None:
            tell = functools.partial(self._call, self._post_live)
            self._heard = await asyncio.to_thread(self.wiring.recognition.listen, tell)
        if self._is_over:
            if self._heard is not None:
                self._heard.close()
            return
        self._recording = [] if request.record else None
        # In the visitor's own context, so that ZeroGPU charges their quota.
        context = self._context or contextvars.copy_context()
        self._handle = context.run(server.open, request, self)
        if self._visitor is not None and not self._is_over:  # one who is refused was told so in ``open`` already
            self.wiring.handles[self._visitor] = self._handle

    async def receive(self, frame: tuple[int, np.ndarray]) -> None:
        self._watchdog.heard()
        if self._handle is None or self._is_over:
            return
        pcm = from_int16(np.asarray(frame[1]).reshape(-1))
        for frame_pcm in self._frames.push(pcm):
            self._handle.push(frame_pcm)

    async def emit(self) -> EmitType:
        """Waits for what the browser gets next: sound, a page update, or the end."""
        while not self._is_gone:
            update, self._update = self._update, None
            if self._audio:
                sound = (SAMPLE_RATE_HZ, self._audio.popleft()[None])
                return sound if update is None else (sound, AdditionalOutputs(update))
            if update is not None:
                return AdditionalOutputs(update)
            if self._closing is not None:
                message, self._closing = self._closing, None
                return CloseStream(message)
            self._wake.clear()
            await self._wake.wait()
        # The connection is closed; FastRTC calls on until it notices.
        await asyncio.sleep(GONE_POLL_SEC)
        return None

    def resample(self, frame: av.AudioFrame) -> Generator[av.AudioFrame, None, None]:
        if self._to_packets is None:
            self._to_packets = av.AudioResampler("s16", self.expected_layout, self.input_sample_rate, CHUNK_SAMPLES)
        yield from self._to_packets.resample(frame)

    async def shutdown(self) -> None:
        """The connection is closed, by either side."""
        self._finish(ConversationState(Phase.ENDED, reason=EndReason.STOPPED, message=STOPPED))
        if self._watching is not None:
            self._watching.cancel()
        self._leave()

    # -- called by the engine, from its own thread -----------------------------------------------

    def on_state(self, state: ConversationState) -> None:
        self._call(self._take_state, state)

    def on_frame(self, output: FrameOutput, heard: np.ndarray, meter: Meter) -> None:
        self._call(self._take_frame, output.text_token, to_int16(output.pcm), heard, meter)

    def _call(self, method: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(method, *arguments)
        except RuntimeError:  # the loop is closed because the process ends
            log.debug("a conversation's event loop is closed")

    # -- on the loop -------------------------------------------------------------------------

    @property
    def _is_over(self) -> bool:
        return self._state is not None and self._state.phase is Phase.ENDED

    @property
    def _track(self) -> Any:
        """FastRTC's ``AudioCallback``, which it gives us as the owner of ``clear_queue`` only."""
        return getattr(self._clear_queue, "__self__", None)

    def _ahead_sec(self) -> float:
        """Sound that waits to be sent, here and in FastRTC's queue."""
        queue = getattr(self._track, "queue", None)
        queued = queue.qsize() * self.output_frame_size if queue is not None else 0
        return queued / self.output_sample_rate + len(self._audio) * FRAME_SEC

    def _take_frame(self, text_token: int, pcm: np.ndarray, heard: np.ndarray, meter: Meter) -> None:
        if self._is_over:
            return
        assert self._transcript is not None, "a conversation is opened with one"
        if self._heard is not None:
            self._heard.push(heard)
        new_words = self._transcript.push(text_token, meter.frames - 1)
        lost_frames = round(self.lost_packets * PACKET_SEC / FRAME_SEC)
        self._meter = replace(meter, dropped_frames=meter.dropped_frames + lost_frames)
        if self._recording is not None:
            self._recording.append((pcm, to_int16(heard)))
        if self._playout.accepts(self._ahead_sec()):
            self._audio.append(pcm)
        if new_words or self.wiring.clock() - self._last_update_at >= UPDATE_EVERY_SEC:
            self._post()
        self._wake.set()

    def _take_state(self, state: ConversationState) -> None:
        if self._is_over:
            return
        if state.phase is Phase.ENDED:
            self._finish(state)
            return
        if state.is_live and not (self._state is not None and self._state.is_live):
            self._frames = FrameBuffer()
            self._lost_before_live = self._microphone.lost_packets
        self._state = state
        self._ends_at = None if state.left_sec is None else self.wiring.clock() + state.left_sec
        self._post()

    def _post_live(self, utterance: Utterance) -> None:
        """The user's words have changed."""
        if not self._is_over:
            self._post()

    def _post(self) -> None:
        """Leave the newest update for ``emit``, in place of one that it has not taken yet."""
        now = self.wiring.clock()
        self._last_update_at = now
        left_sec = None if self._ends_at is None else self._ends_at - now
        words = tuple(self._transcript.words) if self._transcript is not None else ()
        state = self._state or ConversationState(Phase.LOADING)
        user_words = None if self._heard is None else tuple(self._heard.words)
        line = state_line(state, left_sec)
        self._update = PageUpdate(state, line, words, user_words, self._meter, self._round_trip_ms())
        self._wake.set()

    @property
    def lost_packets(self) -> int:
        """Packets of the microphone that never arrived, or came too late, since the conversation is live."""
        return self._microphone.lost_packets - self._lost_before_live

    def _round_trip_ms(self) -> float | None:
        if not self._meter.frames or self._network_ms is None:
            return None
        return PATH_MS + FRAME_SEC * 1000 + self._meter.answer_ms + self._network_ms

    def _finish(self, state: ConversationState) -> None:
        """End once: show the reason on the page, free the slot, hand the record over."""
        if self._is_over:
            return
        self._state = state
        if self._handle is not None:
            self._handle.close()
        if self._visitor is not None and self.wiring.handles.get(self._visitor) is self._handle:
            self.wiring.handles.pop(self._visitor, None)
        if self._heard is not None:
            self._heard.finish()
        self._post()
        self._closing = state_line(state)
        if self._transcript is None:
            return
        pairs = self._recording or []
        agent, heard = ([pair[side] for pair in pairs] for side in (0, 1))
        record = Record(
            self.webrtc_id,
            self._visitor,
            self._transcript,
            state,
            _joined(agent),
            _joined(heard),
            self._meter,
            self._heard,
        )
        self._recording = None
        try:
            self.wiring.on_finished(record)
        except Exception:
            log.exception("the record of a conversation was not taken")

    async def _watch(self) -> None:
        """Close a connection whose other side is gone."""
        await self._watchdog.until_dead(lambda: self._is_over, self._look_at_network)
        log.info("a connection is dead; it is closed")
        self._finish(ConversationState(Phase.ENDED, reason=EndReason.IDLE, message=LOST))
        peer = self._peer
        self._leave()
        if peer is not None:
            await peer.close()

    async def _look_at_network(self) -> None:
        self._network_ms = await network_round_trip_ms(self._peer)

    @property
    def _peer(self) -> RTCPeerConnection | None:
        return self.wiring.rtc.pcs.get(self.webrtc_id) if self.wiring.rtc is not None else None

    def _leave(self) -> None:
        """Release ``emit`` and what FastRTC keeps of the connection."""
        self._is_gone = True
        self._audio.clear()
        self._wake.set()
        forget_connection(self.wiring.rtc, self.webrtc_id, self._track)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """int16 frames → [N] int16; converting ten minutes to float32 here would stall the event loop audibly."""
    return np.concatenate([*parts, np.zeros(0, np.int16)])


def _refused(message: str) -> ConversationState:
    return ConversationState(Phase.ENDED, reason=EndReason.REFUSED, message=message)
