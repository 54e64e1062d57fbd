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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from personaplex.errors import first_line
from personaplex.settings import Settings

log = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "cpp"
COMPILE_TIMEOUT_SEC = 300
STANDARD_FLAGS = ("-std=c++17", "-O3", "-fPIC")
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
    with tempfile.TemporaryDirectory(prefix=".compiling-", dir=target.parent) as folder:
        library = Path(folder) / target.name
        said = ""
        for flags in flag_sets():
            problem = _compile(compiler, flags, library)
            if problem is None:
                os.replace(library, target)
                return
            said = said or problem
        raise NativeUnavailable(f"{compiler} fails: {first_line(said)}")


def _compile(compiler: str, flags: tuple[str, ...], library: Path) -> str | None:
    """Compile the translation units side by side and link them beside ``library``; returns the compiler's complaint."""

    def run(*arguments: object) -> str | None:
        command = [compiler, *STANDARD_FLAGS, *flags, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, check=False, timeout=COMPILE_TIMEOUT_SEC)
        return None if done.returncode == 0 else done.stderr.decode(errors="replace") or "(no message)"

    units = {source: library.with_name(f"{source.stem}.o") for source in source_files()}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        complaints = list(pool.map(lambda source: run("-c", "-o", units[source], source), units))
    problem = next((complaint for complaint in complaints if complaint is not None), None)
    return problem if problem is not None else run("-shared", "-o", library, *units.values())


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
