"""The skeleton of every training run: rate schedule, checkpoints, resuming, and steps until the time is up.

A trainer says what a checkpoint holds (``state``, ``restore``) and, where the clock ends the run, what it reports
(``figures``); everything else about a run's files and time is here.
"""

from __future__ import annotations

import json
import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.codec import parallel
from training.stopwatch import Stopwatch

log = logging.getLogger(__name__)

CHECKPOINT = "last.pt"  # a run goes on from it
FINAL = "final.pt"
LOG = "log.jsonl"


def cosine(first: float, last: float, share: float) -> float:
    """From ``first`` at share 0 down to ``last`` at share 1, and ``last`` from there on."""
    return last + (first - last) * (0.5 * (1 + math.cos(math.pi * min(1.0, share))))


def warm_up(step: int, steps: int) -> float:
    """The share of the full rate in a linear warm-up of ``steps`` steps, the first of which is number 0."""
    return min(1.0, (step + 1) / steps)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def write_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint under another name first: a file that has its name is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.part")
    torch.save(state, partial)
    partial.replace(path)


def flat_gradients(parameters: Iterable[Tensor]) -> Tensor:
    """One row that holds the gradients of all parameters, [N + 1] float32; the last number is for the clock."""
    parameters = list(parameters)
    sizes = [parameter.numel() for parameter in parameters]
    row = torch.zeros(sum(sizes) + 1)
    for parameter, piece in zip(parameters, row[:-1].split(sizes), strict=True):
        parameter.grad = piece.view_as(parameter)
    return row


class Trainer(ABC):
    """A run with its files in ``folder``; only the first of several processes writes them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.step = folder, 0

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """All that is needed to go on: tensors and plain values."""

    @abstractmethod
    def restore(self, state: dict[str, Any]) -> None:
        """Take up what ``state`` returned, with its tensors on the CPU."""

    def save(self, name: str = CHECKPOINT) -> None:
        if parallel.rank() == 0:
            write_checkpoint(self.state(), self.folder / name)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint."""
        self.restore(torch.load(path, map_location="cpu", weights_only=True))
        log.info("going on after step %d", self.step)


class TimedTrainer(Trainer):
    """A run that lasts for a given time, in one process or in several that average their gradients."""

    def __init__(self, folder: Path, parameters: Iterable[Tensor]) -> None:
        super().__init__(folder)
        self.gradients = flat_gradients(parameters)
        self.elapsed_sec = 0.0
        self._watch: Stopwatch | None = None  # not running until `train_for`

    @abstractmethod
    def figures(self) -> dict[str, Any]:
        """Figures of the latest steps to report, beside their number and the time."""

    def average_gradients(self) -> None:
        """Average the gradients over the processes; the first one's clock becomes the time of all.

        So all end a phase, and the run, after the same step.
        """
        if self._watch is not None:
            self.elapsed_sec = self._watch.lap()
        if parallel.world() > 1:
            self.gradients[-1] = self.elapsed_sec * parallel.world() if parallel.rank() == 0 else 0.0
            parallel.sum_(self.gradients).div_(parallel.world())
            self.elapsed_sec = float(self.gradients[-1])

    def train_for(
        self,
        minutes: float,
        one_step: Callable[[], object],
        *,
        log_steps: int,
        checkpoint_sec: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Call ``one_step``, which averages gradients and counts ``step`` up, until the time is up.

        clock: in seconds, what ``minutes`` are counted by; ``time.process_time`` for the process's own work.
        """
        self._watch, saved_sec = Stopwatch(self.elapsed_sec, clock), self.elapsed_sec
        while self.elapsed_sec < 60 * minutes:
            one_step()
            if self.step % log_steps == 0:
                self.report()
            if self.elapsed_sec - saved_sec > checkpoint_sec:
                saved_sec = self.elapsed_sec
                self.save()

    def finish(self) -> None:
        """Save the final state, also as the checkpoint from which a longer run resumes."""
        self.save(CHECKPOINT)
        self.save(FINAL)

    def report(self) -> None:
        """One JSON line, logged and added to the run's log."""
        if parallel.rank() > 0:
            return
        line = json.dumps({"step": self.step, "elapsed_sec": round(self.elapsed_sec), **self.figures()})
        log.info(line)
        with open(self.folder / LOG, "a", encoding="utf-8") as file:
            file.write(line + "\n")
