"""Locating a model's files: shipped with the program, in a folder, or on the Hugging Face hub (then cached)."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub import HfApi, constants, file_download, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

from personaplex.config import ModelConfig
from personaplex.errors import DownloadError, OutputError
from personaplex.files import free_bytes, size_text, write_text
from personaplex.strict import nearest_names
from personaplex.weights.checkpoint import INDEX_SUFFIX, read_index
from personaplex.weights.download import OWN_RESUME_ABOVE_BYTES, RemoteFile, check_file, fetch_blob
from personaplex.weights.hub_errors import NotReached, explained
from personaplex.weights.names import CONFIG_NAME, KNOWN_MODELS, named_model

log = logging.getLogger(__name__)

DEFAULT_REVISION = "main"
DISK_RESERVE_BYTES = 2**28
"""Left free after a download."""

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class ModelSource:
    """A model's folder, all its files in place."""

    folder: Path
    repo: str | None = None
    revision: str | None = None  # the commit, for a hub model


def resolve_model(name: str, revision: str | None = None, hub: Hub | None = None) -> ModelSource:
    """Find a model by name: ``nano``, a folder, or a hub id, ``ID`` or ``ID@REVISION``, fetched if need be.

    Raises UnknownNameError with the nearest names, WeightsError for a folder that holds no model, or
    DownloadError that says what to do.
    """
    found = named_model(name, revision)
    if isinstance(found, Path):
        return ModelSource(found)
    return (hub or Hub()).fetch_model(found.repo, found.revision)


@dataclass(frozen=True)
class Hub:
    """A hub and the cache of what came from it; by default those that the ``HF_*`` variables name."""

    endpoint: str | None = None
    cache: Path | None = None

    @property
    def address(self) -> str:
        return self.endpoint or constants.ENDPOINT

    @property
    def cache_folder(self) -> Path:
        return self.cache or Path(constants.HF_HUB_CACHE)

    def fetch_model(self, repo: str, revision: str | None = None) -> ModelSource:
        """All files of a model, from the cache where they are there; raises DownloadError."""
        if revision and _COMMIT.fullmatch(revision) and (found := self._from_cache(repo, revision)):
            return found
        try:
            with explained(self.address, repo, revision):
                api = HfApi(endpoint=self.endpoint)
                info = api.model_info(
                    repo, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
                )
        except NotReached as problem:
            if found := self._from_cache(repo, revision):
                why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"the hub was not reached ({problem})"
                log.warning("%s; using the copy of %s in the cache", why, repo)
                return found
            raise
        files = {
            file.rfilename: _Listed(file.size or 0, file.lfs.sha256 if file.lfs else None)
            for file in info.siblings or []
        }
        wanted = revision or DEFAULT_REVISION
        return _Download(self, repo, wanted, info.sha or wanted, files).run()

    def _from_cache(self, repo: str, revision: str | None) -> ModelSource | None:
        """The model if all of it is in the cache."""

        def get(name: str) -> Path:
            found = try_to_load_from_cache(repo, name, cache_dir=self.cache_folder, revision=revision)
            if not isinstance(found, str):
                raise FileNotFoundError(name)
            return Path(found)

        def has(name: str) -> bool:
            try:
                return get(name).is_file()
            except FileNotFoundError:
                return False

        try:
            names = model_files(has, get)
        except FileNotFoundError:
            return None
        folder = get(names[0]).parent
        return ModelSource(folder, repo, folder.name) if all(map(has, names)) else None


def model_files(has: Callable[[str], bool], get: Callable[[str], Path]) -> list[str]:
    """Names of the files that make a model, the tokenizer first; raises FileNotFoundError(name) if one is missing.

    ``config.json`` and the index of shards are read on the way. Without a config it is the published 7B.
    """
    config = ModelConfig.from_json(get(CONFIG_NAME)) if has(CONFIG_NAME) else ModelConfig.personaplex_7b()
    names = [config.files.tokenizer]
    for name in (config.files.mimi, config.files.lm):
        index = name + INDEX_SUFFIX
        if has(name) or not has(index):
            names.append(name)
        else:
            names += [index, *sorted(set(read_index(get(index)).values()))]
    names += [name for name in (CONFIG_NAME, config.files.voices) if has(name)]
    for name in names:
        if not has(name):
            raise FileNotFoundError(name)
    return names


@dataclass(frozen=True)
class _Listed:
    """Size and hash of a file, as the hub lists it."""

    size: int
    sha256: str | None


