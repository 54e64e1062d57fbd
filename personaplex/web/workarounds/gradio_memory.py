"""Gradio 5.50.0: events and sessions that it never forgets.

Bug: the queue keeps every event, with all that was typed, for its analytics as long as the server runs, and sums all
of them up after each one; finished asyncio tasks and the waiting lists of sessions stay as well.
"""

from __future__ import annotations

import os
import time
from typing import Any

FORGET_SEC, FORGET_AWAITED_SEC = 30.0, 300.0
MOST_SESSIONS = 1000
"""Of visitors; each keeps the last value of everything on its page, a tenth of a megabyte when it is empty."""

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
        queue.pending_messages_per_session.pop(call, None)
        _sessions(queue).pop(call, None)
    queue._asyncio_tasks = [task for task in queue._asyncio_tasks if not task.done()]
    return len(gone)


def _sessions(queue: Any) -> dict[str, Any]:
    return {} if queue.server_app is None else queue.server_app.state_holder.session_data
