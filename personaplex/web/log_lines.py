"""Log lines that visitors can neither forge nor multiply."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable

MINUTE_SEC = 60.0
MOST_A_MINUTE = 60
MOST_TRACEBACKS_A_MINUTE = 5
MOST_CHARS = 2000
"""Of a message; a traceback comes on top."""

_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}
_ESCAPES |= {0x2028: "\\u2028", 0x2029: "\\u2029", ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t"}


class TidyLines(logging.Filter):
    """Makes every message one line, its control characters escaped, and bounds how often each place in the code writes.

    A handler's filter, since lines of Gradio, FastRTC and uvicorn quote visitors, too.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()
        self._began_at = clock()
        self._written: dict[tuple[str, int], int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        most = MOST_TRACEBACKS_A_MINUTE if record.exc_info else MOST_A_MINUTE
        written = self._count((record.pathname, record.lineno))
        if written > most:
            return False
        given = record.getMessage()
        message = one_line(given)
        if written == most:
            message += " (more of these within a minute are left out)"
        if message != given:
            record.msg, record.args = message, None
        return True

    def _count(self, place: tuple[str, int]) -> int:
        """Lines of a place in the present minute, this one included."""
        with self._lock:
            if self._clock() - self._began_at >= MINUTE_SEC:
                self._began_at = self._clock()
                self._written.clear()
            self._written[place] = self._written.get(place, 0) + 1
            return self._written[place]


def one_line(message: str) -> str:
    """The message with control characters escaped, cut to MOST_CHARS."""
    if len(message) > MOST_CHARS:
        message = f"{message[:MOST_CHARS]} … ({len(message)} characters)"
    return message.translate(_ESCAPES)


def all_handlers() -> set[logging.Handler]:
    """The handlers of every logger there is."""
    loggers = [logging.root, *map(logging.getLogger, list(logging.root.manager.loggerDict))]
    return {handler for logger in loggers for handler in logger.handlers}


def tidy_log(handlers: Iterable[logging.Handler] | None = None) -> None:
    """Add the filter to the handlers given, or to all that are set up. Call it again once a library has set up more."""
    for handler in all_handlers() if handlers is None else handlers:
        if not any(isinstance(each, TidyLines) for each in handler.filters):
            handler.addFilter(TidyLines())
