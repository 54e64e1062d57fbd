"""One large file from the hub into the hub's own cache: resumed across runs, checked against its hash.

``huggingface_hub`` starts a broken download from zero in the next run. Here what arrived stays as a ``.part`` file
beside the place where the whole file goes, and the next run asks for the rest only.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from filelock import FileLock, Timeout
from huggingface_hub import HfFileMetadata, get_hf_file_metadata
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import tqdm

from personaplex.errors import DownloadError

log = logging.getLogger(__name__)

ATTEMPTS = 7
PAUSE_SEC = 1.0
"""Before the next attempt; doubled after each without a byte, two minutes in all: a router restarts in that time."""
TIMEOUT_SEC = 30.0
CHUNK_BYTES = 1 << 20
OWN_RESUME_ABOVE_BYTES = 16 * 2**20
"""Smaller files are left to ``huggingface_hub``."""


class BrokenOff(Exception):
    """The connection ended before the file did."""


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub describes it."""

    url: str  # on the hub; it redirects to where the bytes are
    name: str
    size: int
    sha256: str | None
    token: str | None


def fetch_blob(remote: RemoteFile, target: Path) -> None:
    """Download all of ``target`` and check its hash, or raise; what arrived is kept for the next try.

    Raises DownloadError (broken off, wrong hash), OSError (disk) or what ``huggingface_hub`` raises for access.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    try:
        with FileLock(f"{part}.lock", timeout=5):
            if not target.exists():
                _fetch_rest(remote, part)
                check_file(part, remote.name, remote.size, remote.sha256)
                os.replace(part, target)
    except Timeout as error:
        raise DownloadError(f"another program is fetching {remote.name} already; wait until it is done") from error


def _fetch_rest(remote: RemoteFile, part: Path) -> None:
    """Request the missing bytes until they are there; gives up after several attempts without a byte."""
    done = _size(part)
    if done > remote.size:
        part.unlink()
        done = 0
    tries_left = ATTEMPTS
    with tqdm(total=remote.size, initial=done, desc=remote.name, unit="B", unit_scale=True) as bar:
        while done < remote.size:
            before = done
            try:
                _append(remote, part, done, bar.update)
            except (BrokenOff, httpx.TransportError) as error:
                done = _size(part)
                tries_left = ATTEMPTS if done > before else tries_left - 1
                if tries_left == 0:
                    raise DownloadError(
                        f"the download of {remote.name} broke off at {done} of {remote.size} bytes ({error}); "
                        "run the same command again: it goes on from there"
                    ) from error
                log.warning("%s broke off at %d of %d bytes; trying again", remote.name, done, remote.size)
                time.sleep(PAUSE_SEC * 2 ** (ATTEMPTS - tries_left))
            done = _size(part)


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _whereabouts(remote: RemoteFile) -> HfFileMetadata:
    """Current address of the bytes; raises BrokenOff where the hub is not reached, else the hub's own errors."""
    try:
        return get_hf_file_metadata(remote.url, token=remote.token or False)
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code < 500 and error.response.status_code != 429:
            raise
        raise BrokenOff(str(error)) from error
    except (httpx.TransportError, OSError) as error:
        raise BrokenOff(str(error)) from error


def _append(remote: RemoteFile, part: Path, done: int, advance: Callable[[int], object]) -> None:
    """One request for the bytes from ``done`` on.

    Raises BrokenOff or httpx.TransportError where another try may help, httpx.HTTPStatusError where not.
    """
    place = _whereabouts(remote)
    headers = {"Range": f"bytes={done}-", "Accept-Encoding": "identity"}
    if remote.token and urlsplit(place.location).netloc == urlsplit(remote.url).netloc:
        headers["Authorization"] = f"Bearer {remote.token}"  # never sent to another host
    with httpx.stream("GET", place.location, headers=headers, timeout=TIMEOUT_SEC, follow_redirects=True) as response:
        if response.status_code >= 500 or response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise BrokenOff(f"status {response.status_code}")
        response.raise_for_status()
        whole = response.status_code == httpx.codes.OK  # the server does not know ranges
        if whole:
            advance(-done)
        with part.open("wb" if whole else "ab") as file:
            for chunk in response.iter_raw():  # as it arrives: a chunk of a fixed size would be lost half filled
                file.write(chunk)
                advance(len(chunk))
            size = file.tell()
    if size != remote.size:
        if size > remote.size:
            part.unlink()
        raise BrokenOff(f"{size} bytes came instead of {remote.size}")


def check_file(path: Path, name: str, size: int, sha256: str | None) -> None:
    """Raise DownloadError, and delete the file, if it is not what the hub describes."""
    found_size = path.stat().st_size
    if found_size != size:
        problem = f"{found_size} bytes instead of {size}"
    elif sha256 is not None and (found := _sha256(path, name)) != sha256:
        problem = f"its hash is {found[:12]}… instead of {sha256[:12]}…"
    else:
        return
    path.resolve().unlink()  # in the hub's cache the name is a link
    path.unlink(missing_ok=True)
    raise DownloadError(
        f"{name} arrived damaged ({problem}) and was deleted: run the same command again, on another network if it "
        "happens twice"
    )


def _sha256(path: Path, name: str) -> str:
    digest = hashlib.sha256()
    size = path.stat().st_size
    with path.open("rb") as file, tqdm(total=size, desc=f"checking {name}", unit="B", unit_scale=True) as bar:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()
