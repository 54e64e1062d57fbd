"""The box "Tell it now" below the conversation: what the persona is told while it talks."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

import gradio as gr

from personaplex.config import MOST_TOLD_TOKENS
from personaplex.errors import PersonaPlexError
from personaplex.web.controls import words
from personaplex.web.html import verdict_html
from personaplex.web.updates import Wiring
from personaplex.web.workarounds.gradio_components import accept_any_value

log = logging.getLogger(__name__)

TOLD_WITHIN_SEC = 10.0
"""A text waits for at most the frames of all conversations and the texts before it."""
NOT_YET = "Nobody is listening. Press Start first."


@dataclass(frozen=True)
class TellBox:
    """The box, its button, and the line with the outcome."""

    text: gr.Textbox
    button: gr.Button
    outcome: gr.HTML

    @property
    def outputs(self) -> list[gr.components.Component]:
        return [self.text, self.button]


def build_tell_box() -> TellBox:
    """Lay it out; both are switched on while a conversation is live."""
    with gr.Row(elem_id="tell-row", equal_height=False):
        text = gr.Textbox(
            "", label="Tell it now", elem_id="tell", lines=1, max_lines=3, interactive=False, scale=5,
            info="Something new while you talk, as: The pool is closed today. It is kept like the persona's text.",
        )  # fmt: skip
        button = gr.Button("Tell it now", elem_id="tell-now", interactive=False, scale=1, min_width=120)
    accept_any_value(text)
    return TellBox(text, button, gr.HTML("", elem_id="told", padding=False))


def switched(live: bool) -> tuple[Any, Any]:
    """Updates of ``TellBox.outputs``; what is typed stays."""
    return gr.update(interactive=live), gr.update(interactive=live)


async def tell(wiring: Wiring, visitor: str, text: Any) -> tuple[Any, str]:
    """Tell a visitor's conversation a text → updates of the box, emptied once it is told, and of the outcome."""
    try:
        handle = wiring.handles.get(visitor)
        if handle is None:
            return gr.skip(), verdict_html(NOT_YET, good=False)
        telling = asyncio.wrap_future(handle.tell(words("text", text)))
        left = await asyncio.wait_for(telling, TOLD_WITHIN_SEC)
    except PersonaPlexError as error:  # its text may quote the visitor, so it goes to the page and not to the log
        return gr.skip(), verdict_html(f"Not told: {error}.", good=False)
    except asyncio.TimeoutError:
        return gr.skip(), verdict_html("Not told: the model did not answer in time. Please try again.", good=False)
    except Exception:
        log.exception("a conversation could not be told something")
        return gr.skip(), verdict_html("Not told: the model stopped working in this conversation.", good=False)
    return "", verdict_html(f"Told. {left} of {MOST_TOLD_TOKENS} tokens are left for this conversation.", good=True)


def wire_tell_box(box: TellBox, wiring: Wiring) -> None:
    """Connect the button and the Enter key."""

    async def tell_now(text: Any, request: gr.Request) -> tuple[Any, str]:
        return await tell(wiring, request.session_hash or "", text)

    gr.on(
        [box.button.click, box.text.submit], tell_now, box.text, [box.text, box.outcome],
        concurrency_limit=None, show_progress="hidden",
    )  # fmt: skip
