"""Gradio 5.50.0 and FastRTC 0.0.34: what they print, log and tell clients of their own accord.

Bugs: ``gradio.routes`` prints the content type of every component-server request, left over from debugging, and warns
of Gradio 6 about its own components. An event that fails is printed as a traceback whose message holds the values that
were sent ("didn't receive enough input values … Received inputs: [...]"), so typed words reach the log; the same
message, with paths of the machine, is the client's error. FastRTC prints tracebacks of its tracks the same way.
"""

from __future__ import annotations

import logging
import re
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import fastrtc.tracks
import fastrtc.utils
import gradio as gr
from gradio import queueing, routes, utils

from personaplex.web.log_format import place_of
from personaplex.web.workarounds.patch import replace

log = logging.getLogger(__name__)

_TOO_FEW = re.compile(r"didn't receive enough input values \(needed: (\d+), got: (\d+)\)")


def hush() -> None:
    """Log a failed event as one line without its values, and tell its client a sentence without the machine's."""
    replace(routes, print=lambda *_: None)
    warnings.filterwarnings("ignore", "The 'show_(api|download_button)' parameter", DeprecationWarning)
    for module in (queueing, routes, fastrtc.tracks, fastrtc.utils):
        replace(module, traceback=SimpleNamespace(print_exc=_log_failure))
    for module in (queueing, utils):
        replace(module, error_payload=_error_payload)


def _log_failure() -> None:
    error = sys.exc_info()[1]
    log.warning("a request failed: %s at %s", type(error).__name__, place_of(error))


def _error_payload(error: BaseException | None, show_error: bool) -> dict[str, Any]:
    """Gradio's payload for an error that was meant for the client, a plain sentence for any other."""
    if isinstance(error, gr.Error):
        return {"error": error.message, "duration": error.duration, "visible": error.visible, "title": error.title}
    return {"error": _sentence(error), "duration": None, "visible": True, "title": "Error"}


def _sentence(error: BaseException | None) -> str:
    too_few = _TOO_FEW.search(str(error))
    if too_few:
        return f"The call has {too_few[2]} inputs; {too_few[1]} are needed."
    return f"The server could not work with these inputs ({type(error).__name__})."
