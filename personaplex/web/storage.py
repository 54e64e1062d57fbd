"""One private folder for everything that visitors leave during one run of the page."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from personaplex.errors import ConfigError

PREFIX = "personaplex-run-"
_LOCK = "lock"


@dataclass(frozen=True)
class RunFolder:
    """A folder of mode 700 with an unguessable name, locked for as long as the process lives."""

    path: Path
    lock: FileLock

    @classmethod
    def create(cls, base: Path | None = None) -> RunFolder:
        """A new folder in ``base``; folders of runs that were killed are deleted first.

        ``base``: by default ``GRADIO_TEMP_DIR``, then the system's temporary folder. Raises ConfigError where it
        cannot be written.
        """
        base = base or Path(os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir())
        try:
            base.mkdir(parents=True, exist_ok=True)
            delete_abandoned(base)
            path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base)).resolve()  # mode 700
            lock = FileLock(path / _LOCK, thread_local=False)
            lock.acquire(timeout=0)
        except OSError as error:  # Timeout is one
            raise ConfigError(
                f"visitors' files cannot be kept in {base}: {error}; set GRADIO_TEMP_DIR to another folder"
            ) from error
        return cls(path, lock)

    def delete(self) -> None:
        """Delete the folder with everything in it; never raises."""
        self.lock.release()
        shutil.rmtree(self.path, ignore_errors=True)


def delete_abandoned(base: Path) -> int:
    """Delete the folders of runs that ended without ``delete`` (killed, power cut); returns how many."""
    deleted = 0
    for folder in base.glob(f"{PREFIX}*"):
        if not (folder / _LOCK).is_file():  # another user's, or one that is just being made
            continue
        lock = FileLock(folder / _LOCK)
        try:
            lock.acquire(timeout=0)
        except (OSError, Timeout):
            continue  # in use, or another user's
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)
        deleted += 1
    return deleted
