"""The tab "Talk": settings, the live conversation, and its recording and transcript afterwards."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

import gradio as gr
from fastrtc import WebRTC

from personaplex.audio.cleaning import HOW_TO_GET, can_clean
from personaplex.audio.frames import from_int16
from personaplex.errors import InputError, PersonaPlexError
from personaplex.messages import ConversationRequest, ConversationServer
from personaplex.serving.hosted import Host
from personaplex.text.transcript import Transcript
from personaplex.web.controls import Choices, Controls, build_controls, wire_controls
from personaplex.web.exports import export
from personaplex.web.handler import DuplexHandler
from personaplex.web.html import (
    MICROPHONE,
    TRANSCRIPT_HEAD,
    conversation_state_html,
    meter_html,
    state_html,
    transcript_html,
)
from personaplex.web.tell_box import TellBox, build_tell_box, switched, wire_tell_box
from personaplex.web.updates import PageUpdate, Record, Wiring, state_line
from personaplex.web.visits import Visits
from personaplex.web.webrtc import TRACK_CONSTRAINTS, IceServers
from personaplex.web.workarounds.fastrtc_offers import guard
from personaplex.web.workarounds.gradio_components import accept_any_value
from personaplex.words.recogniser import HOW_TO_GET as HOW_TO_RECOGNISE

log = logging.getLogger(__name__)

TAB = "talk"  # its name in a visit
RECORD_WITHIN_SEC = 3.0
LAST_WORDS_WITHIN_SEC = 5.0
EMPTY_TRANSCRIPT = "The persona's words appear here while it speaks."
HEADPHONES = (
    "**Use headphones if you can.** Through loudspeakers the persona may hear itself and stop. "
    "The browser asks for your microphone; nothing is recorded unless you ask for it."
)


@dataclass(frozen=True)
class _Components:
    """The components of the conversation."""

    rtc: WebRTC
    state: gr.HTML
    transcript: gr.HTML
    meter: gr.HTML
    wait_for_greeting: gr.Checkbox
    record: gr.Checkbox
    clean: gr.Checkbox
    write: gr.Checkbox
    after: gr.Group
    both: gr.Audio
    picture: gr.HTML
    files: gr.Files
    tell: TellBox


def build_talk_tab(host: Host, visits: Visits) -> tuple[Controls, gr.HTML, WebRTC]:
    """Lay the tab out and wire it; returns the settings, the state line and the WebRTC component."""
    with gr.Row(equal_height=False, elem_classes="columns"):
        with gr.Column(scale=4, min_width=300, elem_classes="settings"):
            controls, (wait, record, clean, write) = build_controls(more=lambda: _conversation_settings(host))
            gr.Markdown("Settings are fixed when you press Start; changes count from the next conversation on.",
                        elem_classes="help")  # fmt: skip
        with gr.Column(scale=6, min_width=300):
            rtc, state, transcript, meter, tell = _conversation(host)
            after, both, picture, files = _afterwards()
    parts = _Components(rtc, state, transcript, meter, wait, record, clean, write, after, both, picture, files, tell)
    wire_controls(controls, host, visits)
    _wire(host, visits, controls, parts)
    return controls, state, rtc


def _conversation_settings(host: Host) -> tuple[gr.Checkbox, gr.Checkbox, gr.Checkbox, gr.Checkbox]:
    allowed = host.settings.record
    record = gr.Checkbox(
        False, label="Keep a recording for me", elem_id="record", interactive=allowed,
        info="Both voices and a picture of who spoke when, for you alone; deleted when you have left."
        if allowed else "The operator of this page has switched recordings off.",
    )  # fmt: skip
    wait = gr.Checkbox(
        True, label="Wait for the greeting", elem_id="wait-for-greeting",
        info="The persona hears silence until its greeting is over, so that noise does not cut it off.",
    )  # fmt: skip
    clean = gr.Checkbox(
        False, label="Remove the persona's echo here too", elem_id="clean", interactive=can_clean(),
        info="For loudspeakers whose sound your browser does not take out of the microphone; takes out rumble as well."
        if can_clean() else f"The operator of this page can add it: {HOW_TO_GET}.",
    )  # fmt: skip
    here = host.recognition is not None
    write = gr.Checkbox(
        here, label="Write down my words, too", elem_id="write-words", interactive=here,
        info="What the persona hears of you, beside its own words; in memory only, for you alone."
        if here else f"The operator of this page can add it: {HOW_TO_RECOGNISE}.",
    )  # fmt: skip
    for box in (wait, record, clean, write):
        accept_any_value(box)
    return wait, record, clean, write


def _conversation(host: Host) -> tuple[WebRTC, gr.HTML, gr.HTML, gr.HTML, TellBox]:
    gr.HTML("", elem_id="notice", padding=False)
    state = gr.HTML(state_html("loading", host.loading.sentence), elem_id="state", padding=False)
    rtc = WebRTC(
        label="Conversation", show_label=False, modality="audio", mode="send-receive", full_screen=False,
        elem_id="conversation", track_constraints=TRACK_CONSTRAINTS,  # ICE servers: ``guard``, for each visitor
        button_labels={"start": "Start", "stop": "Stop", "waiting": "Connecting"},
        icon_button_color="var(--primary-600)", pulse_color="var(--primary-500)",
    )  # fmt: skip
    gr.HTML(MICROPHONE, elem_id="microphone", padding=False)
    gr.Markdown(HEADPHONES, elem_classes="help")
    with gr.Column(elem_classes="card", min_width=280):
        gr.HTML(TRANSCRIPT_HEAD.format(id="transcript"), padding=False)
        transcript = gr.HTML(
            transcript_html((), empty=EMPTY_TRANSCRIPT), elem_id="transcript", elem_classes="scroller", padding=False
        )
    tell = build_tell_box()
    meter = gr.HTML(meter_html(None), elem_id="meter", padding=False)
    return rtc, state, transcript, meter, tell


def _afterwards() -> tuple[gr.Group, gr.Audio, gr.HTML, gr.Files]:
    with gr.Column(visible=False, elem_id="after") as after:
        gr.Markdown("## Your conversation", elem_classes="section")
        picture = gr.HTML("", elem_id="picture", padding=False)
        both = gr.Audio(
            label="Both voices: persona left, you right", interactive=False, elem_id="both",
            show_download_button=True,
        )  # fmt: skip
        files = gr.Files(label="To keep: transcript as text, JSON and WebVTT, and the picture", elem_id="downloads",
                         interactive=False)  # fmt: skip
    return after, both, picture, files


# ---------------------------------------------------------------------------------- wiring


def read_request(host: Host, values: list[Any]) -> ConversationRequest:
    """The tab's inputs, in order → the request; raises PersonaPlexError with a sentence for the visitor."""
    *choices, wait, record, clean, write = values
    if host.hosted is None:
        raise InputError("The model is not there yet. Please press Start again in a moment.")
    return Choices(*choices).request(
        host.hosted, wait_for_greeting=bool(wait), record=bool(record) and host.settings.record,
        clean_microphone=bool(clean) and can_clean(), write_user_words=bool(write) and host.recognition is not None,
    )  # fmt: skip


