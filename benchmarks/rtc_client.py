"""A visitor without a browser: speaks WebRTC to a running page through the routes its script uses."""

from __future__ import annotations

import asyncio
import fractions
import json
import secrets
import time
from dataclasses import dataclass, field

import av
import httpx
import numpy as np
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError

RATE_HZ = 48_000
PACKET_SAMPLES = RATE_HZ // 50


def round_trips_ms(
    sent: np.ndarray, heard: list[np.ndarray], came_sec: list[float], rate_hz: int,
    window_sec: float = 5.0, longest_sec: float = 2.0,
) -> list[float]:  # fmt: skip
    """How late each ``window_sec`` of what came back is, when that is what was sent.

    sent: [N], its first sample sent at 0 s, in real time; heard: pieces of [n], which came at ``came_sec`` and are
    played from then on. A trip is sought up to ``longest_sec``.
    """
    ends, size = np.cumsum([len(piece) for piece in heard]), round(window_sec * rate_hz)
    found, sound = [], np.concatenate([*heard, np.zeros(0)]).astype(np.float32)
    for start in range(0, len(sound) - size + 1, size):
        piece = int(np.searchsorted(ends, start, side="right"))
        played_sec = came_sec[piece] + (start - (ends[piece] - len(heard[piece]))) / rate_hz
        back, played = sound[start : start + size], round(played_sec * rate_hz)
        found.append(1000 * trip_samples(sent, back, played, round(longest_sec * rate_hz)) / rate_hz)
    return found


def trip_samples(sent: np.ndarray, back: np.ndarray, played: int, longest: int) -> int:
    """How long before sample ``played`` of the clock, at which ``back`` begins to be played, it was sent."""
    oldest = max(0, played - longest)
    said = sent[oldest : played + len(back)].astype(np.float32)
    size = len(said) + len(back)
    match = np.abs(np.fft.irfft(np.fft.rfft(said, size) * np.conj(np.fft.rfft(back, size)), size))
    return played - oldest - int(np.argmax(match[: max(played - oldest, 1)]))


