"""Notices a connection whose other side is gone: a closed laptop or a killed browser says nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

DEAD_AFTER_SEC = 4.0
"""A muted microphone still sends packets: none for so long means that the other side is gone."""
LOOK_EVERY_SEC = 1.0
MAX_LOOK_SEC = 1.5


class Watchdog:
    """Told of every sound that arrives; ``until_dead`` returns when none did for DEAD_AFTER_SEC."""

    def __init__(self, clock: Callable[[], float]):
        self._clock = clock
        self._heard_at = clock()

    def heard(self) -> None:
        self._heard_at = self._clock()

    async def until_dead(self, is_over: Callable[[], bool], look: Callable[[], Awaitable[None]]) -> None:
        """Calls ``look`` every LOOK_EVERY_SEC; also returns DEAD_AFTER_SEC after ``is_over``.

        A page closes the connection when it is told the end; other clients may not.
        """
        silent_sec, over_sec = 0.0, 0.0
        while silent_sec < DEAD_AFTER_SEC and over_sec < DEAD_AFTER_SEC:
            began, heard_at = self._clock(), self._heard_at
            await asyncio.sleep(LOOK_EVERY_SEC)
            # Time in which this event loop itself stood still says nothing about the other side.
            passed = min(self._clock() - began, MAX_LOOK_SEC)
            silent_sec = silent_sec + passed if heard_at == self._heard_at else 0.0
            over_sec = over_sec + passed if is_over() else 0.0
            await look()
