"""Tracebacks in the log without what visitors said or typed."""

from __future__ import annotations

import logging
import traceback
from types import TracebackType

from personaplex.web.log_lines import all_handlers, one_line, tidy_log

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_TELLING = (OSError, MemoryError, RuntimeError, ImportError, FloatingPointError, AssertionError)
"""Errors whose messages are about the machine; those of others (ValueError, …) may repeat what a visitor sent."""


def place_of(error: BaseException | None) -> str:
    """Module and line at which an error was raised."""
    frame = error.__traceback__ if error is not None else None
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    if frame is None:
        return "an unknown place"
    return f"{frame.tb_frame.f_globals.get('__name__', '?')}:{frame.tb_lineno}"


class PrivateFormatter(logging.Formatter):
    """Names an error by its stack and class, with its message only where that is about the machine."""

    def __init__(self) -> None:
        super().__init__(FORMAT)

    def formatException(  # noqa: N802 - logging's own name
        self, ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
    ) -> str:
        error = ei[1]
        if error is None:
            return ""
        told = one_line(str(error)) if isinstance(error, _TELLING) else "(message left out)"
        return "".join(traceback.format_tb(error.__traceback__)) + f"{type(error).__name__}: {told}"


def log_to_stderr() -> None:
    """Log from INFO on, with chatty libraries from WARNING or ERROR on."""
    logging.basicConfig(level=logging.INFO, force=True)
    for chatty in ("httpx", "aioice"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("aiortc").setLevel(logging.ERROR)  # it warns, at length, whenever FastRTC ends a track
    keep_log_private()


def keep_log_private() -> None:
    """Give every handler the page's formatter and filter. Call it again once a library has set up more handlers."""
    handlers = all_handlers()
    for handler in handlers:
        if not isinstance(handler.formatter, PrivateFormatter):
            handler.setFormatter(PrivateFormatter())
    tidy_log(handlers)
