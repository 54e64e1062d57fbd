"""What is kept of a conversation, and for how long.

While someone talks, both voices and the words are in memory. Files are made only afterwards, in a
folder of that visit, and the folder is deleted when the visit ends.
"""

from __future__ import annotations

import filecmp
import logging
import re
import secrets
import shutil
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from personaplex.audio import SAMPLE_RATE_HZ, write_stereo_wav, write_wav
from personaplex.errors import OutputError
from personaplex.files import write_atomically, write_text
from personaplex.text import Transcript
from personaplex.timeline import timeline_of, timeline_png

log = logging.getLogger(__name__)


# ---------------------------------------------------------------------------------- as files


@dataclass(frozen=True)
class Exports:
    """The files made of a conversation; those of the sound are None where none was kept."""

    transcript_text: Path
    transcript_json: Path
    transcript_webvtt: Path
    answer: Path | None = None  # the persona alone
    stereo: Path | None = None  # agent left, user right
    picture: Path | None = None  # who spoke when, PNG

    @property
    def transcripts(self) -> tuple[Path, Path, Path]:
        return self.transcript_text, self.transcript_json, self.transcript_webvtt


def export(
    folder: Path,
    name: str,
    transcript: Transcript,
    agent: np.ndarray | None = None,
    user: np.ndarray | None = None,
    *,
    sample_rate_hz: int = SAMPLE_RATE_HZ,
) -> Exports:
    """Write a conversation's files as ``folder/name…``; agent, user: [N] float32, or None without sound."""
    stem = _file_stem(name)
    text, json, webvtt = (folder / f"{stem}.{suffix}" for suffix in ("txt", "json", "vtt"))
    write_text(text, transcript.text + "\n")
    write_text(json, transcript.to_json())
    write_text(webvtt, transcript.to_webvtt())
    if agent is None or user is None or not len(agent):
        return Exports(text, json, webvtt)
    answer, stereo, picture = (folder / f"{stem}{ending}" for ending in ("-persona.wav", "-both.wav", ".png"))
    write_wav(answer, agent, sample_rate_hz)
    write_stereo_wav(stereo, agent, user, sample_rate_hz)
    png = timeline_png(timeline_of(agent, user, sample_rate_hz), transcript.words)
    write_atomically(picture, lambda file: file.write(png))
    return Exports(text, json, webvtt, answer, stereo, picture)


def _file_stem(name: str) -> str:
    """A name that is a file's name everywhere."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:60] or "conversation"


# ---------------------------------------------------------------------------------- for a visit


@dataclass
class Visit:
    """What one visitor left here."""

    folder: Path
    opened_at: float
    uploads: set[Path] = field(default_factory=set)
    kept: Any = None  # the newest conversation, in memory


class Visits:
    """What is kept for visitors: deleted, with their folder, when they leave.

    ``root`` must be a folder of this program alone; copies of the files in ``everyones`` stay. May be used
    from any thread.
    """

    def __init__(self, root: Path, *, everyones: Iterable[Path] = (), max_age_sec: float = 6 * 3600.0) -> None:
        self._root = root
        self._everyones = tuple(everyones)
        self._max_age_sec = max_age_sec
        self._visits: dict[str, Visit] = {}
        self._ended: deque[str] = deque(maxlen=1000)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._visits)

    def new_folder(self, visitor: str) -> Path:
        """An empty folder that nobody can guess, for one conversation; the one before is deleted.

        Raises OutputError when the visitor has left.
        """
        if self.has_ended(visitor):
            raise OutputError("the page was closed, so nothing is kept of it; open it again and press Start or Answer")
        folder = self._of(visitor).folder
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

    def keep(self, visitor: str, conversation: Any) -> None:
        """Hold a conversation in memory until it is taken, replaced or the visitor leaves."""
        if not self.has_ended(visitor):  # they may have left before their conversation was over
            self._of(visitor).kept = conversation

    def has_ended(self, visitor: str) -> bool:
        with self._lock:
            return visitor in self._ended

    def come_back(self, visitor: str) -> None:
        """A page whose connection had broken off goes on: what it leaves is kept again."""
        with self._lock:
            while visitor in self._ended:
                self._ended.remove(visitor)

    def take(self, visitor: str) -> Any:
        """The conversation that is kept, once; None if there is none."""
        visit = self._visits.get(visitor)
        if visit is None:
            return None
        kept, visit.kept = visit.kept, None
        return kept

    def end(self, visitor: str) -> None:
        """Delete everything of one visitor; of no consequence for an unknown one."""
        with self._lock:
            visit = self._visits.pop(visitor, None)
            self._ended.append(visitor)
            # The same file sent by two visitors is one file here: it goes with the last of them.
            shared = set().union(*(other.uploads for other in self._visits.values()))
        if visit is not None:
            shutil.rmtree(visit.folder, ignore_errors=True)
            for path in visit.uploads - shared:
                path.unlink(missing_ok=True)

    def end_all(self) -> None:
        for visitor in list(self._visits):
            self.end(visitor)

    def _of(self, visitor: str) -> Visit:
        self._end_old()
        with self._lock:
            if visitor not in self._visits:
                self._visits[visitor] = Visit(self._root / secrets.token_hex(16), time.monotonic())
            return self._visits[visitor]

    def _end_old(self) -> None:
        """Delete what visitors left whose leaving was never noticed."""
        oldest = time.monotonic() - self._max_age_sec
        for visitor in [name for name, visit in list(self._visits.items()) if visit.opened_at < oldest]:
            log.info("a visit was never ended; its files are deleted now")
            self.end(visitor)
