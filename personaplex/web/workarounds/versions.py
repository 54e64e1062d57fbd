"""The versions that the page needs: gradio 5.50.0 with fastrtc 0.0.34.

fastrtc 0.0.34 does not support Gradio 6. Beside Gradio 6 pip falls back to fastrtc 0.0.1, an empty package, and the
page would end in a traceback at its first import.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from personaplex.errors import ConfigError

GRADIO, FASTRTC = "5.50.0", "0.0.34"
INSTALL = f'pip install "gradio=={GRADIO}" "fastrtc=={FASTRTC}"'


def check_versions(installed: Callable[[str], str] = version) -> None:
    """Raises ConfigError for a Gradio or FastRTC that the page cannot work with."""
    gradio, fastrtc = (_version(name, installed) for name in ("gradio", "fastrtc"))
    if gradio is None or gradio.split(".")[0] != GRADIO.split(".")[0]:
        raise ConfigError(
            f"{_found('gradio', gradio)}; the page needs {GRADIO} (fastrtc does not work with Gradio 6). Run: {INSTALL}"
        )
    if fastrtc != FASTRTC:
        raise ConfigError(f"{_found('fastrtc', fastrtc)}; the page needs {FASTRTC}. Run: {INSTALL}")


def _version(name: str, installed: Callable[[str], str]) -> str | None:
    try:
        return installed(name)
    except PackageNotFoundError:
        return None


def _found(name: str, found: str | None) -> str:
    return f"{name} is not installed" if found is None else f"{name} {found} is installed"
