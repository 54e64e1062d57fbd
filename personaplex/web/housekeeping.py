"""Deletes by time what visitors and scripts leave behind; runs as long as the page's server does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import gradio as gr

from personaplex.web.log_format import place_of
from personaplex.web.visits import Visits
from personaplex.web.workarounds.gradio_memory import SilentSessions, forget_events

log = logging.getLogger(__name__)

MOST_SEC_BETWEEN = 15.0


def housekeeping(blocks: gr.Blocks, visits: Visits, keep_sec: float) -> Callable[[Any], AbstractAsyncContextManager]:
    """A lifespan handler for Gradio's server; ``keep_sec``: how long visitors' data are kept."""
    interval_sec = min(MOST_SEC_BETWEEN, keep_sec / 4)
    sessions = SilentSessions(keep_sec)  # as long as a silent page's data

    async def clean() -> None:
        while True:
            await asyncio.sleep(interval_sec)
            try:  # whatever fails in one round, the next one comes
                forget_events(blocks._queue)
                sessions.forget(blocks._queue)
                await asyncio.to_thread(visits.sweep)
            except Exception as error:
                log.warning("cleaning up failed: %s at %s", type(error).__name__, place_of(error))

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        task = asyncio.create_task(clean())
        try:
            yield
        finally:
            task.cancel()

    return lifespan
