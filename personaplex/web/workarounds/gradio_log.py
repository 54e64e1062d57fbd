"""Gradio 5.50.0: what it prints and warns of by itself.

Bugs: ``gradio.routes`` prints the content type of every component-server request (WebRTC sends one for each ICE
candidate), left over from debugging; and its own components trigger deprecation warnings about Gradio 6.
"""

from __future__ import annotations

import warnings

import gradio.routes


def hush() -> None:
    """Keep Gradio's debugging output and its warnings about Gradio 6 out of the log."""
    gradio.routes.print = lambda *_: None
    warnings.filterwarnings("ignore", "The 'show_(api|download_button)' parameter", DeprecationWarning)
