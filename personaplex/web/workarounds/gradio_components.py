"""Gradio 5.50.0: choices validated too early and badly, events published as an API unasked or run past the queue."""

from __future__ import annotations

from typing import Any

import gradio as gr

from personaplex.web.workarounds.patch import replace


def accept_any_value(component: gr.components.Component) -> None:
    """Hand a value on unchecked, as it came; whoever uses it refuses it in a sentence.

    Bugs: Gradio checks a choice against those of the session's own config, so a page that stayed open while the server
    restarted gets "not in the list of choices". A value of the wrong type is a raw TypeError; in a WebRTC component's
    inputs it is lost, and the conversation waits in vain for its settings.
    """
    replace(component, preprocess=_as_it_came)


def _as_it_came(value: Any) -> Any:
    return value


def publish_only(blocks: gr.Blocks, api_name: str) -> None:
    """Give scripts one function. Bug: every event is part of the API unless each call says otherwise."""
    for event in blocks.fns.values():
        if event.api_name != api_name:
            event.api_name, event.show_api = False, False


def queue_all(blocks: gr.Blocks) -> None:
    """Send every event through the queue.

    Bug: pressing an example is an event without one, so the browser calls ``/run/predict``, a route that runs any
    event of the page past the queue and its limits. The page keeps that route closed.
    """
    for event in blocks.fns.values():
        event.queue = True
