"""Files: atomic writes, checks of output paths before the work, free disk space, and the shipped folders."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

from personaplex.errors import ConfigError, InputError, OutputError

PACKAGE_FOLDER = Path(__file__).resolve().parent
"""Folder of the installed package."""


def write_atomically(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it: complete, or not at all.

    Raises OutputError when the disk says no; what ``write`` itself raises passes through.
    """
    target = _real_target(path)
    temporary = _beside(target)
    try:
        try:
            with _create(temporary) as file:
                write(file)
            if target.exists():
                temporary.chmod(stat.S_IMODE(target.stat().st_mode))
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _not_writable(path, error) from error


def write_text(path: str | Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))


def check_writable(path: str | Path, suffixes: Iterable[str] = ()) -> None:
    """Raise OutputError now if ``write_atomically(path, …)`` could not work later.

    ``suffixes``: the endings allowed, as ``[".wav"]``; none means any.
    """
    allowed = tuple(suffixes)
    if allowed and Path(path).suffix.lower() not in allowed:
        raise OutputError(f"{path} must end in {' or '.join(allowed)}, the format that is written")
    target = _real_target(path)
    temporary = _beside(target)
    try:
        _create(temporary).close()
        temporary.unlink()
    except OSError as error:
        raise _not_writable(path, error) from error


def check_folder(path: str | Path) -> None:
    """Raise OutputError now if files could not be written into the folder ``path`` later; it may still be missing."""
    try:
        nearest = _nearest_there(Path(path))
        is_file = nearest.is_file()
        if not is_file:
            probe = _beside(nearest / "probe")
            _create(probe).close()
            probe.unlink()
    except OSError as error:
        raise _not_writable(path, error) from error
    if is_file:
        raise OutputError(f"{path} cannot be a folder: {nearest} is a file; give another path")


def size_text(num_bytes: float) -> str:
    """16_700_000_000 → "16.7 GB", 2_500_000 → "2.5 MB"."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes:.0f} bytes"


def free_bytes(folder: Path) -> int:
    """Free on the disk that holds ``folder``, or would if it were made; 0 where there is no such disk."""
    try:
        return shutil.disk_usage(_nearest_there(folder)).free
    except OSError:
        return 0


def _nearest_there(folder: Path) -> Path:
    """The path itself, or the nearest above it that exists; of a drive that is gone, its root, which does not."""
    folder = folder.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _real_target(path: str | Path) -> Path:
    """The file that is written: links are followed, so that a link is not replaced by a file."""
    try:
        target = Path(path).resolve()
        problem = _problem(target)
    except (OSError, RuntimeError, ValueError) as error:
        raise _not_writable(path, error) from error
    if problem:
        raise OutputError(f"{path} {problem}")
    return target


def _problem(target: Path) -> str | None:
    if target.is_dir():
        return "is a folder; give the path of a file to write"
    if target.exists() and not target.is_file():
        return "is not a regular file; give the path of a file to write"
    if target.exists() and not os.access(target, os.W_OK):
        return "is there already and write-protected; give another path"
    if not target.parent.is_dir():
        return f"cannot be written: there is no folder {target.parent}"
    return None


def _beside(target: Path) -> Path:
    return target.with_name(f".personaplex-{secrets.token_hex(6)}")


def _create(path: Path) -> BinaryIO:
    """A new file with the permissions a new file usually gets."""
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(path, flags, 0o666), "w+b")


def _not_writable(path: str | Path, error: Exception) -> OutputError:
    reason = getattr(error, "strerror", None) or error
    return OutputError(f"{path} cannot be written: {reason}")


def shipped_file(path: str) -> Path:
    """A file that comes with the program, wherever it is installed: ``voices/nano-f.wav``.

    ``path`` begins with ``voices/`` or ``examples/``. Raises InputError when there is no such file.
    """
    name, _, rest = path.partition("/")
    marker = {"voices": "catalogue.json", "examples": "personas.json"}.get(name)
    file = shipped_folder(name, marker) / rest if marker else None
    if file is None or not file.is_file():
        raise InputError(f"no file {path} comes with the program; allowed: files in voices/ and examples/")
    return file


def shipped_folder(name: str, marker: str) -> Path:
    """A folder of data that comes with the program, as ``voices``: the one that holds ``marker``.

    It lies beside the package in a clone, inside it when installed.
    """
    candidates = (PACKAGE_FOLDER / f"shipped_{name}", PACKAGE_FOLDER.parent / name)
    for folder in candidates:
        if (folder / marker).is_file():
            return folder
    raise ConfigError(f"{marker} was not found in {' or '.join(map(str, candidates))}: install the program again")
