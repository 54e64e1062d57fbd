"""What conversations are to be told, between the threads that bring it and the engine's."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from personaplex.errors import InputError
from personaplex.messages import OVER
from personaplex.serving.served_conversation import ServedConversation

MOST_TELLINGS = 8
"""Texts of one conversation that may wait."""


@dataclass(frozen=True, eq=False)
class Telling:
    """Something that a conversation is to be told."""

    served: ServedConversation
    text: str
    future: Future[int]  # how many tokens may be told still

    def answer(self, work: Callable[[], int]) -> Exception | None:
        """Do it, unless nobody waits for it any more, and pass on what came of it; returns its error."""
        if not self.future.set_running_or_notify_cancel():
            return None
        try:
            self.future.set_result(work())
        except Exception as error:
            self.future.set_exception(error)
            return error
        return None


class Tellings:
    """Texts in their order. The server's lock guards it, as it does the inboxes."""

    def __init__(self) -> None:
        self._waiting: list[Telling] = []

    def add(self, telling: Telling) -> None:
        """Raises InputError where the conversation is over or enough of its texts wait."""
        if telling.served.is_closed:
            raise InputError(OVER)
        if sum(other.served is telling.served for other in self._waiting) >= MOST_TELLINGS:
            raise InputError(f"{MOST_TELLINGS} texts wait to be told already; try again in a moment")
        self._waiting.append(telling)

    def take(self) -> Telling | None:
        """The next text of a conversation that can be told something now."""
        found = next((telling for telling in self._waiting if telling.served.can_step), None)
        if found is not None:
            self._waiting.remove(found)
        return found

    def close(self, served: ServedConversation) -> list[Telling]:
        """Nothing can be told to this conversation from here on; returns what waited."""
        served.is_closed = True
        left = [telling for telling in self._waiting if telling.served is served]
        self._waiting = [telling for telling in self._waiting if telling.served is not served]
        return left


def over() -> int:
    """What a text comes to that was not told in time."""
    raise InputError(OVER)