@dataclass(frozen=True)
class _Download:
    """Fetching one model at one commit."""

    hub: Hub
    repo: str
    revision: str  # as asked for
    commit: str
    files: dict[str, _Listed]

    def run(self) -> ModelSource:
        try:
            names = model_files(self.files.__contains__, self._get)
        except FileNotFoundError as error:
            raise DownloadError(
                f"{self.repo} at {self.revision} has no {error.args[0]}: it is not a PersonaPlex model"
                f"{nearest_names(self.repo, KNOWN_MODELS)}"
            ) from error
        self._check_disk(names)
        folder = self._get(names[0]).parent
        for name in names:
            self._get(name)
        if self.revision != self.commit:
            self._point_to_commit()
        return ModelSource(folder, self.repo, self.commit)

    def _point_to_commit(self) -> None:
        """Let the branch or tag in the cache refer to this commit; called only once all of its files are there."""
        reference = self._storage / "refs" / self.revision
        try:
            if reference.is_file() and reference.read_text(encoding="utf-8").strip() == self.commit:
                return
            reference.parent.mkdir(parents=True, exist_ok=True)
            write_text(reference, self.commit)
        except (OSError, UnicodeDecodeError, OutputError) as error:  # the files are there, and that is what counts
            log.warning("without the network this model will not be found by %s: %s", self.revision, error)

    def _get(self, name: str) -> Path:
        """The file in the cache, fetched and checked if it was not there."""
        cached = self._cached(name)
        if cached is not None and cached.stat().st_size == self.files[name].size:
            return cached
        with explained(self.hub.address, self.repo, self.revision, name):
            if cached is not None:
                cached.resolve().unlink()  # the name is a link where the disk has links
                cached.unlink(missing_ok=True)
            large = self.files[name].size > OWN_RESUME_ABOVE_BYTES
            if large:
                self._fetch_large(name)  # checks the hash
            # By the commit: a branch that moves meanwhile would give files of two.
            path = huggingface_hub.hf_hub_download(
                self.repo, name, revision=self.commit, cache_dir=self.hub.cache_folder, endpoint=self.hub.endpoint
            )
        check_file(Path(path), name, self.files[name].size, None if large else self.files[name].sha256)
        return Path(path)

    def _fetch_large(self, name: str) -> None:
        """Put the file's bytes where the hub's library looks for them; the library links them into the snapshot."""
        url = hf_hub_url(self.repo, name, revision=self.commit, endpoint=self.hub.endpoint)
        token = huggingface_hub.get_token()
        described = get_hf_file_metadata(url, token=token or False)
        listed = self.files[name]
        target = self._storage / "blobs" / str(described.etag)
        fetch_blob(RemoteFile(url, name, listed.size, listed.sha256, token), target)
        if name == Path(name).name and not file_download.are_symlinks_supported(self.hub.cache_folder):
            # As on most of Windows. From the blobs the library would copy it: twice the disk that was checked for.
            place = self._storage / "snapshots" / self.commit / name
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(target, place)

    @property
    def _storage(self) -> Path:
        return self.hub.cache_folder / file_download.repo_folder_name(repo_id=self.repo, repo_type="model")

    def _cached(self, name: str) -> Path | None:
        found = try_to_load_from_cache(self.repo, name, cache_dir=self.hub.cache_folder, revision=self.commit)
        return Path(found) if isinstance(found, str) and Path(found).is_file() else None

    def _missing_bytes(self, listed: _Listed) -> int:
        """Bytes left to fetch of a file that this commit lacks; all or part of it may be there from another one."""
        blob = self._storage / "blobs" / str(listed.sha256)
        there = next((path for path in (blob, blob.with_name(f"{blob.name}.part")) if path.is_file()), None)
        return listed.size - (there.stat().st_size if there else 0)

    def _check_disk(self, names: list[str]) -> None:
        """Raise DownloadError now if the files would not fit."""
        needed = sum(self._missing_bytes(self.files[name]) for name in names if self._cached(name) is None)
        free = free_bytes(self.hub.cache_folder)
        if needed > 0 and needed + DISK_RESERVE_BYTES > free:
            raise DownloadError(
                f"{self.repo} needs {size_text(needed)} more on the disk of {self.hub.cache_folder}, which has "
                f"{size_text(free)} free: free some, or set HF_HOME to a folder on a larger disk"
            )
