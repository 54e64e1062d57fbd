"""Storage of prompted states: in memory within a budget, on disk if wanted.

A voice and a persona that were prompted once are a snapshot; starting again from it is a copy.
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from personaplex.engine.engine import Snapshot
from personaplex.engine.telling import add_later_tensors
from personaplex.errors import InputError, OutputError, PromptError
from personaplex.files import write_atomically

log = logging.getLogger(__name__)

STATE_VERSION = 1
"""Version of what a saved state's tensors mean; 1 is what 0.1.0 wrote without naming it.

Raise it when a tensor changes its meaning but neither its name nor its shape (those are checked anyway): states saved
before are then refused by name, and prompted personas kept in a folder are made again.
"""

NOISE_NAME = "noise"
DEFAULT_BUDGET_BYTES = 2 * 1024**3

Check = Callable[[Snapshot], None]
"""Raises InputError for a snapshot whose numbers must not reach an engine: ``Engine.check``."""


def snapshot_key(parts: Iterable[bytes | str]) -> str:
    """A short name for what a snapshot was made from; any difference gives another one."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:32]


def state_key(fingerprint: str, format: str, context_frames: int, version: int = STATE_VERSION) -> str:
    """Conditions for continuing a saved state: weights, number format, cache length and version of states."""
    # Version 1 adds nothing, so that what 0.1.0 saved still opens.
    later = [f"state version {version}"] if version > 1 else []
    return snapshot_key([fingerprint, format, str(context_frames), *later])


def save_snapshot(snapshot: Snapshot, path: str | Path, model: str) -> None:
    """Write it whole or not at all. ``model`` is the ``state_key`` it belongs to.

    Raises OutputError when the disk says no.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path.parent} cannot be made: {error.strerror}; give another folder") from error
    metadata = {"model": model, "version": str(STATE_VERSION)}
    data = save({**snapshot.tensors, NOISE_NAME: snapshot.noise}, metadata=metadata)
    write_atomically(path, lambda file: file.write(data))


def read_snapshot(path: str | Path, model: str, check: Check) -> Snapshot:
    """Read a snapshot back; raises PromptError when it is damaged, of another version or of other weights."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise PromptError(f"{path} is not a readable snapshot ({error}); make it again from the recording") from error
    version = metadata.get("version", "1")
    if version != str(STATE_VERSION):
        raise PromptError(
            f"the snapshot {path} has state version {version:.20}, this program reads version {STATE_VERSION}; "
            "make it again from the recording"
        )
    if metadata.get("model") != model or NOISE_NAME not in tensors:
        raise PromptError(f"the snapshot {path} was made with another model; make it again from the recording")
    add_later_tensors(tensors)
    snapshot = Snapshot(tensors, tensors.pop(NOISE_NAME).to(torch.uint8))
    try:
        check(snapshot)
    except InputError as error:
        raise PromptError(f"{path} cannot be used: {error}") from error
    return snapshot


class SnapshotStore:
    """Snapshots by key: the newest in memory up to a budget, all of them in a folder if one is given."""

    def __init__(
        self, model: str, check: Check, folder: str | Path | None = None, budget_bytes: int = DEFAULT_BUDGET_BYTES
    ):  # fmt: skip
        """``check``: what a snapshot of the folder must pass; those in memory come from the engine itself."""
        self._model, self._check = model, check
        self._folder = Path(folder) if folder is not None else None
        self._budget_bytes = budget_bytes
        self._held: OrderedDict[str, Snapshot] = OrderedDict()

    def get(self, key: str) -> Snapshot | None:
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        path = self._path(key)
        try:
            if path is None or not path.exists():
                return None
            snapshot = read_snapshot(path, self._model, self._check)
        except (OSError, PromptError) as error:
            log.warning("ignoring %s", error)
            return None
        self._remember(key, snapshot)
        return snapshot

    def put(self, key: str, snapshot: Snapshot) -> None:
        """Keep it; a folder that cannot be written costs the next start its time, and no conversation."""
        self._remember(key, snapshot)
        path = self._path(key)
        if path is None:
            return
        try:
            save_snapshot(snapshot, path, self._model)
        except (OSError, OutputError, SafetensorError) as error:
            log.warning("a prompted persona is kept in memory only: %s", error)

    def _path(self, key: str) -> Path | None:
        return None if self._folder is None else self._folder / f"{key}.safetensors"

    def _remember(self, key: str, snapshot: Snapshot) -> None:
        self._held[key] = snapshot
        self._held.move_to_end(key)
        while len(self._held) > 1 and sum(held.nbytes for held in self._held.values()) > self._budget_bytes:
            self._held.popitem(last=False)
