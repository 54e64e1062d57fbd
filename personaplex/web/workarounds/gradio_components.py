"""Gradio 5.50.0: choices that it validates too early, and events that it publishes as an API unasked."""

from __future__ import annotations

import gradio as gr


def accept_any_choice(dropdown: gr.Dropdown) -> None:
    """Hand the chosen value on unchecked; whoever looks it up refuses an unknown one.

    Bug: Gradio checks a choice against those of the session's own config. A page that stayed open while the server
    restarted names choices that the new server has not sent it, and gets "not in the list of choices".
    """
    dropdown.preprocess = lambda value: value


def publish_only(blocks: gr.Blocks, api_name: str) -> None:
    """Give scripts one function. Bug: every event is part of the API unless each call says otherwise."""
    for event in blocks.fns.values():
        if event.api_name != api_name:
            event.api_name, event.show_api = False, False
