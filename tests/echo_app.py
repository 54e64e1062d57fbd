"""Small pages that answer with what they hear.

``python tests/echo_app.py --port N`` has the real edge and engine's thread around a model that does nothing;
``--model FOLDER`` has a real model do its step, whose answer is replaced; ``--bare`` has FastRTC alone.
``/tables`` says what is held at the moment.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import threading
import time
from dataclasses import replace

import gradio as gr
import numpy as np
from fake_session import WORD, FakeSession, said
from fastrtc import AsyncStreamHandler, WebRTC
from starlette.responses import JSONResponse
from starlette.routing import Route

from personaplex.audio.frames import FrameBuffer
from personaplex.messages import ConversationRequest, Limits
from personaplex.serving.server import DuplexServer
from personaplex.text.transcript import Transcript
from personaplex.web.handler import DuplexHandler
from personaplex.web.updates import Wiring
from personaplex.web.webrtc import TRACK_CONSTRAINTS, IceServers
from personaplex.web.workarounds.fastrtc_offers import guard

LIMITS = Limits(slots=2, waiting=2, conversation_sec=300)


class Pieces:
    """A vocabulary in which every token is one word."""

    def piece(self, token):
        return f"\u2581word{token % 100}".encode()


class BareEcho(AsyncStreamHandler):
    """Frames of 80 ms, handed back at once: what no engine can beat."""

    def __init__(self):
        super().__init__("mono", output_sample_rate=24_000, input_sample_rate=24_000)
        self.frames, self.waiting = FrameBuffer(), asyncio.Queue()

    def copy(self):
        return BareEcho()

    resample, _to_packets = DuplexHandler.resample, None

    async def receive(self, frame):
        for whole in self.frames.push(frame[1][0].astype(np.float32) / 32768):
            self.waiting.put_nowait((24_000, (whole * 32768).astype(np.int16)[None]))

    async def emit(self):
        return await self.waiting.get()


class EchoOf:
    """A real session whose answers are what it heard."""

    def __init__(self, session):
        self._session = session

    def __getattr__(self, name):
        return getattr(self._session, name)

    def step_together(self, heard):
        outputs = self._session.step_together(heard)
        return {who: replace(output, pcm=heard[who]) for who, output in outputs.items()}


def echo_session() -> FakeSession:
    session = FakeSession(LIMITS.slots, pieces=1)

    def answer(conversation, pcm):
        if len(conversation.heard) % 12 == 1:
            return said(pcm, WORD)
        conversation.heard[:-1] = [None] * (len(conversation.heard) - 1)  # an echo needs no memory
        return said(pcm)

    session.on_step = answer
    return session


def model_session(model: str, dtype: str) -> EchoOf:
    from personaplex.session.session import Session
    from personaplex.weights.load import load_model

    loaded = load_model(model, format=dtype, device="cpu")
    return EchoOf(Session(loaded, slots=1, window="published"))


def build(handler, settings: int) -> tuple[gr.Blocks, WebRTC]:
    with gr.Blocks() as page:
        prompt = gr.Textbox("a pirate", elem_id="prompt")
        rtc = WebRTC(
            modality="audio", mode="send-receive", full_screen=False, elem_id="conversation",
            track_constraints=TRACK_CONSTRAINTS,
        )  # fmt: skip
        state, transcript = gr.HTML(elem_id="state"), gr.HTML(elem_id="transcript")
        rtc.stream(handler, inputs=[rtc, prompt][: 1 + settings], outputs=[rtc], concurrency_limit=8)
        guard(rtc, IceServers(local_only=True))
        rtc.on_additional_outputs(
            lambda update: (update.line, update.text), outputs=[state, transcript], concurrency_limit=None
        )
    return page, rtc


def tables(session, server: DuplexServer | None, rtc: WebRTC) -> dict:
    names = ("pcs", "connections", "data_channels", "additional_outputs", "handlers", "connection_timeouts")
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    found = {
        "tables": {name: len(getattr(rtc, name)) for name in names},
        "rss_mb": pages * 4096 / 1e6,
        "threads": threading.active_count(),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "lost_packets": sum(getattr(handler, "lost_packets", 0) for handler in list(rtc.handlers.values())),
    }
    if isinstance(session, FakeSession):
        status = server.status()
        session.conversations = [held for held in session.conversations if held.is_open]
        found |= dict(running=status.running, waiting=status.waiting, free=len(session.free))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--bare", action="store_true")
    parser.add_argument("--model")
    parser.add_argument("--dtype", default="auto")
    given = parser.parse_args()
    session = server = None
    if given.bare:
        page, rtc = build(BareEcho(), 0)
    else:
        session = model_session(given.model, given.dtype) if given.model else echo_session()
        server = DuplexServer(session, LIMITS if given.model is None else replace(LIMITS, slots=1))
        wiring = Wiring(
            server=lambda: server, new_transcript=lambda: Transcript(Pieces()), num_settings=1,
            read_settings=lambda values: ConversationRequest(text=values[0], record=True),
        )  # fmt: skip
        page, rtc = build(DuplexHandler(wiring), 1)
        wiring.attach(rtc)
    page.launch(
        server_name="127.0.0.1", server_port=given.port, quiet=True, ssr_mode=False, prevent_thread_lock=True,
        app_kwargs={"routes": [Route("/tables", lambda _: JSONResponse(tables(session, server, rtc)))]},
    )  # fmt: skip
    print("ready", flush=True)
    while True:
        time.sleep(1)


if __name__ == "__main__":
    main()
