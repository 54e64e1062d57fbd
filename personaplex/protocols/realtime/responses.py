"""A response: one turn of the persona, from its first sound to its pause, as events."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field

from personaplex.protocols.feeder import FRAME_SEC
from personaplex.protocols.realtime.events import Event, Item, event, new_id

COMPLETED, CANCELLED, IN_PROGRESS = "completed", "cancelled", "in_progress"
CONVERSATION_ID = "conv_1"


@dataclass
class Response:
    """One that is being spoken. ``form``: `format` and `voice` of its sound."""

    form: Event
    metadata: Event | None
    id: str = field(default_factory=lambda: new_id("resp"))
    item_id: str = field(default_factory=lambda: new_id("item"))
    frames: int = 0
    words: list[tuple[int, str]] = field(default_factory=list)
    """(ms since its sound began, piece of text)."""

    @property
    def transcript(self) -> str:
        return "".join(piece for _, piece in self.words)

    def item(self, status: str = IN_PROGRESS) -> Item:
        spoken = [] if status == IN_PROGRESS else [{"type": "output_audio", "transcript": self.transcript}]
        return {
            "id": self.item_id, "object": "realtime.item", "type": "message", "status": status, "role": "assistant",
            "content": spoken,
        }  # fmt: skip

    # -- events ----------------------------------------------------------------------------------

    def created(self) -> Event:
        return event("response.created", response=self._shown(IN_PROGRESS))

    def began(self, added: list[Event]) -> list[Event]:
        """Its item and its part; ``added``: that the item belongs to the conversation."""
        return [
            event("response.output_item.added", response_id=self.id, output_index=0, item=self.item()),
            *added,
            event("response.content_part.added", **self._at, part={"type": "audio", "transcript": ""}),
        ]

    def spoke(self, text: str, sound: bytes) -> list[Event]:
        """A frame: words first, as they may belong to sound that comes with it. Word times are in seconds, our own."""
        events = []
        at_ms = round(self.frames * FRAME_SEC * 1000)
        self.frames += 1
        piece = text if self.words else text.lstrip()
        if piece:
            self.words.append((at_ms, piece))
            kind = "response.output_audio_transcript.delta"
            events.append(event(kind, **self._at, delta=piece, start_time=at_ms / 1000))
        delta = base64.b64encode(sound).decode()
        return [*events, event("response.output_audio.delta", **self._at, delta=delta)]

    def ended(self, status: str, reason: str | None, item_done: Event) -> list[Event]:
        """``item_done``: that the item is whole."""
        item = item_done["item"]
        return [
            event("response.output_audio.done", **self._at),
            event("response.output_audio_transcript.done", **self._at, transcript=self.transcript),
            event("response.content_part.done", **self._at, part={"type": "audio", "transcript": self.transcript}),
            item_done,
            event("response.output_item.done", response_id=self.id, output_index=0, item=item),
            self.done(status, reason, [item]),
        ]

    def done(self, status: str, reason: str | None, output: list[Item]) -> Event:
        return event("response.done", response=self._shown(status, reason, output, self._usage()))

    @property
    def _at(self) -> Event:
        return {"response_id": self.id, "item_id": self.item_id, "output_index": 0, "content_index": 0}

    def _usage(self) -> Event:
        """One token of text and of sound a frame, on either side; nothing is charged for them."""
        inward = {"text_tokens": 0, "audio_tokens": self.frames, "image_tokens": 0, "cached_tokens": 0}
        return {
            "total_tokens": 2 * self.frames, "input_tokens": self.frames, "output_tokens": self.frames,
            "input_token_details": {
                **inward, "cached_tokens_details": {"text_tokens": 0, "audio_tokens": 0, "image_tokens": 0},
            },
            "output_token_details": {"text_tokens": 0, "audio_tokens": self.frames},
        }  # fmt: skip

    def _shown(
        self, status: str, reason: str | None = None, output: list[Item] | None = None, usage: Event | None = None
    ) -> Event:
        return {
            "object": "realtime.response", "id": self.id, "status": status,
            "status_details": None if reason is None else {"type": status, "reason": reason},
            "output": output or [], "conversation_id": CONVERSATION_ID, "output_modalities": ["audio"],
            "max_output_tokens": "inf", "usage": usage, "metadata": self.metadata, "audio": {"output": self.form},
        }  # fmt: skip
