"""`/twilio/media`: a telephone call by Twilio's Media Streams, µ-law at 8 kHz in JSON.

Source: Twilio's "Media Streams – WebSocket Messages", bidirectional streams (`<Connect><Stream>`).
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

from starlette.websockets import WebSocket

from personaplex.errors import InputError
from personaplex.messages import ConversationState
from personaplex.protocols.asked import Model, Wishes, grant, sampling_of, switch_of
from personaplex.protocols.door import Door, key_of
from personaplex.protocols.formats import PCMU, Ear, Mouth
from personaplex.protocols.line import Frame, Line
from personaplex.protocols.talk import Talk
from personaplex.protocols.turns import Turn, Turns
from personaplex.protocols.words import TextPieces

MOST_CHARS = 100_000
"""Of a message: Twilio's hold 20 ms of sound, 300 characters, or up to 4000 of parameters."""


class TwilioTalk(Talk):
    """One call. `start` brings the parameters and asks for the conversation; sound goes out in the persona's turns."""

    opens_within_sec = 10.0

    def __init__(self, socket: WebSocket, model: Model, door: Door) -> None:
        super().__init__(socket, model, Line(model.server, fills_gaps=True))
        self._door = door
        self._stream = ""
        self._ear, self._mouth = Ear(PCMU), Mouth(PCMU)
        self._text = TextPieces(model.tokenizer, model.text_padding_id)
        self._turns = Turns()
        self._marks = 0

    async def take(self, message: str | bytes) -> bool:
        """`connected`, `dtmf` and `mark` need nothing."""
        given = _read(message)
        kind = given.get("event")
        if kind == "start" and not self.has_asked:
            self.has_asked = True
            await self._start(given)
        elif kind == "media" and self.line.is_open:
            self._hear(given)
        return kind != "stop"

    async def tell(self, event: ConversationState | Frame) -> None:
        if not isinstance(event, Frame):
            return
        sound = self._mouth.encode(event.pcm)
        for turn in self._turns.frame(self._text.is_speech(event.text_token), event.pcm, event.heard):
            await self._take_turn(turn)
        # Silence is left out, so that what Twilio keeps for later runs empty in every pause.
        if self._turns.persona_speaks:
            await self._send("media", media={"payload": base64.b64encode(sound).decode()})

    async def last_words(self, state: ConversationState) -> None:
        """Twilio knows none: the call goes on with what follows `<Connect>`."""

    async def _take_turn(self, turn: Turn) -> None:
        if turn is Turn.PERSONA_GAVE_WAY:
            await self._send("clear")
        elif turn is Turn.PERSONA_PAUSED:
            self._marks += 1
            await self._send("mark", mark={"name": f"turn-{self._marks}"})

    async def _start(self, given: dict[str, Any]) -> None:
        start = given.get("start")
        start = start if isinstance(start, dict) else {}
        stream = given.get("streamSid") or start.get("streamSid")
        if not isinstance(stream, str) or not stream:
            raise InputError("start has no streamSid")
        form = start.get("mediaFormat") or {}
        if not isinstance(form, dict) or form.get("encoding", "audio/x-mulaw") != "audio/x-mulaw":
            raise InputError("mediaFormat must be audio/x-mulaw")
        custom = start.get("customParameters")
        custom = custom if isinstance(custom, dict) else {}
        asked = {name: value for name, value in custom.items() if isinstance(value, str)}
        if not (self._door.is_key(asked.get("key", "")) or self._door.is_key(key_of(self.socket.headers))):
            raise InputError("the parameter key is missing or wrong")
        self._stream = stream
        wishes = Wishes(
            asked.get("persona"), asked.get("prompt"), asked.get("voice"), sampling_of(asked),
            # A telephone may give the persona its own voice back, and callers say hello while they are greeted.
            clean=switch_of(asked, "clean", True), wait_for_greeting=switch_of(asked, "wait_for_greeting", True),
        )  # fmt: skip
        granted = await grant(self.model, wishes)
        self.line.open(granted.request)

    def _hear(self, given: dict[str, Any]) -> None:
        media = given.get("media")
        payload = media.get("payload") if isinstance(media, dict) else None
        if not isinstance(payload, str):
            raise InputError("media has no payload")
        try:
            self.line.feeder.put(self._ear.decode(base64.b64decode(payload, validate=True)))
        except (binascii.Error, ValueError):
            raise InputError("the payload of media is not base64") from None

    async def _send(self, kind: str, **fields: Any) -> None:
        await self.socket.send_text(json.dumps({"event": kind, "streamSid": self._stream, **fields}))


def _read(message: str | bytes) -> dict[str, Any]:
    try:
        if isinstance(message, str) and len(message) <= MOST_CHARS:
            read = json.loads(message)
            if isinstance(read, dict):
                return read
    except (ValueError, RecursionError):
        pass
    raise InputError("a message is a JSON object as Twilio sends it")


async def media(socket: WebSocket, door: Door) -> None:
    """Twilio can send no header of ours, so the key comes as a `<Parameter>`."""
    model = await door.admit(socket, key_comes_later=True)
    if model is None:
        return
    with door.counted():
        await socket.accept()
        await TwilioTalk(socket, model, door).run()
