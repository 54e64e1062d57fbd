"""What is common to the events: identifiers, errors, and reading a client's JSON."""

from __future__ import annotations

import json
import secrets
from typing import Any

from personaplex.errors import InputError

Event = dict[str, Any]
Item = dict[str, Any]

MOST_PARTS = 20_000
"""Commas and brackets of a message. Sound is one long string; JSON of many small parts would stop the event loop."""


class EventError(InputError):
    """A client's event that cannot be used; told as an `error` event, after which the session goes on."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.param = code, param


def new_id(prefix: str) -> str:
    """`item_…`, as OpenAI's look."""
    return f"{prefix}_{secrets.token_hex(10)}"


def event(type: str, **fields: Any) -> Event:
    """A server event."""
    return {"type": type, "event_id": new_id("event"), **fields}


def error_event(
    code: str, message: str, *, param: str | None = None, event_id: str | None = None,
    kind: str = "invalid_request_error",
) -> Event:  # fmt: skip
    """``event_id``: of the client's event that caused it."""
    return event("error", error={"type": kind, "code": code, "message": message, "param": param, "event_id": event_id})


def read_event(text: str) -> Event:
    """A client's message as an object with a type; raises EventError."""
    if sum(map(text.count, ",[{")) > MOST_PARTS:
        raise EventError("invalid_json", f"The message has more than {MOST_PARTS} parts; send less at once.")
    try:
        read = json.loads(text)
    except (ValueError, RecursionError):
        raise EventError("invalid_json", "The message is not JSON.") from None
    if not isinstance(read, dict) or not isinstance(read.get("type"), str):
        raise EventError("invalid_event", "An event is a JSON object with a type.", "type")
    return read


def text_of(given: Event, name: str, default: str | None = None) -> str:
    """A field that must be a string; raises EventError for anything else, or where it is missing without a default."""
    value = given.get(name, default)
    if not isinstance(value, str):
        raise EventError("invalid_type", f"{name} must be a string.", name)
    return value


def object_of(given: Event, name: str) -> Event:
    """A field that must be an object, {} where it is missing or null."""
    value = given.get(name) or {}
    if not isinstance(value, dict):
        raise EventError("invalid_type", f"{name} must be an object.", name)
    return value
