"""The real page edge and engine's thread around a model that answers with what it hears.

``python tests/echo_app.py PORT`` serves a small page, and ``/tables``: what is held at the moment.
"""

from __future__ import annotations

import sys
import threading
import time

import gradio as gr
from fake_session import WORD, FakeSession, said
from fastrtc import WebRTC
from starlette.responses import JSONResponse
from starlette.routing import Route

from personaplex.conversation import ConversationRequest, Limits
from personaplex.duplex import DuplexServer
from personaplex.realtime import DuplexHandler, Wiring
from personaplex.rtc import NO_SERVERS, TRACK_CONSTRAINTS
from personaplex.text import Transcript

LIMITS = Limits(slots=2, waiting=2, conversation_sec=300)


class Pieces:
    """A vocabulary in which every token is one word."""

    def piece(self, token):
        return f"\u2581word{token}".encode()


def echo_session() -> FakeSession:
    session = FakeSession(LIMITS.slots, pieces=1)

    def answer(conversation, pcm):
        if len(conversation.heard) % 12 == 1:
            return said(pcm, WORD)
        conversation.heard[:-1] = [None] * (len(conversation.heard) - 1)  # an echo needs no memory
        return said(pcm)

    session.on_step = answer
    return session


def build(session: FakeSession, server: DuplexServer) -> tuple[gr.Blocks, WebRTC]:
    wiring = Wiring(
        server=lambda: server, new_transcript=lambda: Transcript(Pieces()), num_settings=1,
        read_settings=lambda values: ConversationRequest(text=values[0], record=True),
    )  # fmt: skip
    with gr.Blocks() as page:
        prompt = gr.Textbox("a pirate", elem_id="prompt")
        rtc = WebRTC(
            modality="audio", mode="send-receive", full_screen=False, elem_id="conversation",
            server_rtc_configuration=NO_SERVERS, rtc_configuration=NO_SERVERS, track_constraints=TRACK_CONSTRAINTS,
        )  # fmt: skip
        state, transcript = gr.HTML(elem_id="state"), gr.HTML(elem_id="transcript")
        rtc.stream(DuplexHandler(wiring), inputs=[rtc, prompt], outputs=[rtc], concurrency_limit=8)
        wiring.attach(rtc)
        rtc.on_additional_outputs(
            lambda update: (update.line, update.text), outputs=[state, transcript], concurrency_limit=None
        )
    return page, rtc


def tables(session: FakeSession, server: DuplexServer, rtc: WebRTC) -> dict:
    names = ("pcs", "connections", "data_channels", "additional_outputs", "handlers", "connection_timeouts")
    status = server.status()
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    session.conversations = [held for held in session.conversations if held.is_open]
    return {
        "tables": {name: len(getattr(rtc, name)) for name in names},
        "running": status.running,
        "waiting": status.waiting,
        "free": len(session.free),
        "dropped": status.dropped_frames,
        "rss_mb": pages * 4096 / 1e6,
        "threads": threading.active_count(),
    }


def main() -> None:
    session = echo_session()
    server = DuplexServer(session, LIMITS)
    page, rtc = build(session, server)
    app, *_ = page.launch(
        server_name="127.0.0.1", server_port=int(sys.argv[1]), quiet=True, ssr_mode=False, prevent_thread_lock=True,
        app_kwargs={"routes": [Route("/tables", lambda _: JSONResponse(tables(session, server, rtc)))]},
    )  # fmt: skip
    print("ready", flush=True)
    while True:
        time.sleep(1)


if __name__ == "__main__":
    main()
