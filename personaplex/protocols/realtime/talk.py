"""`/v1/realtime`: a session on its websocket."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace

from starlette.websockets import WebSocket

from personaplex.errors import PersonaPlexError
from personaplex.messages import ConversationState, EndReason
from personaplex.personas.presets import DEFAULT_PERSONA, persona
from personaplex.protocols.asked import Model, Wishes, grant, sampling_of, switch_of
from personaplex.protocols.door import Door, refuse, subprotocol_of
from personaplex.protocols.line import Frame, Line
from personaplex.protocols.realtime.events import (
    Event,
    EventError,
    error_event,
    event,
    object_of,
    read_event,
    text_of,
)
from personaplex.protocols.realtime.items import text_in
from personaplex.protocols.realtime.session import Session
from personaplex.protocols.realtime.settings import SessionSettings
from personaplex.protocols.talk import Talk, sentence_of
from personaplex.protocols.words import TextPieces
from personaplex.words.hearing import HeardWords, Recognition
from personaplex.words.recogniser import Utterance

log = logging.getLogger(__name__)


class RealtimeTalk(Talk):
    """One client. The conversation is asked for with its first sound, or when it asks for a response."""

    def __init__(self, socket: WebSocket, model: Model, wishes: Wishes, recognition: Recognition | None = None) -> None:
        """``wishes``: those of the query; instructions and voice come by `session.update`.

        ``recognition``: writes down what the user says, if the client asks for it.
        """
        super().__init__(socket, model, Line(model.server, keeps_early_sound=True, fills_gaps=True))
        self._wishes = wishes
        name = socket.query_params.get("model") or model.name
        kind = recognition.kind if recognition is not None else ""
        text = TextPieces(model.tokenizer, model.text_padding_id)
        self._session = Session(SessionSettings(name[:64], recogniser=kind), text)
        self._recognition = recognition
        self._heard: HeardWords | None = None
        self._sending = asyncio.Lock()  # what is sent keeps the order in which it came to be
        self._handlers: dict[str, Callable[[Event], Awaitable[list[Event]]]] = {
            "session.update": self._update,
            "input_audio_buffer.append": self._append,
            "input_audio_buffer.commit": self._commit,
            "input_audio_buffer.clear": self._clear,
            "output_audio_buffer.clear": self._ignore,
            "response.create": self._create_response,
            "response.cancel": self._cancel_response,
            "conversation.item.create": self._create_item,
            "conversation.item.retrieve": self._retrieve_item,
            "conversation.item.truncate": self._truncate_item,
            "conversation.item.delete": self._delete_item,
        }

    async def begin(self) -> None:
        """The server speaks first: some clients wait for it."""
        async with self._sending:
            await self._send([event("session.created", session=self._shown())])

    async def take(self, message: str | bytes) -> bool:
        async with self._sending:
            await self._send(await self._answers(message))
        return True

    async def tell(self, event: ConversationState | Frame) -> None:
        if isinstance(event, Frame):
            await self._write_down(event)
            async with self._sending:
                await self._send(self._session.frame(event))

    async def last_words(self, state: ConversationState) -> None:
        reason = (state.reason or EndReason.FAILED).value
        async with self._sending:
            await self._send([error_event(f"conversation_{reason}", sentence_of(state), kind="server_error")])

    async def run(self) -> None:
        try:
            await super().run()
        finally:
            if self._heard is not None:
                self._heard.close()

    async def _write_down(self, frame: Frame) -> None:
        """Let the recogniser hear what the model hears, from the conversation's first frame on."""
        if self._recognition is not None and frame.index == 0:
            loop = asyncio.get_running_loop()

            def tell(utterance: Utterance) -> None:
                if utterance.is_final:
                    with contextlib.suppress(RuntimeError):  # the loop is closed because the process ends
                        loop.call_soon_threadsafe(lambda: self.beside(self._user_said(utterance)))

            if self._session.settings.transcribes:
                self._heard = await asyncio.to_thread(self._recognition.listen, tell)
        if self._heard is not None:
            self._heard.push(frame.heard)

    async def _user_said(self, utterance: Utterance) -> None:
        async with self._sending:
            await self._send(self._session.user_said(utterance))

    async def _send(self, events: list[Event]) -> None:
        for each in events:
            await self.socket.send_text(json.dumps(each))

    async def _answers(self, message: str | bytes) -> list[Event]:
        if isinstance(message, bytes):
            return [error_event("invalid_json", "Events are text, sound is base64 in them.")]
        given: Event = {}
        try:
            given = read_event(message)
            handler = self._handlers.get(given["type"])
            if handler is None:
                raise EventError("unknown_event", f"Events of the type {given['type'][:80]!r} are not known.", "type")
            return await handler(given)
        except EventError as error:
            cause = given.get("event_id")
            cause = cause if isinstance(cause, str) else None
            return [error_event(error.code, str(error), param=error.param, event_id=cause)]

    # -- the conversation ------------------------------------------------------------------------

    async def _open(self) -> None:
        """Ask for the conversation, unless that was done; raises PersonaPlexError."""
        if self.line.is_open:
            return
        self.has_asked = True
        settings = self._session.settings
        granted = await grant(self.model, replace(self._wishes, text=settings.instructions, voice=settings.voice))
        self._session.voice = granted.voice or self._session.voice
        self.line.open(granted.request)

    def _shown(self) -> Event:
        settings = self._session.settings
        text = settings.instructions
        if text is None:
            text = persona(DEFAULT_PERSONA).prompt_for(self.model.finder.family)
        return settings.shown(text, self._session.voice if self.line.is_open else settings.voice or "default")

    async def _update(self, given: Event) -> list[Event]:
        """Before the conversation everything counts. In it the voice stays; new instructions are told to the model."""
        old = self._session.settings
        new = old.updated(object_of(given, "session"))
        text = new.instructions
        if text is None or text == old.instructions or not self.line.is_open:
            self._session.update(new)
            return [event("session.updated", session=self._shown())]
        self._session.update(replace(new, instructions=old.instructions))
        self.beside(self._instruct(text))
        return []

    async def _instruct(self, text: str) -> None:
        """Tell the model new instructions; what the client is told then is what is in force."""
        if await self._tell_model(text):
            self._session.update(replace(self._session.settings, instructions=text))
        async with self._sending:
            await self._send([event("session.updated", session=self._shown())])

    async def _tell_model(self, text: str) -> bool:
        """Tell the model something in the middle of the conversation, once it is live; → whether it took it."""
        try:
            await asyncio.wrap_future(self.line.tell(text))
        except PersonaPlexError as error:
            log.info("a conversation could not be told something: %s", type(error).__name__)
            return False
        return True

    # -- sound -----------------------------------------------------------------------------------

    async def _append(self, given: Event) -> list[Event]:
        audio = text_of(given, "audio")
        try:
            data = base64.b64decode(audio, validate=True)
        except (binascii.Error, ValueError):
            raise EventError("invalid_value", "audio must be base64.", "audio") from None
        await self._open()
        self.line.feeder.put(self._session.ear.decode(data))
        return []

    async def _commit(self, given: Event) -> list[Event]:
        await self._open()
        return self._session.commit(self.line.feeder.fed + self.line.feeder.unfed)

    async def _clear(self, given: Event) -> list[Event]:
        self.line.feeder.clear()
        return [event("input_audio_buffer.cleared")]

    async def _ignore(self, given: Event) -> list[Event]:
        return []

    # -- responses and items ---------------------------------------------------------------------

    async def _create_response(self, given: Event) -> list[Event]:
        metadata = object_of(object_of(given, "response"), "metadata")
        if len(json.dumps(metadata)) > 10_000 or not all(isinstance(value, str) for value in metadata.values()):
            raise EventError("invalid_value", "metadata must be strings, of 10000 characters at most.", "metadata")
        await self._open()
        return self._session.create_response(metadata)

    async def _cancel_response(self, given: Event) -> list[Event]:
        return self._session.cancel_response()

    async def _create_item(self, given: Event) -> list[Event]:
        """Kept, and told to the model where it is a system message; it hears its user and does not read them."""
        item, events = self._session.items.create(given)
        if item.get("role") == "system" and self.line.is_open:
            self.beside(self._tell_model(text_in(item)))
        return events

    async def _retrieve_item(self, given: Event) -> list[Event]:
        return [self._session.items.retrieve(given)]

    async def _truncate_item(self, given: Event) -> list[Event]:
        return [self._session.items.truncate(given)]

    async def _delete_item(self, given: Event) -> list[Event]:
        return [self._session.items.delete(given)]


async def realtime(socket: WebSocket, door: Door) -> None:
    """`/v1/realtime?model=…`, with Moshi's names of `seed` and sampling, and `clean`, in the query besides."""
    model = await door.admit(socket)
    if model is None:
        return
    try:
        query = socket.query_params
        wishes = Wishes(sampling=sampling_of(query), clean=switch_of(query, "clean"))
    except PersonaPlexError as error:
        await refuse(socket, 400, f"{error}.")
        return
    with door.counted():
        await socket.accept(subprotocol_of(socket))
        await RealtimeTalk(socket, model, wishes, door.recognition).run()
