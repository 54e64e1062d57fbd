"""Gradio 5.50.0: events and sessions that it never forgets.

Bug: the queue keeps every event, with all that was typed, for its analytics as long as the server runs, and sums all
of them up after each one; finished asyncio tasks and the waiting lists of sessions stay as well.
"""

from __future__ import annotations

import os
import time
from typing import Any

FORGET_EVENTS_SEC = 300.0
MOST_SESSIONS = 1000
"""Of visitors; each keeps the last value of everything on its page, a tenth of a megabyte when it is empty."""

_SUMMARY_FREQUENCY = "GRADIO_ANALYTICS_CACHE_FREQUENCY"
_OPEN = ("queued", "processing")


def leave_events_unsummed() -> None:
    """Keep Gradio from tabulating all events so far after each one. To be called before ``gr.Blocks``."""
    os.environ.setdefault(_SUMMARY_FREQUENCY, str(10**9))


def forget_events(queue: Any, now: float | None = None) -> int:
    """Take events that ended some minutes ago out of Gradio's tables; returns how many went.

    Only on the event loop, which the tables belong to.
    """
    oldest = (time.time() if now is None else now) - FORGET_EVENTS_SEC
    awaited = set().union(*queue.pending_event_ids_session.values())
    gone = [
        name
        for name, told in queue.event_analytics.items()
        if told["status"] not in _OPEN and told["time"] < oldest and name not in awaited
    ]
    for name in gone:
        queue.event_analytics.pop(name)
        queue.event_ids_to_events.pop(name, None)
    for session in [session for session, waiting in queue.pending_event_ids_session.items() if not waiting]:
        queue.pending_event_ids_session.pop(session)
    queue._asyncio_tasks = [task for task in queue._asyncio_tasks if not task.done()]
    return len(gone)
