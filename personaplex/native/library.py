"""The CPU's own code: C++ compiled on this machine, once, at its first use.

The sources lie in ``cpp/``. The compiler is ``$CXX``, else ``c++``, ``g++`` or ``clang++``; what it makes is
kept below the user's folder under a name that changes with sources, compiler and processor. Without a
compiler everything runs on PyTorch's operators instead, slower; ``native_status`` says which and why.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import weakref
from ctypes import POINTER, Structure, byref, c_int32, c_void_p, pointer
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from personaplex.errors import first_line
from personaplex.settings import Settings

log = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "cpp"
COMPILE_TIMEOUT_SEC = 300
_BASE_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-w")
_TUNED_FLAGS = ("-march=native",)
_WIDE_FLAGS = ("-mprefer-vector-width=512",)  # compilers shy away from the widest registers
_THREAD_FLAGS = ("-fopenmp",)


class Matrix(Structure):
    """A weight as ``cpp/matrix.h`` describes it."""

    _fields_ = [
        ("data", c_void_p), ("scale", c_void_p), ("rows", c_int32), ("columns", c_int32), ("stride", c_int32),
        ("kind", c_int32), ("group", c_int32), ("padded_rows", c_int32),
    ]  # fmt: skip


_NUMBERS = {torch.float32: 0, torch.bfloat16: 1}
"""Types of activations, as ``cpp/matrix.cpp`` numbers them."""


class NativeUnavailable(Exception):
    """Says why there is no compiled code."""


def native_library() -> ctypes.CDLL | None:
    """The compiled code; None where there is none."""
    return _load()[0]


def native_status() -> str:
    """One line for people: what runs on the CPU, and why."""
    return _load()[1]


def multiply(matrix: Matrix, x: Tensor) -> Tensor:
    """x [rows, in] float32, contiguous → [rows, out] float32; good for a few rows.

    For a quantised weight x is made whole numbers of 14 bits at least, in which a group shares a step.
    """
    library = native_library()
    assert library is not None and x.dtype is torch.float32 and x.shape[1] == matrix.columns
    y = x.new_empty(x.shape[0], matrix.rows)
    library.personaplex_multiply(
        byref(matrix), c_void_p(address(x)), c_int32(x.shape[0]), c_void_p(address(y)), c_int32(torch.get_num_threads())
    )
    return y


def multiply_many(matrix: Matrix, x: Tensor) -> Tensor:
    """x [rows, in] float32 or bfloat16, contiguous → [rows, out] in its dtype; good for many rows.

    x is rounded to ``rounding_of_many``.
    """
    library = native_library()
    assert library is not None and x.dtype in _NUMBERS and x.shape[1] == matrix.columns
    y = x.new_empty(x.shape[0], matrix.rows)
    library.personaplex_multiply_many(
        byref(matrix), c_void_p(address(x)), c_int32(x.shape[0]), c_void_p(address(y)), c_int32(_NUMBERS[x.dtype]),
        c_int32(torch.get_num_threads()),
    )  # fmt: skip
    return y


def rounding_of_many(matrix: Matrix) -> torch.dtype:
    """What ``multiply_many`` computes with, by what the processor has instructions for.

    float32: nothing is rounded; bfloat16: x and the weight are; int8: x is made whole numbers, in which 32
    neighbours share a step (an int4 weight's only).
    """
    library = native_library()
    assert library is not None
    return {32: torch.float32, 16: torch.bfloat16, 8: torch.int8}[library.personaplex_bits_of_many(byref(matrix))]


def unpack_int4_rows(matrix: Matrix, start: int, stop: int) -> Tensor:
    """Rows start..stop of an int4 weight, whole blocks of 64, as floats: [stop − start, in], a transposed view."""
    library = native_library()
    assert library is not None and start % 64 == 0 and stop % 64 == 0
    out = torch.empty(matrix.columns, stop - start)
    library.personaplex_unpack_int4(
        byref(matrix), c_int32(start), c_int32((stop - start) // 64), c_void_p(address(out)),
        c_int32(torch.get_num_threads()),
    )  # fmt: skip
    return out.t()


def address(tensor: Tensor) -> int:
    """Where a contiguous CPU tensor's numbers lie; the caller keeps it alive."""
    assert tensor.is_contiguous() and tensor.device.type == "cpu", (tensor.shape, tensor.device)
    return tensor.data_ptr()


class Bound:
    """One object of the C++ side, and everything that its description points to, which lives as long."""

    def __init__(self) -> None:
        library = native_library()
        assert library is not None
        self.library = library
        self._kept: list[object] = []

    def create(self, kind: str, spec: Structure) -> None:
        """Make the object, of ``personaplex_KIND_create``; it goes when this one does."""
        self.handle = c_void_p(getattr(self.library, f"personaplex_{kind}_create")(byref(spec)))
        weakref.finalize(self, getattr(self.library, f"personaplex_{kind}_destroy"), self.handle)

    def keep(self, tensor: Tensor) -> int:
        """Where its numbers lie. It must be contiguous: of a state, a copy would be written instead of it."""
        self._kept.append(tensor)
        return address(tensor)

    def array(self, kind: type[Structure], items: list):
        array = (kind * len(items))(*items)
        self._kept.append(array)
        return ctypes.cast(pointer(array), POINTER(kind))


@cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    try:
        path = _compiled()
        library = ctypes.CDLL(str(path))
    except (NativeUnavailable, OSError, subprocess.SubprocessError) as error:
        reason = f"PyTorch's operators, several times slower than compiled code: {error}"
        log.warning("the CPU runs on %s", reason)
        return None, reason
    library.personaplex_language_model_create.restype = c_void_p
    library.personaplex_codec_create.restype = c_void_p
    return library, "compiled code, made on this machine"


def _compiled() -> Path:
    """The shared library for this machine, made if it is not there."""
    if os.name != "posix":
        raise NativeUnavailable(f"it is not tried on {platform.system()}")
    compiler = _compiler()
    units = sorted(SOURCES.glob("*.cpp"))
    folders = [
        Settings.from_environment().home / "compiled",
        Path(tempfile.gettempdir()) / f"personaplex-{os.getuid()}",
    ]
    name = f"personaplex-{_fingerprint(compiler)}.so"
    for folder in folders:
        if (folder / name).is_file() and (folder / name).stat().st_uid == os.getuid():
            return folder / name
    folder = next((folder for folder in folders if _writable(folder)), None)
    if folder is None:
        raise NativeUnavailable(f"neither {folders[0]} nor {folders[1]} can be written")
    log.info("compiling the CPU's code into %s, once for this machine", folder / name)
    _compile(compiler, units, folder / name)
    return folder / name


def _compiler() -> str:
    given = os.environ.get("CXX")
    for name in [given] if given is not None else ["c++", "g++", "clang++"]:
        found = shutil.which(name)
        if found is not None and not _only_asks_to_install(found):
            return found
    raise NativeUnavailable(
        f"CXX is {given!r}, which is no program" if given is not None else "no C++ compiler is installed (c++, g++)"
    )


def _only_asks_to_install(compiler: str) -> bool:
    """Whether this is a Mac's stand-in, which opens a window that offers the real one."""
    if sys.platform != "darwin" or not compiler.startswith("/usr/bin/"):
        return False
    return subprocess.run(["xcode-select", "-p"], capture_output=True, check=False).returncode != 0


def _fingerprint(compiler: str) -> str:
    """Of all that the compiled code depends on."""
    digest = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.read_bytes())
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False, timeout=COMPILE_TIMEOUT_SEC)
    digest.update(version.stdout + _processor().encode() + repr(_flag_sets()).encode())
    return digest.hexdigest()[:16]


