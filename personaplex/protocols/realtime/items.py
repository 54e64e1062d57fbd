"""The items of a conversation: in their order, retrieved, cut short and deleted as clients ask."""

from __future__ import annotations

from personaplex.protocols.realtime.events import Event, EventError, Item, event, new_id, object_of, text_of

MOST_ITEMS = 500
"""The newest are kept: a conversation of ten minutes has a few dozen."""
MOST_ITEM_CHARS = 20_000
"""Of what a client puts into an item; the rest is forgotten."""
_CLIENT_TYPES = ("message", "function_call", "function_call_output")
_ROLES = ("user", "system", "assistant")
_PART_FIELDS = {
    "input_text": "text", "input_audio": "transcript", "output_text": "text", "output_audio": "transcript",
}  # fmt: skip


class Items:
    """The conversation's items by their ids."""

    def __init__(self) -> None:
        self._items: dict[str, Item] = {}
        self._heard_words: dict[str, list[tuple[int, str]]] = {}  # of the persona's: when each piece begins, in ms

    @property
    def last_id(self) -> str | None:
        return next(reversed(self._items), None)

    def add(self, item: Item, *, done: bool = True) -> list[Event]:
        """Put an item at the end, and say so; ``done=False`` for one that is still being spoken."""
        previous = self.last_id
        self._items[item["id"]] = item
        while len(self._items) > MOST_ITEMS:
            oldest = next(iter(self._items))
            del self._items[oldest]
            self._heard_words.pop(oldest, None)
        added = event("conversation.item.added", previous_item_id=previous, item=dict(item))
        return [added, self.done_event(item, previous)] if done else [added]

    def finish(self, item: Item, words: list[tuple[int, str]]) -> Event:
        """A spoken item is whole. ``words``: (ms since its sound began, piece of the transcript)."""
        keys = list(self._items)
        at = keys.index(item["id"]) if item["id"] in self._items else 0
        if item["id"] in self._items:
            self._items[item["id"]] = item
            self._heard_words[item["id"]] = words
        return self.done_event(item, keys[at - 1] if at else None)

    @staticmethod
    def done_event(item: Item, previous: str | None) -> Event:
        return event("conversation.item.done", previous_item_id=previous, item=dict(item))

    def create(self, given: Event) -> tuple[Item, list[Event]]:
        """`conversation.item.create`; → the item, and what to tell."""
        item = _clean(object_of(given, "item"))
        if item["id"] in self._items:
            raise EventError("item_already_exists", "There is an item of this id already.", "item.id")
        return item, self.add(item)

    def user_said(self, item_id: str, text: str) -> str | None:
        """Add to what the user said in an item; → all of it, None where the item is gone."""
        item = self._items.get(item_id)
        if item is None or not item["content"]:
            return None
        said = " ".join(filter(None, (item["content"][0].get("transcript"), text)))[:MOST_ITEM_CHARS]
        self._items[item_id] = {**item, "content": [{**item["content"][0], "transcript": said}]}
        return said

    def retrieve(self, given: Event) -> Event:
        return event("conversation.item.retrieved", item=dict(self._find(given)))

    def delete(self, given: Event) -> Event:
        item = self._find(given)
        del self._items[item["id"]]
        self._heard_words.pop(item["id"], None)
        return event("conversation.item.deleted", item_id=item["id"])

    def truncate(self, given: Event) -> Event:
        """Keep of the transcript what was heard: the pieces that began before ``audio_end_ms``."""
        item = self._find(given)
        end_ms, index = given.get("audio_end_ms"), given.get("content_index", 0)
        if isinstance(end_ms, bool) or not isinstance(end_ms, (int, float)) or end_ms < 0:
            raise EventError("invalid_value", "audio_end_ms must be a number of 0 or more.", "audio_end_ms")
        if item.get("role") != "assistant" or index != 0:
            raise EventError("invalid_value", "Only what the persona said can be cut short, its part 0.", "item_id")
        words = self._heard_words.get(item["id"])
        if words is not None and item["content"]:
            words = [(at_ms, piece) for at_ms, piece in words if at_ms < end_ms]
            self._heard_words[item["id"]] = words
            part = {**item["content"][0], "transcript": "".join(piece for _, piece in words)}
            self._items[item["id"]] = {**item, "content": [part]}
        return event("conversation.item.truncated", item_id=item["id"], content_index=0, audio_end_ms=round(end_ms))

    def _find(self, given: Event) -> Item:
        item = self._items.get(text_of(given, "item_id"))
        if item is None:
            raise EventError("item_not_found", "There is no item of this id.", "item_id")
        return item


def _clean(given: Event) -> Item:
    """A client's item with the fields that are known of its type, bounded; raises EventError."""
    kind = given.get("type")
    if kind not in _CLIENT_TYPES:
        raise EventError("invalid_value", f"item.type must be one of {', '.join(_CLIENT_TYPES)}.", "item.type")
    item: Item = {
        "id": text_of(given, "id", new_id("item"))[:64], "object": "realtime.item", "type": kind, "status": "completed",
    }  # fmt: skip
    if kind != "message":
        names = ("name", "arguments", "call_id") if kind == "function_call" else ("call_id", "output")
        return {**item, **{name: text_of(given, name, "")[:MOST_ITEM_CHARS] for name in names}}
    if given.get("role") not in _ROLES:
        raise EventError("invalid_value", f"item.role must be one of {', '.join(_ROLES)}.", "item.role")
    parts = given.get("content") or []
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise EventError("invalid_type", "item.content must be a list of objects.", "item.content")
    return {**item, "role": given["role"], "content": [_part(part) for part in parts[:100]]}


def _part(part: Event) -> Event:
    """Text of a part; sound and pictures are left out, as nothing here reads them."""
    field = _PART_FIELDS.get(str(part.get("type")))
    if field is None:
        raise EventError("invalid_value", f"A part's type must be one of {', '.join(_PART_FIELDS)}.", "item.content")
    text = part.get(field)
    return {"type": part["type"], field: text[:MOST_ITEM_CHARS] if isinstance(text, str) else None}


def text_in(item: Item) -> str:
    """The written text of a message."""
    return " ".join(part["text"] for part in item.get("content", ()) if part.get("text"))
