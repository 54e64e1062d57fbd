"""The compiled code of ``cpp/``: loaded, checked and called.

Where it cannot be compiled or loaded everything runs on PyTorch's operators instead, slower; ``native_status``
says which and why.
"""

from __future__ import annotations

import ctypes
import logging
import subprocess
import weakref
from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_char_p, c_int32, c_void_p, pointer
from functools import cache
from typing import Any

import torch
from torch import Tensor

from personaplex.native.compile import NativeUnavailable, compiled_library
from personaplex.native.structures import (
    FLOAT_KINDS,
    STRUCTURES,
    CodecSpec,
    FrameArguments,
    LanguageModelSpec,
    Matrix,
    MatrixKind,
)

log = logging.getLogger(__name__)

_BLOCK_ROWS = 64
"""Rows of a block of int4."""

_FUNCTIONS: dict[str, tuple[list[Any], Any]] = {
    "size_of": ([c_char_p], c_int32),
    "last_offset_of": ([c_char_p], c_int32),
    "kind": ([c_char_p], c_int32),
    "multiply": ([POINTER(Matrix), c_void_p, c_int32, c_void_p, c_int32], None),
    "multiply_many": ([POINTER(Matrix), c_void_p, c_int32, c_void_p, c_int32, c_int32], None),
    "bits_of_many": ([POINTER(Matrix)], c_int32),
    "unpack_int4": ([POINTER(Matrix), c_int32, c_int32, c_void_p, c_int32], None),
    "language_model_create": ([POINTER(LanguageModelSpec)], c_void_p),
    "language_model_destroy": ([c_void_p], None),
    "language_model_frame": ([c_void_p, POINTER(FrameArguments), c_int32], None),
    "codec_create": ([POINTER(CodecSpec)], c_void_p),
    "codec_destroy": ([c_void_p], None),
    "codec_encode": ([c_void_p, c_void_p, c_void_p, c_void_p, c_int32], None),
    "codec_decode": ([c_void_p, c_void_p, c_void_p, c_void_p, c_int32], None),
}
"""Argument and result types of ``personaplex_NAME``."""


def native_library() -> ctypes.CDLL | None:
    """The compiled code; None where there is none."""
    return _load()[0]


def native_status() -> str:
    """One line for people: what runs on the CPU, and why."""
    return _load()[1]


def multiply(matrix: Matrix, x: Tensor) -> Tensor:
    """x [rows, in] float32, contiguous → [rows, out] float32; made for few rows.

    For a quantised weight x is quantised to integers of 14 bits at least, with one step a group.
    """
    assert x.dtype is torch.float32 and x.shape[1] == matrix.columns
    y = x.new_empty(x.shape[0], matrix.rows)
    _needed().personaplex_multiply(byref(matrix), address(x), x.shape[0], address(y), torch.get_num_threads())
    return y


def multiply_many(matrix: Matrix, x: Tensor) -> Tensor:
    """x [rows, in] float32 or bfloat16, contiguous → [rows, out] in its dtype; made for many rows.

    x is rounded to ``rounding_of_many``.
    """
    assert x.dtype in FLOAT_KINDS and x.shape[1] == matrix.columns
    y = x.new_empty(x.shape[0], matrix.rows)
    _needed().personaplex_multiply_many(
        byref(matrix), address(x), x.shape[0], address(y), FLOAT_KINDS[x.dtype], torch.get_num_threads()
    )
    return y


def rounding_of_many(matrix: Matrix) -> torch.dtype:
    """The type that ``multiply_many`` computes with, by the processor's instructions.

    float32: nothing is rounded; bfloat16: x and the weight are; int8: x is quantised to int8 with one step for 32
    neighbours (for an int4 weight only).
    """
    return {32: torch.float32, 16: torch.bfloat16, 8: torch.int8}[_needed().personaplex_bits_of_many(byref(matrix))]


def unpack_int4_rows(matrix: Matrix, start: int, stop: int) -> Tensor:
    """Rows start..stop of an int4 weight, whole blocks of 64, as float32 [stop − start, in], a transposed view."""
    assert start % _BLOCK_ROWS == 0 and stop % _BLOCK_ROWS == 0
    out = torch.empty(matrix.columns, stop - start)
    blocks = (stop - start) // _BLOCK_ROWS
    _needed().personaplex_unpack_int4(byref(matrix), start, blocks, address(out), torch.get_num_threads())
    return out.t()


def address(tensor: Tensor) -> int:
    """Address of a contiguous CPU tensor's first number; the caller keeps the tensor alive."""
    assert tensor.is_contiguous() and tensor.device.type == "cpu", (tensor.shape, tensor.device)
    return tensor.data_ptr()


class Bound:
    """One object of the C++ side, and everything that its description points to, which lives as long."""

    def __init__(self) -> None:
        self.library = _needed()
        self.handle: int | None = None
        self._kept: list[object] = []

    def create(self, kind: str, spec: Structure) -> None:
        """Make the object, by ``personaplex_KIND_create``; it is destroyed with this one."""
        self.handle = getattr(self.library, f"personaplex_{kind}_create")(byref(spec))
        weakref.finalize(self, getattr(self.library, f"personaplex_{kind}_destroy"), self.handle)

    def keep(self, tensor: Tensor) -> int:
        """The address of a tensor that is kept alive. It must be contiguous: C++ would write into a copy of a state."""
        self._kept.append(tensor)
        return address(tensor)

    def array(self, kind: type[Structure], items: Sequence[Structure]) -> Any:
        """A C array of structs, kept alive, as a pointer."""
        array = (kind * len(items))(*items)
        self._kept.append(array)
        return ctypes.cast(pointer(array), POINTER(kind))


@cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    try:
        library = ctypes.CDLL(str(compiled_library()))
        _declare(library)
        _check_interface(library, STRUCTURES)
    except (NativeUnavailable, OSError, subprocess.SubprocessError) as error:
        reason = f"PyTorch's operators, several times slower than compiled code: {error}"
        log.warning("the CPU runs on %s", reason)
        return None, reason
    return library, "compiled code, made on this machine"


def _needed() -> ctypes.CDLL:
    library = native_library()
    assert library is not None, native_status()
    return library


def _declare(library: ctypes.CDLL) -> None:
    """Set the argument and result types of every function; raises NativeUnavailable if one is missing."""
    for name, (arguments, result) in _FUNCTIONS.items():
        try:
            function = getattr(library, f"personaplex_{name}")
        except AttributeError as error:
            raise NativeUnavailable(f"the compiled code has no function personaplex_{name}") from error
        function.argtypes, function.restype = arguments, result


def _check_interface(library: ctypes.CDLL, structures: Sequence[type[Structure]]) -> None:
    """Raise NativeUnavailable, naming the struct or the kind, where ``structures.py`` and ``interface.h`` differ."""
    for structure in structures:
        name, last = structure.__name__, structure._fields_[-1][0]
        there = library.personaplex_size_of(name.encode()), library.personaplex_last_offset_of(name.encode())
        here = ctypes.sizeof(structure), getattr(structure, last).offset
        if there != here:
            raise NativeUnavailable(
                f"the struct {name} has {here[0]} bytes and its last field at {here[1]} in native/structures.py, "
                f"{there[0]} and {there[1]} in cpp/interface.h; they must have the same fields"
            )
    for kind in MatrixKind:
        there = library.personaplex_kind(kind.name.encode())
        if there != kind:
            raise NativeUnavailable(
                f"the kind {kind.name} is {kind.value} in native/structures.py and {there} in cpp/interface.h"
            )
