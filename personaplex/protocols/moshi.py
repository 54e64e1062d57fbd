"""Moshi's and PersonaPlex's own websocket protocol, `/api/chat`: Ogg/Opus both ways, one frame out for each frame in.

Sources: rust/protocol.md, moshi/server.py and client.py of kyutai-labs/moshi; moshi/server.py of NVIDIA/personaplex.
A message is binary; its first byte is the kind. Servers differ in what they ignore, clients in what they forgive.
"""

from __future__ import annotations

import time
from enum import IntEnum

from starlette.websockets import WebSocket

from personaplex.audio.opus import OpusReader, OpusWriter
from personaplex.errors import PersonaPlexError
from personaplex.messages import ConversationState
from personaplex.personas.presets import DEFAULT_PERSONA, persona
from personaplex.protocols.asked import Model, Wishes, grant, sampling_of, switch_of
from personaplex.protocols.door import Door, refuse, subprotocol_of
from personaplex.protocols.line import Frame, Line
from personaplex.protocols.talk import Talk, sentence_of
from personaplex.protocols.words import TextPieces

PACKETS_A_SEC = 200
BURST_PACKETS = 2000
"""Opus packets that a client may send at any speed, and per second beyond that: 50 a second are usual."""


class Kind(IntEnum):
    """First byte of a message. Above 6 clients fail to decode; NVIDIA's does at metadata that differ from Rust's."""

    HANDSHAKE = 0
    AUDIO = 1
    TEXT = 2
    CONTROL = 3
    METADATA = 4
    ERROR = 5
    PING = 6


class Allowance:
    """How many packets may be decoded now: a bucket of BURST_PACKETS that fills at PACKETS_A_SEC."""

    def __init__(self) -> None:
        self._left, self._at = float(BURST_PACKETS), time.monotonic()

    def now(self) -> int:
        passed_sec, self._at = time.monotonic() - self._at, time.monotonic()
        self._left = min(BURST_PACKETS, self._left + passed_sec * PACKETS_A_SEC)
        return max(0, int(self._left))

    def spend(self, packets: int) -> None:
        self._left -= min(packets, self._left)


class MoshiTalk(Talk):
    """One client of `/api/chat`. The conversation is asked for at once; the handshake says that the persona listens."""

    def __init__(self, socket: WebSocket, model: Model, wishes: Wishes) -> None:
        super().__init__(socket, model, Line(model.server))
        self._wishes = wishes
        self._reader, self._writer = OpusReader(), OpusWriter()
        self._allowance = Allowance()
        self._text = TextPieces(model.tokenizer, model.text_padding_id)
        self._greeted = False

    async def begin(self) -> None:
        self.has_asked = True
        self.line.open((await grant(self.model, self._wishes)).request)

    async def take(self, message: str | bytes) -> bool:
        """Sound. Controls and pings are ignored, as the authors' servers do, and so is what nobody knows."""
        if isinstance(message, bytes) and message[:1] == bytes([Kind.AUDIO]):
            pcm, packets = self._reader.push(message[1:], self._allowance.now())
            self._allowance.spend(packets)
            self.line.feeder.put(pcm)  # of before the handshake, it reads the headers only
        return True

    async def tell(self, event: ConversationState | Frame) -> None:
        if isinstance(event, Frame):
            await self._say(event)
        elif event.is_live and not self._greeted:
            self._greeted = True
            await self._send(Kind.HANDSHAKE)

    async def last_words(self, state: ConversationState) -> None:
        await self._send(Kind.ERROR, sentence_of(state).encode())

    async def _say(self, frame: Frame) -> None:
        await self._send(Kind.AUDIO, self._writer.push(frame.pcm))
        text = self._text.push(frame.text_token)
        if text:
            await self._send(Kind.TEXT, text.encode())

    async def _send(self, kind: Kind, content: bytes = b"") -> None:
        await self.socket.send_bytes(bytes([kind]) + content)


async def chat(socket: WebSocket, door: Door) -> None:
    """`/api/chat` and `/PERSONA/api/chat`: `moshi.client` sends no query, and appends its path to the address given."""
    model = await door.admit(socket)
    if model is None:
        return
    query = socket.query_params
    try:
        wishes = Wishes(
            persona=persona(socket.path_params.get("persona") or query.get("persona") or DEFAULT_PERSONA).name,
            text=query.get("text_prompt"),
            voice=query.get("voice_prompt"),
            sampling=sampling_of(query),
            clean=switch_of(query, "clean"),
        )
    except PersonaPlexError as error:
        await refuse(socket, 400, f"{error}.")
        return
    with door.counted():
        await socket.accept(subprotocol_of(socket))
        await MoshiTalk(socket, model, wishes).run()