def _processor() -> str:
    """The machine's instruction sets, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    told = sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    return "\n".join([platform.machine(), platform.processor(), *told])


def _flag_sets() -> list[tuple[str, ...]]:
    """Flags to try, best first: not every compiler knows them all."""
    wide = _WIDE_FLAGS if platform.machine().lower() in ("x86_64", "amd64") else ()
    threads = _THREAD_FLAGS
    tuned = _TUNED_FLAGS if sys.platform != "darwin" else ("-mcpu=native",)
    return [tuned + wide + threads, tuned + threads, tuned, threads, ()]


def _compile(compiler: str, units: list[Path], target: Path) -> None:
    handle, temporary = tempfile.mkstemp(suffix=".so", dir=target.parent)
    os.close(handle)
    try:
        said = b""
        for flags in _flag_sets():
            command = [compiler, *_BASE_FLAGS, *flags, "-o", temporary, *map(str, units)]
            done = subprocess.run(command, capture_output=True, check=False, timeout=COMPILE_TIMEOUT_SEC)
            if done.returncode == 0:
                os.replace(temporary, target)
                return
            said = said or done.stderr
        raise NativeUnavailable(f"{compiler} fails: {first_line(said.decode(errors='replace'))}")
    finally:
        Path(temporary).unlink(missing_ok=True)


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return False
    return folder.stat().st_uid == os.getuid() and os.access(folder, os.W_OK)
