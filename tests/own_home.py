"""A user's folder of its own for a test, with the code that is compiled already: compiling takes half a minute."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path

from personaplex.native.compile import NativeUnavailable, compiled_library


def own_home(folder: Path) -> Path:
    """``folder``/home, made where it is not there."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    compiled = _compiled()
    if compiled is not None and not (home / "compiled").exists():
        (home / "compiled").symlink_to(compiled)
    return home


@functools.cache
def _compiled() -> Path | None:
    with contextlib.suppress(NativeUnavailable):
        return compiled_library().parent
    return None
