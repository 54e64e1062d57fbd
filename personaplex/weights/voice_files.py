"""Readers of the published voices, ``voices.tgz`` and the ``.pt`` files in it, which are untrusted input."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeGuard

import torch
from torch import Tensor

from personaplex.config import LMConfig, ModelConfig
from personaplex.errors import OutputError, PromptError, first_line

MAX_UNPACKED_BYTES = 512 * 2**20
"""The 18 published voices take some 6 MB."""

MAX_MEMBERS = 1000
MAX_VOICE_FILE_BYTES = 128 * 2**20
COPY_BYTES = 1 << 20  # read at once

UNGENERATED = -2
"""The lowest value a published token ring holds."""


# ---------------------------------------------------------------------------------- .pt


@dataclass(frozen=True)
class VoicePrompt:
    """A published voice: what the temporal transformer read, and the token columns afterwards."""

    embeddings: Tensor  # [T, 1, 1, dim] float
    cache: Tensor  # [1, 17, max delay + 3] int64


def read_voice_pt(path: str | Path, config: ModelConfig) -> VoicePrompt:
    """Read a published voice; raises PromptError in one line for anything else, and runs nothing of it."""
    path = Path(path)
    _check_sizes(path)
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(data, dict) or not {"embeddings", "cache"} <= data.keys():
            raise PromptError(f"{path} is not a voice file: a dict with 'embeddings' and 'cache' is needed")
        embeddings, cache = data["embeddings"], data["cache"]
        problem = _embeddings_problem(embeddings, config.lm) or _cache_problem(cache, config.lm)
    except (PromptError, MemoryError):
        raise
    except Exception as error:  # whatever a damaged pickle or an odd tensor leads to
        raise PromptError(f"{path} is not a voice file, or damaged ({first_line(str(error))[:120]})") from error
    if problem:
        raise PromptError(f"{path} is not a voice for {config.name}: {problem}")
    return VoicePrompt(embeddings.detach().contiguous(), cache.detach().contiguous())


def _check_sizes(path: Path) -> None:
    """Refuse what would unpack to far more than a voice."""
    try:
        size = path.stat().st_size
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                size = max(size, sum(member.file_size for member in archive.infolist()))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise PromptError(f"{path} cannot be read as a voice file: {error}") from error
    if size > MAX_VOICE_FILE_BYTES:
        raise PromptError(f"{path} unpacks to {size} bytes; a voice has at most {MAX_VOICE_FILE_BYTES}")


def _is_plain(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.layout is torch.strided and value.device.type == "cpu"


def _embeddings_problem(value: object, lm: LMConfig) -> str | None:
    if not _is_plain(value) or not value.is_floating_point():
        return "its embeddings are not a floating-point tensor"
    if value.dim() != 4 or tuple(value.shape[1:]) != (1, 1, lm.dim) or not 1 <= value.shape[0] < lm.context:
        return (
            f"its embeddings are {list(value.shape)}; [T, 1, 1, {lm.dim}] with T from 1 to {lm.context - 1} are needed"
        )
    if not value.isfinite().all():
        return "its embeddings hold NaN or infinite values"
    return None


def _cache_problem(value: object, lm: LMConfig) -> str | None:
    shape = (1, lm.num_streams, lm.ring_columns)
    if not _is_plain(value) or value.dtype is not torch.int64:
        return "its cache is not an int64 tensor"
    if tuple(value.shape) != shape:
        return f"its cache is {list(value.shape)}; {list(shape)} is needed"
    text, audio = value[:, :1], value[:, 1:]
    if value.min() < UNGENERATED or text.max() > lm.initial_text_id or audio.max() > lm.initial_audio_id:
        return "its cache holds tokens that this model does not know"
    return None


# ---------------------------------------------------------------------------------- voices.tgz


def unpack_voices(archive: str | Path, folder: str | Path) -> Path:
    """Unpack a ``voices.tgz`` once, into a folder of its own below ``folder``, and return that.

    All or nothing; no member leaves its folder, and only plain files and folders are unpacked.
    Raises PromptError for anything else in the archive.
    """
    archive, folder = Path(archive), Path(folder)
    try:
        stat = archive.stat()
        identity = f"{archive.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
        target = folder / f"voices-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
        if target.is_dir():
            return target
        with _Bounded(archive) as unpacked, tarfile.open(fileobj=unpacked, mode="r:") as tar:
            members = _checked_members(tar, archive)
            _unpack_beside(tar, members, target)
    except FileNotFoundError as error:
        raise PromptError(f"there is no {archive}: fetch the model's voices.tgz, or give a recording") from error
    except (tarfile.TarError, EOFError, zlib.error, ValueError) as error:
        if isinstance(error, PromptError):
            raise
        raise PromptError(f"{archive} is damaged ({first_line(str(error))}); fetch it again") from error
    except OSError as error:
        if error.filename is None:  # the decompressor's complaints name no file
            raise PromptError(f"{archive} is damaged ({error}); fetch it again") from error
        raise OutputError(f"{archive} cannot be unpacked below {folder}: {error.strerror}") from error
    return target


class _Bounded(gzip.GzipFile):
    """A .tgz unpacked as it is read, and refused where it grows beyond what voices take; a header is read at once."""

    def read(self, size: int | None = -1) -> bytes:
        if (size or 0) > COPY_BYTES or self.tell() > MAX_UNPACKED_BYTES + MAX_MEMBERS * COPY_BYTES:
            raise PromptError(f"{self.name} is refused: it unpacks to more than {MAX_UNPACKED_BYTES} bytes")
        return super().read(size)


def _checked_members(tar: tarfile.TarFile, archive: Path) -> list[tarfile.TarInfo]:
    members: list[tarfile.TarInfo] = []
    total = 0
    for member in tar:
        if member.isdir():
            continue
        parts = PurePosixPath(member.name).parts
        if not parts or ".." in parts or member.name.startswith("/") or "\\" in member.name or ":" in member.name:
            raise PromptError(f"{archive} is refused: it names {member.name!r}, a place outside its folder")
        if not member.isfile():
            raise PromptError(f"{archive} is refused: {member.name!r} is a link or a device, not a file")
        members.append(member)
        total += member.size
        if total > MAX_UNPACKED_BYTES or len(members) > MAX_MEMBERS:
            raise PromptError(
                f"{archive} is refused: it unpacks to more than {MAX_UNPACKED_BYTES} bytes or too many files"
            )
    if not members:
        raise PromptError(f"{archive} holds no files")
    while tar.fileobj is not None and tar.fileobj.read(COPY_BYTES):
        pass  # to the very end, where the checksum is: an archive cut there must not pass for whole
    return members


def _unpack_beside(tar: tarfile.TarFile, members: list[tarfile.TarInfo], target: Path) -> None:
    """Unpack into a folder beside, then rename it; another process may have been faster."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=".unpacking-"))
    try:
        for member in members:
            path = temporary / member.name
            path.parent.mkdir(parents=True, exist_ok=True)
            source = tar.extractfile(member)
            assert source is not None
            with source, path.open("xb") as file:
                shutil.copyfileobj(source, file, COPY_BYTES)
        if not target.is_dir():
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