def _wire(host: Host, visits: Visits, controls: Controls, parts: _Components) -> None:
    settings = [*controls.inputs, parts.wait_for_greeting, parts.record, parts.clean, parts.write]
    limits = host.limits

    def server() -> ConversationServer | None:
        if host.hosted is None and host.loading.error:
            raise InputError(host.loading.sentence)
        return host.hosted.server if host.hosted else None

    def new_transcript() -> Transcript:
        assert host.hosted is not None, "asked for before the server is there"
        return host.hosted.new_transcript()

    def finished(record: Record) -> None:
        if record.visitor is not None:
            visits.keep(record.visitor, TAB, record)

    def show_record(request: gr.Request) -> tuple[Any, ...]:
        # Stop closes the connection before its last update reaches the page.
        off = (*switched(False), "")
        return *record_updates(visits, request.session_hash or "", _sample_rate_hz(host)), *off

    wiring = Wiring(
        server=server,
        new_transcript=new_transcript,
        read_settings=lambda values: read_request(host, values),
        num_settings=len(settings),
        on_finished=finished,
        recognition=host.recognition,
    )
    parts.rtc.stream(
        DuplexHandler(wiring), inputs=[parts.rtc, *settings], outputs=[parts.rtc],
        concurrency_limit=host.settings.most_at_once + limits.waiting + 4,
    )  # fmt: skip
    wiring.attach(parts.rtc)
    guard(parts.rtc, IceServers.of(host.settings))
    wire_tell_box(parts.tell, wiring)
    quiet: dict[str, Any] = dict(concurrency_limit=None, show_progress="hidden")
    shown = [parts.state, parts.transcript]
    ended = parts.rtc.on_additional_outputs(live_updates, outputs=[*shown, parts.meter, *parts.tell.outputs], **quiet)
    after = [parts.after, parts.both, parts.picture, parts.files]
    ended.then(show_record, None, [*shown, *after, *parts.tell.outputs, parts.tell.outcome], **quiet)


def live_updates(update: PageUpdate) -> tuple[Any, ...]:
    """Updates while a conversation lasts: state, transcript, meter, and the box in which it is told something."""
    return (
        conversation_state_html(update.state, update.line),
        transcript_html(update.words, update.user_words, live=update.state.is_live, empty=EMPTY_TRANSCRIPT),
        meter_html(update.meter, update.round_trip_ms),
        *switched(update.state.is_live),
    )


def _sample_rate_hz(host: Host) -> int:
    assert host.hosted is not None, "a conversation has been"
    return host.hosted.sample_rate_hz


def record_updates(visits: Visits, visitor: str, sample_rate_hz: int) -> tuple[Any, ...]:
    """Updates after a conversation: state, transcript, group, both voices, picture, files.

    A conversation without a word or sound leaves the files of the one before in place.
    """
    record = _wait_for_record(visits, visitor)
    as_before = (gr.skip(),) * 4
    if record is None:
        return gr.skip(), gr.skip(), *as_before
    user_words = record.user_words(LAST_WORDS_WITHIN_SEC)
    # Stop closes the connection before its last update reaches the page.
    told = (
        conversation_state_html(record.state, state_line(record.state)),
        transcript_html(record.transcript.words, user_words, empty=EMPTY_TRANSCRIPT),
    )
    if not (record.transcript.text or user_words or len(record.agent)):
        return *told, *as_before
    agent, heard = map(from_int16, (record.agent, record.heard))
    try:
        folder = visits.new_folder(visitor, TAB)
        files = export(
            folder, "conversation", record.transcript, agent, heard, user_words, sample_rate_hz=sample_rate_hz
        )
    except (OSError, PersonaPlexError) as error:
        log.warning("the files of a conversation cannot be written: %s", error)
        gr.Warning("The server has no room for the files of this conversation; its words are on the page.")
        return *told, *as_before
    both = gr.update(value=files.stereo and str(files.stereo), visible=files.stereo is not None)
    return *told, gr.update(visible=True), both, files.picture_html, files.downloads


def _wait_for_record(visits: Visits, visitor: str) -> Record | None:
    """The page may ask a moment before the handler has delivered the record."""
    until = time.monotonic() + RECORD_WITHIN_SEC
    while (record := visits.take(visitor, TAB)) is None and time.monotonic() < until:
        time.sleep(0.05)
    return record
