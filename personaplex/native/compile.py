"""Compiles the C++ sources in ``cpp/`` on this machine, once, at their first use.

The compiler is ``$CXX``, else ``c++``, ``g++`` or ``clang++``. The shared library is kept below the user's folder
under a name that changes with sources, compiler, flags and processor.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from personaplex.errors import first_line
from personaplex.settings import Settings

log = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "cpp"
COMPILE_TIMEOUT_SEC = 300
STANDARD_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared")
THREAD_FLAGS = ("-fopenmp",)
_TUNED_FLAGS = ("-march=native",)
_WIDE_FLAGS = ("-mprefer-vector-width=512",)  # compilers shy away from the widest registers


class NativeUnavailable(Exception):
    """Raised where no code can be compiled; its text says why."""


def compiled_library() -> Path:
    """The shared library for this machine, compiled if it is not there; raises NativeUnavailable."""
    if os.name != "posix":
        raise NativeUnavailable(f"it is not tried on {platform.system()}")
    compiler = find_compiler()
    folders = [
        Settings.from_environment().home / "compiled",
        Path(tempfile.gettempdir()) / f"personaplex-{os.getuid()}",
    ]
    name = f"personaplex-{_fingerprint(compiler)}.so"
    for folder in folders:
        if (folder / name).is_file() and (folder / name).stat().st_uid == os.getuid():
            return folder / name
    target = next((folder / name for folder in folders if _writable(folder)), None)
    if target is None:
        raise NativeUnavailable(f"neither {folders[0]} nor {folders[1]} can be written")
    log.info("compiling the CPU's code into %s, once for this machine", target)
    compile_library(compiler, target)
    return target


def find_compiler() -> str:
    """Path of the C++ compiler; raises NativeUnavailable."""
    given = os.environ.get("CXX")
    for name in [given] if given is not None else ["c++", "g++", "clang++"]:
        found = shutil.which(name)
        if found is not None and not _only_asks_to_install(found):
            return found
    raise NativeUnavailable(
        f"CXX is {given!r}, which is not a program" if given is not None else "no C++ compiler is installed (c++, g++)"
    )


def source_files() -> list[Path]:
    """The translation units."""
    return sorted(SOURCES.glob("*.cpp"))


def compile_library(compiler: str, target: Path) -> None:
    """Compile into ``target`` with the best flags that the compiler knows; raises NativeUnavailable."""
    handle, temporary = tempfile.mkstemp(suffix=".so", dir=target.parent)
    os.close(handle)
    try:
        said = b""
        for flags in flag_sets():
            command = [compiler, *STANDARD_FLAGS, *flags, "-o", temporary, *map(str, source_files())]
            done = subprocess.run(command, capture_output=True, check=False, timeout=COMPILE_TIMEOUT_SEC)
            if done.returncode == 0:
                os.replace(temporary, target)
                return
            said = said or done.stderr
        raise NativeUnavailable(f"{compiler} fails: {first_line(said.decode(errors='replace'))}")
    finally:
        Path(temporary).unlink(missing_ok=True)


def flag_sets() -> list[tuple[str, ...]]:
    """Flags to try, best first: not every compiler knows them all."""
    wide = _WIDE_FLAGS if platform.machine().lower() in ("x86_64", "amd64") else ()
    threads = THREAD_FLAGS
    tuned = _TUNED_FLAGS if sys.platform != "darwin" else ("-mcpu=native",)
    return [tuned + wide + threads, tuned + threads, tuned, threads, ()]


def _only_asks_to_install(compiler: str) -> bool:
    """Whether this is a Mac's stand-in, which opens a window that offers the real one."""
    if sys.platform != "darwin" or not compiler.startswith("/usr/bin/"):
        return False
    return subprocess.run(["xcode-select", "-p"], capture_output=True, check=False).returncode != 0


def _fingerprint(compiler: str) -> str:
    """Hash of all that the compiled code depends on."""
    digest = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.read_bytes())
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False, timeout=COMPILE_TIMEOUT_SEC)
    digest.update(version.stdout + _processor().encode() + repr((STANDARD_FLAGS, flag_sets())).encode())
    return digest.hexdigest()[:16]


def _processor() -> str:
    """The machine's instruction sets, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    told = sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    return "\n".join([platform.machine(), platform.processor(), *told])


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return False
    return folder.stat().st_uid == os.getuid() and os.access(folder, os.W_OK)
