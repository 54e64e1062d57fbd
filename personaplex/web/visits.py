"""Data kept of a conversation, and for how long.

During a conversation both voices and the words are in memory. Files are written afterwards, into a folder of that
visit, which is deleted some minutes after the page was closed.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

INCOMING = "incoming"
"""Folder of uploads that are still being received."""


@dataclass
class Visit:
    """The data of one visitor."""

    folder: Path
    seen_at: float
    uploads: set[Path] = field(default_factory=set)
    kept: dict[str, Any] = field(default_factory=dict)  # the newest conversation of each tab, in memory


class Visits:
    """Visitors' data: deleted once their page has been silent for ``silent_sec``. May be used from any thread.

    A page reports its presence every so often (``seen``). The end of its connection means little: a laptop that slept
    and a phone that changed networks go on afterwards.

    ``root``: a folder of this run alone; uploads lie in it too. ``uploaded``: the paths that the upload route wrote,
    which it adds to; no other file can be owned, so no visitor deletes what ships with the program.
    """

    def __init__(
        self,
        root: Path,
        *,
        uploaded: set[str] | None = None,
        silent_sec: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.root = root.resolve()
        self._uploaded = set() if uploaded is None else uploaded
        self._silent_sec = silent_sec
        self._clock = clock
        self._visits: dict[str, Visit] = {}
        self._undeleted: set[Path] = set()  # in use when they were to go, as on Windows
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._visits)

    def seen(self, visitor: str) -> None:
        """Their page is still open; ignored for a visitor who left nothing."""
        with self._lock:
            if visitor in self._visits:
                self._visits[visitor].seen_at = self._clock()

    def new_folder(self, visitor: str, tab: str) -> Path:
        """An empty folder with an unguessable name for one conversation; the tab's previous one is deleted."""
        visit = self._of(visitor).folder
        shutil.rmtree(visit / tab, ignore_errors=True)
        folder = visit / tab / secrets.token_hex(8)
        for level in (self.root, visit.parent, visit, visit / tab, folder):  # ``parents=True`` would ignore the mode
            level.mkdir(mode=0o700, exist_ok=True)
        return folder

    def own_upload(self, visitor: str, path: str | Path) -> None:
        """Note that a visitor sent this file, so that it is deleted with their visit.

        Ignores whatever is not a regular file that came through the upload route: folders, files elsewhere, samples
        that ship with the program.
        """
        resolved = Path(path).resolve()
        if str(path) in self._uploaded and resolved.is_file() and self.root in resolved.parents:
            self._of(visitor).uploads.add(resolved)

    def keep(self, visitor: str, tab: str, conversation: Any) -> None:
        """Hold a conversation in memory until it is taken, replaced or the visitor leaves."""
        self._of(visitor).kept[tab] = conversation

    def take(self, visitor: str, tab: str) -> Any:
        """Remove and return the tab's conversation; None if there is none."""
        visit = self._visits.get(visitor)
        return None if visit is None else visit.kept.pop(tab, None)

    def end(self, visitor: str) -> None:
        """Delete everything of one visitor; ignored for an unknown one. Never raises for a file that resists."""
        with self._lock:
            visit = self._visits.pop(visitor, None)
            shared = set().union(*(other.uploads for other in self._visits.values()))
        if visit is None:
            return
        shutil.rmtree(visit.folder, ignore_errors=True)
        if visit.folder.exists():
            self._undeleted.add(visit.folder)
        for path in visit.uploads - shared:
            self._delete(path)

    def end_all(self) -> None:
        """Delete everything of all visitors."""
        for visitor in list(self._visits):
            self.end(visitor)

    def sweep(self) -> None:
        """Delete the data of silent visitors, uploads that nobody claimed, and uploads that broke off."""
        oldest = self._clock() - self._silent_sec
        for visitor in [name for name, visit in list(self._visits.items()) if visit.seen_at < oldest]:
            self.end(visitor)
        for path in list(self._undeleted):
            self._undeleted.discard(path)
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                self._delete(path)
        with self._lock:
            owned = set().union(*(visit.uploads for visit in self._visits.values()))
        written_before = time.time() - self._silent_sec
        candidates = [Path(name) for name in self._uploaded.copy()] + list((self.root / INCOMING).glob("*"))
        for path in candidates:
            if path.resolve() not in owned and _is_older(path, written_before):
                self._delete(path)

    def _of(self, visitor: str) -> Visit:
        with self._lock:
            if visitor not in self._visits:
                self._visits[visitor] = Visit(self.root / "visits" / secrets.token_hex(16), self._clock())
            self._visits[visitor].seen_at = self._clock()
            return self._visits[visitor]

    def _delete(self, path: Path) -> None:
        """A file and its folder, if that is empty then; one that resists is tried again at the next sweep."""
        try:
            path.unlink(missing_ok=True)
        except OSError as error:  # its name may be a visitor's words
            log.warning("a visitor's file could not be deleted yet: %s", type(error).__name__)
            self._undeleted.add(path)
            return
        self._uploaded.discard(str(path))
        if path.parent not in (self.root, self.root / INCOMING):
            try:
                path.parent.rmdir()
            except OSError:
                log.debug("the folder of an upload is not empty")


def _is_older(path: Path, than: float) -> bool:
    """Whether a file was last written before ``than`` (seconds since 1970); one that is gone counts as older."""
    try:
        return path.stat().st_mtime < than
    except OSError:
        return True
