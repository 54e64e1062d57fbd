"""Errors of the hub as sentences for users: what failed and what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from personaplex.errors import DownloadError, PersonaPlexError
from personaplex.strict import nearest_names
from personaplex.weights.names import KNOWN_MODELS

TOKEN_PAGE = "https://huggingface.co/settings/tokens"
NEEDS_NO_NETWORK = "--model nano needs no network"


class NotReached(DownloadError):
    """The hub did not answer; the cached copy may serve."""


@contextmanager
def explained(address: str, repo: str, revision: str | None, file: str = "") -> Iterator[None]:
    """Turn whatever the hub's library raises into a DownloadError of one clear line."""
    try:
        yield
    except PersonaPlexError:
        raise
    except Exception as error:  # libraries below differ by version; each case is told apart below
        raise _explanation(error, address, repo, revision or "main", file) from error


def _explanation(error: Exception, address: str, repo: str, revision: str, file: str) -> DownloadError:
    if isinstance(error, (OfflineModeIsEnabled, LocalEntryNotFoundError)):
        return _not_reached(error, address, repo)
    if isinstance(error, GatedRepoError):
        return _gated(error, repo)
    if isinstance(error, RevisionNotFoundError):
        return DownloadError(f"{repo} has no revision {revision!r}: see https://huggingface.co/{repo}/commits/main")
    if isinstance(error, EntryNotFoundError):
        return DownloadError(f"{repo} at {revision} has no {file}: it is not a PersonaPlex model")
    if isinstance(error, (RepositoryNotFoundError, HFValidationError)):
        return DownloadError(
            f"there is no model {repo} on {address}, or it is private: check the name, "
            f"and set HF_TOKEN if it is yours{nearest_names(repo, KNOWN_MODELS)}"
        )
    if isinstance(error, (HfHubHTTPError, httpx.HTTPStatusError)):
        return _refused(error, repo)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DownloadError(
            f"the disk is full while fetching {file} of {repo}: free some space and run the same command again, "
            "or set HF_HOME to a folder on a larger disk"
        )
    if isinstance(error, OSError) and error.filename:
        reason = error.strerror or type(error).__name__
        return DownloadError(f"{error.filename} cannot be written ({reason}): set HF_HOME to a folder of yours")
    if isinstance(error, OSError) and "Consistency check" in str(error):
        return DownloadError(f"the download of {file} broke off: run the same command again")
    return _not_reached(error, address, repo)


def _gated(error: HfHubHTTPError, repo: str) -> DownloadError:
    page = f"https://huggingface.co/{repo}"
    if huggingface_hub.get_token() is None:
        return DownloadError(
            f"{repo} needs an account: 1. accept the licence on {page}  2. make a read token on {TOKEN_PAGE}  "
            f"3. set HF_TOKEN to it and run again ({NEEDS_NO_NETWORK} and no account)"
        )
    return DownloadError(
        f"the account of your token may not read {repo} yet: accept the licence on {page} and run again; "
        "a fine-grained token also needs the permission to read gated repositories"
    )


def _refused(error: Exception, repo: str) -> DownloadError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return DownloadError(f"the hub does not know the token in HF_TOKEN: make a new one on {TOKEN_PAGE}")
    if status == 403:
        return DownloadError(
            f"the token in HF_TOKEN may not read {repo}: give it the permission on {TOKEN_PAGE}, "
            f"and accept the licence on https://huggingface.co/{repo}"
        )
    if status == 429:
        return DownloadError("the hub asks for a pause (too many requests): run the same command again in some minutes")
    return NotReached(f"the hub answered with status {status}: run the same command again later ({NEEDS_NO_NETWORK})")


def _not_reached(error: Exception, address: str, repo: str) -> DownloadError:
    if isinstance(error, OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
        return NotReached(f"HF_HUB_OFFLINE is set and {repo} is not in the cache: unset it, or use a model's folder")
    reason = (str(error).splitlines() or [""])[0] or type(error).__name__
    return NotReached(
        f"{address} was not reached ({reason[:160]}): check the network or the proxy settings and run "
        f"again ({NEEDS_NO_NETWORK})"
    )
