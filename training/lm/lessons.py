"""The curriculum: listening, then copying from the prompt, then whole dialogues with listening between."""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from training.lm.data import BatchMaker

DRILLS_ALONE = 3  # times as many drills in a step when there is nothing else
ALONE_LISTENING_SHARE = 0.25  # then most sentences are recited, and what is copied is dense
LISTENING_EVERY = 4  # of the later steps: what is heard must not be learned by heart
_AHEAD = 4  # batches a worker makes before they are asked for


@dataclass(frozen=True)
class Curriculum:
    """Minutes of training for each kind of lesson before the dialogues."""

    listening_minutes: float = 4.0
    drill_minutes: float = 4.0


class Lessons(IterableDataset):
    """Endless batches for one step each; every worker makes its own."""

    def __init__(self, maker: Callable[[int], BatchMaker], curriculum: Curriculum) -> None:
        """`maker` gets the worker's number."""
        self._maker, self._curriculum = maker, curriculum
        self._elapsed_sec = multiprocessing.Value("d", 0.0)

    @property
    def elapsed_sec(self) -> float:
        """Seconds trained so far, set by the trainer; the curriculum follows them."""
        return self._elapsed_sec.value

    @elapsed_sec.setter
    def elapsed_sec(self, value: float) -> None:
        self._elapsed_sec.value = value

    def __iter__(self) -> Iterator[tuple]:
        worker = get_worker_info()
        maker = self._maker(worker.id if worker else 0)
        for number in itertools.count():
            yield self._lesson(maker, number)

    def _lesson(self, maker: BatchMaker, number: int) -> tuple:
        minutes, curriculum = self.elapsed_sec / 60, self._curriculum
        if minutes < curriculum.listening_minutes or number % LISTENING_EVERY == LISTENING_EVERY - 1:
            return maker.make_listening()
        if minutes < curriculum.listening_minutes + curriculum.drill_minutes:
            return (maker.make_drill(DRILLS_ALONE, ALONE_LISTENING_SHARE),)
        return maker.make(), maker.make_recital(), maker.make_drill()

    def ahead(self, workers: int) -> Iterator[tuple]:
        """Made by `workers` processes while others are trained on."""
        # Forked, so that the recordings are shared; a process that was itself spawned would spawn, and copy them.
        fork = multiprocessing.get_context("fork")
        loader = DataLoader(
            self, batch_size=None, num_workers=workers, prefetch_factor=_AHEAD, multiprocessing_context=fork
        )
        return iter(loader)
