"""What is kept of a conversation, and for how long.

While someone talks, both voices and the words are in memory. Files are made only afterwards, in a
folder of that visit, and the folder is deleted some minutes after the page was closed.
"""

from __future__ import annotations

import filecmp
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Visit:
    """What one visitor left here, by the tab of the page it belongs to."""

    folder: Path
    seen_at: float
    uploads: set[Path] = field(default_factory=set)
    kept: dict[str, Any] = field(default_factory=dict)  # the newest conversation of each tab, in memory


class Visits:
    """What is kept for visitors: deleted, with their folder, when their page has not been heard of for long.

    A page tells that it is there every so often (``seen``). The end of its connection says little: a laptop that slept
    and a telephone that changed networks go on afterwards.

    ``silent_sec``: after so long without a word from a page its visitor has left; a telephone's page in the background
    says none. ``root`` must be a folder of this program alone; copies of the files in ``everyones`` stay. May be used
    from any thread.
    """

    def __init__(
        self,
        root: Path,
        *,
        silent_sec: float = 600.0,
        everyones: Iterable[Path] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root = root
        self._everyones = tuple(everyones)
        self._silent_sec = silent_sec
        self._clock = clock
        self._visits: dict[str, Visit] = {}
        self._sweeper: threading.Timer | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._visits)

    def seen(self, visitor: str) -> None:
        """Their page is still there; of no consequence for one who left nothing."""
        with self._lock:
            if visitor in self._visits:
                self._visits[visitor].seen_at = self._clock()

    def new_folder(self, visitor: str, tab: str) -> Path:
        """An empty folder that nobody can guess, for one conversation; the tab's one before is deleted."""
        folder = self._of(visitor).folder / tab
        shutil.rmtree(folder, ignore_errors=True)
        folder = folder / secrets.token_hex(8)
        folder.mkdir(parents=True)
        return folder

    def own_upload(self, visitor: str, path: str | Path) -> None:
        """A file the visitor sent: it goes when they go. Only files beside ``root`` are taken."""
        path = Path(path).resolve()
        if path.is_relative_to(self._root.resolve().parent) and not self._is_everyones(path):
            self._of(visitor).uploads.add(path)

    def _is_everyones(self, path: Path) -> bool:
        return path.is_file() and any(filecmp.cmp(path, other, shallow=False) for other in self._everyones)

    def keep(self, visitor: str, tab: str, conversation: Any) -> None:
        """Hold a conversation in memory until it is taken, replaced or the visitor leaves."""
        self._of(visitor).kept[tab] = conversation

    def take(self, visitor: str, tab: str) -> Any:
        """The tab's conversation that is kept, once; None if there is none."""
        visit = self._visits.get(visitor)
        return None if visit is None else visit.kept.pop(tab, None)

    def end(self, visitor: str) -> None:
        """Delete everything of one visitor; of no consequence for an unknown one."""
        with self._lock:
            visit = self._visits.pop(visitor, None)
            # The same file sent by two visitors is one file here: it goes with the last of them.
            shared = set().union(*(other.uploads for other in self._visits.values()))
        if visit is not None:
            shutil.rmtree(visit.folder, ignore_errors=True)
            for path in visit.uploads - shared:
                path.unlink(missing_ok=True)

    def end_all(self) -> None:
        for visitor in list(self._visits):
            self.end(visitor)

    def sweep(self) -> None:
        """Delete what visitors left of whom nothing was heard for ``silent_sec``."""
        oldest = self._clock() - self._silent_sec
        for visitor in [name for name, visit in list(self._visits.items()) if visit.seen_at < oldest]:
            self.end(visitor)

    def _of(self, visitor: str) -> Visit:
        with self._lock:
            if visitor not in self._visits:
                self._visits[visitor] = Visit(self._root / secrets.token_hex(16), self._clock())
                self._sweep_later()
            self._visits[visitor].seen_at = self._clock()
            return self._visits[visitor]

    def _sweep_later(self) -> None:
        """With the lock held. Looks again and again, as long as anybody left something."""
        if self._sweeper is None:
            self._sweeper = threading.Timer(self._silent_sec / 4, self._sweep_and_go_on)
            self._sweeper.daemon = True
            self._sweeper.start()

    def _sweep_and_go_on(self) -> None:
        self.sweep()
        with self._lock:
            self._sweeper = None
            if self._visits:
                self._sweep_later()
