"""A session without its websocket: frames and turns in, events out."""

from __future__ import annotations

from personaplex.protocols.feeder import FRAME_SEC
from personaplex.protocols.formats import Ear, Mouth
from personaplex.protocols.line import Frame
from personaplex.protocols.realtime.events import Event, EventError, Item, event, new_id
from personaplex.protocols.realtime.items import Items
from personaplex.protocols.realtime.responses import CANCELLED, COMPLETED, Response
from personaplex.protocols.realtime.settings import SessionSettings, shown_format
from personaplex.protocols.turns import BEGIN_FRAMES, Turn, Turns
from personaplex.protocols.words import TextPieces
from personaplex.words.recogniser import Utterance

MOST_TURNS = 20
"""The newest turns of the user, to which words may still come."""
NOTHING_SAID_SEC = 8.0
"""A response that a client asked for is over, empty, when the persona says nothing for so long."""
NOTHING_SAID_FRAMES = round(NOTHING_SAID_SEC / FRAME_SEC)


class Session:
    """The conversation as OpenAI's clients see it."""

    def __init__(self, settings: SessionSettings, text: TextPieces) -> None:
        self.settings = settings
        self.voice = settings.voice or "default"
        """The one that speaks, once the conversation was asked for."""
        self.items = Items()
        self.ear, self.mouth = Ear(settings.incoming), Mouth(settings.outgoing)
        self.response: Response | None = None
        self._text = text
        self._turns = Turns()
        self._index = 0
        self._asked: tuple[Event, int] | None = None  # metadata of response.create, and the frame at which it came
        self._user_item: str | None = None  # of the user's turn that goes on
        self._user_turns: list[tuple[int, str]] = []  # the newest: the frame at which each began, and its item
        self._early_words: list[Utterance] = []  # of a turn that is not over yet
        self._committed: tuple[str, int] | None = None  # the client's last commit: its item, and the frames before it

    # -- of the engine ---------------------------------------------------------------------------

    def frame(self, frame: Frame) -> list[Event]:
        """One frame of the conversation."""
        self._index = frame.index
        text = self._text.push(frame.text_token)
        says = self._text.is_speech(frame.text_token)
        events: list[Event] = []
        for turn in self._turns.frame(says, frame.pcm, frame.heard):
            events += self._take_turn(turn)
        if self.response is not None:
            events += self.response.spoke(text, self.mouth.encode(frame.pcm))
        elif self._asked is not None and frame.index - self._asked[1] >= NOTHING_SAID_FRAMES:
            events += self._answer_with_nothing()
        return events

    def _take_turn(self, turn: Turn) -> list[Event]:
        if turn is Turn.PERSONA_BEGAN:
            return self._begin()
        if turn is Turn.PERSONA_PAUSED:
            return self._end(COMPLETED)
        if turn is Turn.PERSONA_GAVE_WAY:
            return self._end(CANCELLED, "turn_detected")
        if self.settings.detector is None:  # then the client says when the user's turn is over
            return []
        return self._user_began() if turn is Turn.USER_BEGAN else self._user_ended()

    def _user_began(self) -> list[Event]:
        is_committed = self._committed is not None and self._index < self._committed[1]
        self._user_item = self._committed[0] if is_committed and self._committed else new_id("item")
        self._user_turns = [*self._user_turns, (self._index, self._user_item)][-MOST_TURNS:]
        start_ms = _ms(max(0, self._index - BEGIN_FRAMES))
        return [event("input_audio_buffer.speech_started", audio_start_ms=start_ms, item_id=self._user_item)]

    def _user_ended(self) -> list[Event]:
        item_id, self._user_item = self._user_item, None
        if item_id is None:
            return []
        stopped = event("input_audio_buffer.speech_stopped", audio_end_ms=_ms(self._index), item_id=item_id)
        is_committed = self._committed is not None and self._committed[0] == item_id
        return [stopped] if is_committed else [stopped, *self._commit(item_id)]

    def _commit(self, item_id: str) -> list[Event]:
        committed = event("input_audio_buffer.committed", previous_item_id=self.items.last_id, item_id=item_id)
        events = [committed, *self.items.add(_user_item(item_id))]
        early, self._early_words = self._early_words, []
        for utterance in early:
            events += self.user_said(utterance)
        return events

    # -- of the recogniser -----------------------------------------------------------------------

    def user_said(self, utterance: Utterance) -> list[Event]:
        """What the user said, for the turn in which it was said; words that took no turn have no item."""
        if not utterance.words:
            return []
        end_sec, begin_sec = utterance.words[-1].end_sec, utterance.words[0].start_sec
        turns = [item_id for start_frame, item_id in self._user_turns if start_frame * FRAME_SEC <= end_sec]
        if not turns:
            return []
        said = self.items.user_said(turns[-1], utterance.text)
        if said is None:
            self._early_words = [*self._early_words, utterance][-MOST_TURNS:]
            return []
        usage = {"type": "duration", "seconds": round(end_sec - begin_sec, 2)}
        kind = "conversation.item.input_audio_transcription.completed"
        return [event(kind, item_id=turns[-1], content_index=0, transcript=said, usage=usage)]

    # -- responses -------------------------------------------------------------------------------

    @property
    def _form(self) -> Event:
        return {"format": shown_format(self.settings.outgoing), "voice": self.voice}

    def _begin(self) -> list[Event]:
        metadata, self._asked = self._asked[0] if self._asked else None, None
        self.response = response = Response(self._form, metadata)
        return [response.created(), *response.began(self.items.add(response.item(), done=False))]

    def _end(self, status: str, reason: str | None = None) -> list[Event]:
        """End the response, if there is one: one that the client cancelled is over, though the persona may speak on."""
        response, self.response = self.response, None
        if response is None:
            return []
        item = response.item("completed" if status == COMPLETED else "incomplete")
        return response.ended(status, reason, self.items.finish(item, response.words))

    def _answer_with_nothing(self) -> list[Event]:
        assert self._asked is not None
        response = Response(self._form, self._asked[0])
        self._asked = None
        return [response.created(), response.done(COMPLETED, None, [])]

    # -- of the client ---------------------------------------------------------------------------

    def update(self, settings: SessionSettings) -> None:
        """Take new settings over; the formats count from now on."""
        if settings.incoming is not self.settings.incoming:
            self.ear = Ear(settings.incoming)
        if settings.outgoing is not self.settings.outgoing:
            self.mouth = Mouth(settings.outgoing)
        self.settings = settings

    def commit(self, frames_until_now: int) -> list[Event]:
        """The client says that the user's turn is over; ``frames_until_now``: of the sound that it has sent."""
        item_id = self._user_item or new_id("item")
        self._committed = item_id, frames_until_now
        return self._commit(item_id)

    def create_response(self, metadata: Event | None) -> list[Event]:
        """The model speaks when it sees fit; the next response carries the metadata. Lifts a cancellation, too."""
        if self.response is not None:
            code = "conversation_already_has_active_response"
            raise EventError(code, f"Conversation already has an active response in progress: {self.response.id}.")
        unanswered = [] if self._asked is None else self._answer_with_nothing()
        self._asked = metadata or {}, self._index
        return [*unanswered, *(self._begin() if self._turns.persona_speaks else [])]

    def cancel_response(self) -> list[Event]:
        """The rest of the persona's turn is not sent."""
        if self.response is None:
            raise EventError("response_cancel_not_active", "Cancellation failed: no active response found.")
        return self._end(CANCELLED, "client_cancelled")


def _user_item(item_id: str) -> Item:
    return {
        "id": item_id, "object": "realtime.item", "type": "message", "status": "completed", "role": "user",
        "content": [{"type": "input_audio", "transcript": None}],
    }  # fmt: skip


def _ms(frames: int) -> int:
    return round(frames * FRAME_SEC * 1000)
