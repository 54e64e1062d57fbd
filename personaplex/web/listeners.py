"""Which callers still listen to the stream of events that brings their answer."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import parse_qs

from starlette.types import Scope

LISTEN_WITHIN_SEC = 30.0
"""A caller that has no stream open for so long, from its call on, is gone."""

_CALL = re.compile(r"/call/[^/]+/(?P<event>[^/]+)/?$")


def stream_of(scope: Scope) -> str | None:
    """The session whose event stream a request opens; None for any other request."""
    if scope["type"] != "http" or scope["method"] != "GET":
        return None
    path = scope["path"]
    if path.endswith("/queue/data"):
        return parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [None])[0]
    called = _CALL.search(path)
    return called["event"] if called else None


class Listeners:
    """Counts the open event streams of each session. May be read from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: Counter[str] = Counter()
        self._closed_at: dict[str, float] = {}

    @contextmanager
    def listening(self, session: str | None) -> Iterator[None]:
        """For as long as a session's stream is open; None: without one."""
        if session is None:
            yield
            return
        self._open[session] += 1
        try:
            yield
        finally:
            self._open[session] -= 1
            if self._open[session] <= 0:
                del self._open[session]
            self._closed_at[session] = self._clock()
            self._forget()

    def is_listening(self, session: str, asked_at: float) -> bool:
        """Whether a session listens, or did ``LISTEN_WITHIN_SEC`` ago; ``asked_at``: when it made its call."""
        if session in self._open:
            return True
        last = max(asked_at, self._closed_at.get(session, asked_at))
        return self._clock() - last < LISTEN_WITHIN_SEC

    def now(self) -> float:
        """The time that ``asked_at`` is measured in."""
        return self._clock()

    def _forget(self) -> None:
        oldest = self._clock() - 2 * LISTEN_WITHIN_SEC
        for session in [name for name, at in self._closed_at.items() if at < oldest]:
            del self._closed_at[session]
