"""Gradio 5.50.0: events and sessions that it never forgets.

Bug: the queue keeps every event, with all that was typed, for its analytics as long as the server runs, and sums all
of them up after each one; finished asyncio tasks and the waiting lists of sessions stay as well. The state of a session
stays until as many newer ones have come as it holds; a visit costs half a megabyte.
"""

from __future__ import annotations

import os
import time
from typing import Any

FORGET_SEC, FORGET_AWAITED_SEC = 30.0, 300.0
MOST_SESSIONS = 1000
"""Whose pages may be open; each keeps the last value of everything on its page."""

_SUMMARY_FREQUENCY = "GRADIO_ANALYTICS_CACHE_FREQUENCY"
_OPEN = ("queued", "processing")
_OVER_AT = "over_at"


def leave_events_unsummed() -> None:
    """Keep Gradio from tabulating all events so far after each one. To be called before ``gr.Blocks``."""
    os.environ.setdefault(_SUMMARY_FREQUENCY, str(10**9))


def forget_events(queue: Any, now: float | None = None) -> int:
    """Take events that are over out of Gradio's tables, by time alone; returns how many went.

    To be called again and again, on the event loop that the tables belong to: an event goes ``FORGET_SEC`` after it was
    first seen to be over, one whose answer nobody fetched ``FORGET_AWAITED_SEC`` after.
    """
    now = time.monotonic() if now is None else now
    awaited = set().union(*queue.pending_event_ids_session.values())
    gone = set()
    for name, told in queue.event_analytics.items():
        if told["status"] not in _OPEN:
            over_sec = now - told.setdefault(_OVER_AT, now)
            if over_sec > (FORGET_AWAITED_SEC if name in awaited else FORGET_SEC):
                gone.add(name)
    for name in gone:
        queue.event_analytics.pop(name)
        queue.event_ids_to_events.pop(name, None)
    for session, waiting in list(queue.pending_event_ids_session.items()):
        waiting -= gone
        if not waiting:
            queue.pending_event_ids_session.pop(session)
    for call in gone:  # Gradio makes a session of the same name for each call of a script
        _forget_session(queue, call)
    queue._asyncio_tasks = [task for task in queue._asyncio_tasks if not task.done()]
    return len(gone)


class SilentSessions:
    """Forgets the sessions of pages that have told nothing for ``silent_sec``; one that comes again begins anew."""

    def __init__(self, silent_sec: float) -> None:
        self._silent_sec = silent_sec
        self._used: dict[str, tuple[Any, float]] = {}  # Gradio's time on the wall, and ours when it was first seen

    def forget(self, queue: Any, now: float | None = None) -> int:
        """To be called again and again, on the event loop; returns how many went."""
        if queue.server_app is None:
            return 0
        now = time.monotonic() if now is None else now
        for name, at in list(queue.server_app.state_holder.time_last_used.items()):
            if name not in self._used or self._used[name][0] != at:
                self._used[name] = at, now
        gone = [name for name, (_, since) in self._used.items() if now - since > self._silent_sec]
        for name in gone:
            del self._used[name]
            queue.pending_event_ids_session.pop(name, None)  # nobody will fetch them: they go as soon as others
            _forget_session(queue, name)
        return len(gone)


def _forget_session(queue: Any, name: str) -> None:
    queue.pending_messages_per_session.pop(name, None)
    if queue.server_app is not None:
        holder = queue.server_app.state_holder
        with holder.lock:
            holder.session_data.pop(name, None)
            holder.time_last_used.pop(name, None)
