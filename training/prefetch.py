"""Batches made ahead in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

Made = TypeVar("Made")


def prefetched(make: Callable[[], Made], depth: int = 4) -> Iterator[Made]:
    """Results of `make`, up to `depth` of them made ahead; its errors are raised here."""
    ready: queue.Queue = queue.Queue(maxsize=depth)

    def fill() -> None:
        while True:
            try:
                ready.put((make(), None))
            except BaseException as error:  # handed over to whoever waits for the batch
                ready.put((None, error))
                return

    threading.Thread(target=fill, daemon=True).start()
    while True:
        made, error = ready.get()
        if error is not None:
            raise error
        yield made