class Microphone(MediaStreamTrack):
    """Plays a sound, then silence, in real time: [N] int16 at 48 kHz."""

    kind = "audio"

    def __init__(self, sound: np.ndarray):
        super().__init__()
        self.sound, self.sent = sound, 0
        self.started_at: float | None = None

    async def recv(self) -> av.AudioFrame:
        if self.started_at is None:
            self.started_at = time.perf_counter()
        await asyncio.sleep(max(0.0, self.started_at + self.sent / RATE_HZ - time.perf_counter()))
        packet = np.zeros((1, PACKET_SAMPLES), np.int16)
        piece = self.sound[self.sent : self.sent + PACKET_SAMPLES]
        packet[0, : len(piece)] = piece
        frame = av.AudioFrame.from_ndarray(packet, format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE_HZ, self.sent, fractions.Fraction(1, RATE_HZ)
        self.sent += PACKET_SAMPLES
        return frame


@dataclass
class Page:
    """A Gradio page as its script sees it: components, events, session."""

    url: str
    http: httpx.AsyncClient
    config: dict
    session: str = field(default_factory=lambda: secrets.token_hex(6))

    @classmethod
    async def load(cls, url: str) -> Page:
        http = httpx.AsyncClient(timeout=30)
        return cls(url, http, (await http.get(f"{url}/config")).json())

    @property
    def rtc_id(self) -> int:
        return next(part["id"] for part in self.config["components"] if "webrtc" in part["type"])

    def event(self, name: str) -> dict:
        """The event of the WebRTC component."""
        return next(d for d in self.config["dependencies"] if [self.rtc_id, name] in [list(t) for t in d["targets"]])

    def inputs(self, event: dict, webrtc_id: str, changes: dict[str, object]) -> list:
        """The components' values, with ``changes`` by element id."""
        parts = {part["id"]: part["props"] for part in self.config["components"]}
        shown = [changes.get(parts[i].get("elem_id"), parts[i].get("value")) for i in event["inputs"][1:]]
        return [webrtc_id, *shown]

    async def fire(self, event: dict, data: list) -> None:
        body = {"data": data, "fn_index": event["id"], "session_hash": self.session, "trigger_id": self.rtc_id}
        (await self.http.post(f"{self.url}/gradio_api/queue/join", json=body)).raise_for_status()

    async def offer(self, body: dict) -> dict:
        call = {"data": body, "component_id": self.rtc_id, "fn_name": "offer", "session_hash": self.session}
        return (await self.http.post(f"{self.url}/gradio_api/component_server", json=call)).json()

    async def updates(self):
        """The page's events, as the server sends them."""
        async with (
            httpx.AsyncClient(timeout=None) as http,
            http.stream("GET", f"{self.url}/gradio_api/queue/data?session_hash={self.session}") as answer,
        ):
            async for line in answer.aiter_lines():
                if line.startswith("data:"):
                    yield json.loads(line[5:])


class Visitor:
    """One conversation: ``connect``, wait, ``stop`` or ``vanish``."""

    def __init__(self, url: str, sound: np.ndarray | None = None, **changes: object):
        self.url, self.changes = url, {name.replace("_", "-"): value for name, value in changes.items()}
        self.microphone = Microphone(np.zeros(0, np.int16) if sound is None else sound)
        self.heard: list[np.ndarray] = []
        self.heard_at: list[float] = []
        self.said: list[dict] = []  # messages of the data channel
        self.shown: list[dict] = []  # events of the page
        self.ended = asyncio.Event()
        self._tasks: list[asyncio.Task] = []

    async def connect(self, timeout_sec: float = 60.0) -> float:
        """Until the first sound arrives; seconds since the offer, or TimeoutError."""
        self.page = await Page.load(self.url)
        self.webrtc_id = secrets.token_hex(6)
        self.pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.pc.addTrack(self.microphone)
        channel = self.pc.createDataChannel("text")
        channel.on("open", lambda: channel.send("handshake"))
        channel.on("message", self._message)
        first = asyncio.Event()
        self.pc.on("track", lambda track: self._start(self._listen(track, first)))
        started = time.perf_counter()
        await self.pc.setLocalDescription(await self.pc.createOffer())
        local = self.pc.localDescription
        answer = await self.page.offer({"sdp": local.sdp, "type": local.type, "webrtc_id": self.webrtc_id})
        if "sdp" not in answer:
            raise ConnectionRefusedError(answer)
        await self.pc.setRemoteDescription(RTCSessionDescription(answer["sdp"], answer["type"]))
        ended = asyncio.create_task(self.ended.wait())
        sound = asyncio.create_task(first.wait())
        done, _ = await asyncio.wait({ended, sound}, timeout=timeout_sec, return_when=asyncio.FIRST_COMPLETED)
        for task in (ended, sound):
            task.cancel()
        if not done:
            raise TimeoutError(f"no sound within {timeout_sec} s; the page said {self.said}")
        return time.perf_counter() - started

    async def stop(self) -> None:
        """End the conversation as the Stop button does."""
        await self.pc.close()
        await self._let_go()

    async def vanish(self) -> None:
        """Disappear as a killed browser does, without closing anything."""
        self.microphone.stop()
        for transceiver in self.pc.getTransceivers():
            await transceiver.sender.transport.transport._connection.close()
        await self._let_go()

    async def _let_go(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.page.http.aclose()

    @property
    def end_message(self) -> str:
        return next((message["data"] for message in self.said if message["type"] == "end_stream"), "")

    def sound(self) -> np.ndarray:
        """[N] int16 at 48 kHz."""
        return np.concatenate([*self.heard, np.zeros(0, np.int16)])

    def round_trip_ms(self) -> float:
        """Microphone → speaker, when what comes back is what was sent."""
        sent = self.microphone.sound[: self.microphone.sent].astype(np.float32)
        heard = self.sound().astype(np.float32)
        size = len(sent) + len(heard)
        match = np.abs(np.fft.irfft(np.fft.rfft(heard, size) * np.conj(np.fft.rfft(sent, size)), size))
        if self.microphone.started_at is None:
            raise ValueError("nothing was sent yet; connect first")
        # On the clock: the first sound heard came so long after the first one sent.
        first = round((self.heard_at[0] - self.microphone.started_at) * RATE_HZ)
        possible = np.arange(-first, 2 * RATE_HZ - first)
        return 1000 * (int(possible[np.argmax(match[possible % size])]) + first) / RATE_HZ

    def round_trips_ms(self, window_sec: float = 5.0, longest_sec: float = 2.0) -> list[float]:
        """Microphone → speaker in each stretch of what came back, when that is what was sent."""
        if self.microphone.started_at is None:
            raise ValueError("nothing was sent yet; connect first")
        sent = self.microphone.sound[: self.microphone.sent]
        came_sec = [at - self.microphone.started_at for at in self.heard_at]
        return round_trips_ms(sent, self.heard, came_sec, RATE_HZ, window_sec, longest_sec)

    # -- callbacks ---------------------------------------------------------------------------

    def _start(self, work) -> None:
        self._tasks.append(asyncio.ensure_future(work))

    def _message(self, text: str) -> None:
        message = json.loads(text)
        if message["type"] == "send_input":
            self._start(self._send_settings())
        elif message["type"] == "fetch_output":
            if not any(m["type"] == "fetch_output" for m in self.said):
                self._start(self._read_page())
            else:
                return
        elif message["type"] == "end_stream":
            self.ended.set()
        self.said.append(message)

    async def _send_settings(self) -> None:
        event = self.page.event("tick")
        await self.page.fire(event, self.page.inputs(event, self.webrtc_id, self.changes))

    async def _read_page(self) -> None:
        await self.page.fire(self.page.event("state_change"), [self.webrtc_id])
        async for update in self.page.updates():
            self.shown.append(update)

    async def _listen(self, track: MediaStreamTrack, first: asyncio.Event) -> None:
        try:
            while True:
                frame = await track.recv()
                assert isinstance(frame, av.AudioFrame)
                self.heard_at.append(time.perf_counter())
                pcm = frame.to_ndarray().reshape(-1)
                self.heard.append(pcm[::2] if frame.layout.name == "stereo" else pcm)
                first.set()
        except MediaStreamError:
            pass
