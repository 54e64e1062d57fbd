"""A session's settings: what a client may set, what is told back, and what this model cannot do."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from personaplex.protocols.formats import FORMATS, PCM, Format
from personaplex.protocols.realtime.events import Event, EventError, new_id, object_of
from personaplex.protocols.turns import BEGIN_FRAMES, END_FRAMES, FRAME_SEC

DETECTORS: dict[str, Event] = {
    "server_vad": {
        "type": "server_vad", "threshold": 0.5, "prefix_padding_ms": round(BEGIN_FRAMES * FRAME_SEC * 1000),
        "silence_duration_ms": round(END_FRAMES * FRAME_SEC * 1000), "idle_timeout_ms": None,
        "create_response": True, "interrupt_response": True,
    },
    "semantic_vad": {
        "type": "semantic_vad", "eagerness": "auto", "create_response": True, "interrupt_response": True,
    },
}  # fmt: skip
"""As they work here, whatever a client wishes: the model itself decides when it speaks and when it gives way."""


@dataclass(frozen=True)
class SessionSettings:
    """Settings of a session; a new one takes the place of the old at each update."""

    model: str
    id: str = field(default_factory=lambda: new_id("sess"))
    instructions: str | None = None  # None: the default persona's
    voice: str | None = None
    incoming: Format = PCM
    outgoing: Format = PCM
    recogniser: str = ""  # what can write the user's words down here; "" for nothing
    transcribes: bool = False
    detector: str | None = "server_vad"  # None: the client says itself when the user's turn is over

    def updated(self, session: Event) -> SessionSettings:
        """With a client's `session` applied; raises EventError. What this model cannot do keeps its value."""
        if session.get("type", "realtime") != "realtime":
            raise EventError("invalid_value", "session.type must be realtime: there is no transcription here.", "type")
        audio = object_of(session, "audio")
        incoming, outgoing = object_of(audio, "input"), object_of(audio, "output")
        changed: dict[str, Any] = {}
        if session.get("instructions") is not None:
            changed["instructions"] = _text(session["instructions"], "session.instructions")
        voice = outgoing.get("voice") or session.get("voice")
        if voice is not None:
            changed["voice"] = _text(
                voice.get("id") if isinstance(voice, dict) else voice, "session.audio.output.voice"
            )
        if incoming.get("format"):
            changed["incoming"] = _format(incoming["format"], "session.audio.input.format")
        if outgoing.get("format"):
            changed["outgoing"] = _format(outgoing["format"], "session.audio.output.format")
        if "transcription" in incoming:
            changed["transcribes"] = bool(self.recogniser and incoming["transcription"] is not None)
        if "turn_detection" in incoming:
            changed["detector"] = _detector(incoming["turn_detection"])
        return replace(self, **changed)

    def shown(self, instructions: str, voice: str) -> Event:
        """The `session` of session.created and session.updated, with what is in force."""
        return {
            "type": "realtime", "object": "realtime.session", "id": self.id, "model": self.model,
            "output_modalities": ["audio"], "instructions": instructions, "tools": [], "tool_choice": "none",
            "max_output_tokens": "inf", "tracing": None, "prompt": None, "include": None, "truncation": "disabled",
            "audio": {
                "input": {
                    "format": shown_format(self.incoming),
                    "transcription": {"model": self.recogniser} if self.transcribes else None, "noise_reduction": None,
                    "turn_detection": None if self.detector is None else DETECTORS[self.detector],
                },
                "output": {"format": shown_format(self.outgoing), "voice": voice, "speed": 1.0},
            },
        }  # fmt: skip


def shown_format(form: Format) -> Event:
    return {"type": form.name} if form.law else {"type": form.name, "rate": form.rate_hz}


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise EventError("invalid_type", f"{name} must be a string.", name)
    return value


def _format(given: object, name: str) -> Format:
    known = FORMATS.get(str(given.get("type"))) if isinstance(given, dict) else None
    if known is None:
        raise EventError("invalid_value", f"{name}.type must be one of {', '.join(FORMATS)}.", name)
    assert isinstance(given, dict)
    if given.get("rate") not in (None, known.rate_hz):
        raise EventError("invalid_value", f"{name}.rate must be {known.rate_hz} for {known.name}.", f"{name}.rate")
    return known


def _detector(given: object) -> str | None:
    if given is None:
        return None
    kind = given.get("type", "server_vad") if isinstance(given, dict) else None
    if kind not in DETECTORS:
        name = "session.audio.input.turn_detection"
        raise EventError("invalid_value", f"{name} must be null, or of type {' or '.join(DETECTORS)}.", name)
    return str(kind)
