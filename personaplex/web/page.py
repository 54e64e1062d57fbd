"""The page: three tabs on one model, built here from the ``…_tab`` modules."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from fastrtc import WebRTC
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from personaplex.files import shipped_folder
from personaplex.serving.hosted import Host
from personaplex.settings import Settings
from personaplex.web.about_tab import build_about_tab, findings_html, running_markdown
from personaplex.web.access import Access, host_names
from personaplex.web.controls import ready_updates
from personaplex.web.file_tab import API_NAME, Questions, build_file_tab, example_questions
from personaplex.web.housekeeping import housekeeping
from personaplex.web.html import READY_LINE, is_of_loading, state_html
from personaplex.web.listeners import Listeners
from personaplex.web.talk_tab import build_talk_tab
from personaplex.web.visits import INCOMING, Visits
from personaplex.web.workarounds.front_end import keep_to_own_host
from personaplex.web.workarounds.gradio_components import publish_only, queue_all
from personaplex.web.workarounds.gradio_memory import MOST_SESSIONS, leave_events_unsummed
from personaplex.web.workarounds.gradio_uploads import receive_uploads_in
from personaplex.web.workarounds.gradio_urls import use_relative_urls
from personaplex.web.workarounds.logs import hush

TITLE = "PersonaPlex"
TAGLINE = "Talk with a persona of your own making. It listens while it speaks, so you can interrupt it."
POLL_SEC = 1.0
PRESENCE_SHARE = 0.1  # a page reports its presence this often, as a share of ``keep_sec``
MAX_UPLOAD = "50mb"
MOST_EVENTS = 500
"""Queued events of all visitors together; on ZeroGPU Gradio's own limit is 1, which refuses a page's second one."""
SPARE_EVENTS = 40
"""Threads for short events, beside those held for as long as a visitor talks or waits."""
FORGET_UPLOADS_SEC = (600, 6 * 3600)
"""(interval, age) of Gradio's own deletion of uploads: a second net below the one at the end of a visit."""

SCRIPTS = ("microphone.js", "page.js")
FONTS = ("ui-sans-serif", "system-ui", "sans-serif")
MONO_FONTS = ("ui-monospace", "Consolas", "monospace")


@dataclass(frozen=True)
class Page:
    """The page and what it keeps for its visitors."""

    blocks: gr.Blocks
    visits: Visits
    listeners: Listeners
    rtc: WebRTC

    @property
    def connections(self) -> int:
        """Visitors with an open WebRTC connection."""
        return len(self.rtc.pcs)


def build_page(host: Host, folder: Path) -> Page:
    """The whole page, ready to launch; the model may still be loading.

    ``folder``: this run's alone, for what visitors leave. Gradio is told of it through ``GRADIO_TEMP_DIR``.
    """
    _repair_gradio(folder)
    listeners = Listeners()
    with _blocks() as blocks:
        visits = Visits(folder, uploaded=blocks.upload_file_set, silent_sec=host.settings.keep_sec)
        header = gr.HTML(header_html(host), elem_id="header", padding=False)
        with gr.Tabs():
            with gr.Tab("Talk", id="talk"):
                talk, state, rtc = build_talk_tab(host, visits)
            with gr.Tab("From a file", id="file"):
                file, questions = build_file_tab(host, visits, listeners)
            with gr.Tab("About", id="about"):
                about, findings = build_about_tab()
        poll = gr.Timer(POLL_SEC)
        fixed = [header, state, about, findings, poll]
        chosen = [state, talk.persona, talk.prompt, file.persona, file.prompt]
        outputs = [*fixed, *_changed_by_loading(talk), *_changed_by_loading(file)]

        def refresh(
            shown: str, talk_persona: str, talk_prompt: str, file_persona: str, file_prompt: str
        ) -> dict[Any, Any]:
            """Updates while the model loads, and once more when it is ready."""
            updates = {header: header_html(host), about: running_markdown(host), findings: findings_html(host)}
            if host.hosted is None:
                phase = "ended-failed" if host.loading.error else "loading"
                again = gr.Timer(active=False) if host.loading.error else gr.skip()
                return {**updates, state: state_html(phase, host.loading.sentence), poll: again}
            return {
                **updates,
                # A visitor who pressed Start meanwhile sees the state of that conversation.
                state: state_html("ready", READY_LINE) if is_of_loading(shown or "") else gr.skip(),
                poll: gr.Timer(active=False),
                **ready_updates(talk, host.hosted, talk_persona, talk_prompt or ""),
                **ready_updates(file, host.hosted, file_persona, file_prompt or ""),
            }

        quiet: dict[str, Any] = dict(show_progress="hidden", concurrency_limit=None)
        blocks.load(refresh, chosen, outputs, **quiet)
        poll.tick(refresh, chosen, outputs, **quiet)
        presence = gr.Timer(PRESENCE_SHARE * host.settings.keep_sec)
        presence.tick(_still_here(visits), None, None, **quiet)
        blocks.unload(_cancel_on_leaving(questions))
        publish_only(blocks, API_NAME)
        queue_all(blocks)
    blocks.queue(max_size=MOST_EVENTS)
    return Page(blocks, visits, listeners, rtc)


def _repair_gradio(folder: Path) -> None:
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    hush()
    leave_events_unsummed()
    receive_uploads_in(folder / INCOMING)
    use_relative_urls()
    keep_to_own_host()


def _blocks() -> gr.Blocks:
    here = Path(__file__).parent
    scripts = [(here / name).read_text(encoding="utf-8") for name in SCRIPTS]
    return gr.Blocks(
        title=TITLE, theme=_theme(), css=(here / "page.css").read_text(encoding="utf-8"), analytics_enabled=False,
        head="".join(f"<script>{script}</script>" for script in scripts), delete_cache=FORGET_UPLOADS_SEC,
    )  # fmt: skip


def _theme() -> gr.themes.Base:
    """Plain labels, visible borders, system fonts (Gradio's default would fetch a web font)."""
    plain = dict(
        background_fill="none", background_fill_dark="none", text_color="*body_text_color",
        text_color_dark="*body_text_color", padding="0",
    )  # fmt: skip
    labels = {f"{kind}_{name}": value for kind in ("block_title", "block_label") for name, value in plain.items()}
    labels |= dict(block_label_padding="*spacing_md *spacing_lg", block_label_text_weight="600")
    return gr.themes.Soft(primary_hue="teal", neutral_hue="slate", font=FONTS, font_mono=MONO_FONTS).set(
        **labels,
        block_info_text_size="*text_sm",
        block_info_text_color="*neutral_500",
        body_text_color_subdued="*neutral_500",
        block_border_width="1px",
        block_border_color="*border_color_primary",
        block_shadow="none",
        checkbox_border_color="*neutral_400",
        input_border_width="1px",
        input_border_color="*border_color_primary",
        input_shadow="none",
        link_text_color="*primary_700",
        link_text_color_dark="*primary_300",
    )


def _changed_by_loading(controls: Any) -> list[Any]:
    return [controls.persona, controls.prompt, controls.count, controls.voice, controls.sample]


def _still_here(visits: Visits) -> Callable[..., Any]:
    async def tell(request: gr.Request) -> None:
        visits.seen(request.session_hash or "")

    return tell


def _cancel_on_leaving(questions: Questions) -> Callable[..., None]:
    """Cancels a visitor's question. Their files stay for a while: this may be a connection that merely broke off."""

    def leave(request: gr.Request) -> None:
        questions.cancel(request.session_hash or "")

    return leave


def header_html(host: Host) -> str:
    """The page's title with a badge for the model that runs."""
    hosted = host.hosted
    if hosted is not None:
        badge = f"{hosted.name} · {hosted.format} · {hosted.device}"
    else:
        badge = "no model" if host.loading.error else "loading …"
    return (
        f'<header><h1>{TITLE}</h1><span class="badge" title="the model that runs here">{escape(badge)}</span>'
        f"<p>{TAGLINE}</p></header>"
    )


def own_routes(host: Host) -> list[Route]:
    """``/health`` (503 until conversations can be held) and ``/metrics`` for the operator; the page's manifest."""

    def health(_: Request) -> Response:
        status, body = host.metrics.health()
        return JSONResponse({**body, "loading": host.loading.sentence if host.hosted is None else ""}, status)

    def metrics(_: Request) -> Response:
        return Response(host.metrics.exposition(), media_type=host.metrics.content_type)

    def manifest(_: Request) -> Response:
        named = {"name": TITLE, "start_url": "./", "display": "standalone", "icons": []}
        return JSONResponse(named, media_type="application/manifest+json")

    return [Route("/health", health), Route("/metrics", metrics), Route("/manifest.json", manifest)]


def access(settings: Settings, listeners: Listeners, sockets: Sequence[BaseRoute]) -> Middleware:
    """Who may ask for what, on the page's port and on others."""
    return Middleware(Access, names=host_names(settings), listeners=listeners, sockets=sockets)


def launch_options(host: Host, page: Page, sockets: Sequence[BaseRoute] = ()) -> dict[str, Any]:
    """The arguments of ``gr.Blocks.launch``; ``sockets``: websockets of other programs, on the page's port."""
    settings = host.settings
    folders = {str(path.parent) for path in example_questions()}
    folders.add(str(shipped_folder("voices", "catalogue.json")))
    if settings.offer_saved_voices:
        folders.add(str(settings.home / "voices"))
    return dict(
        server_name=settings.host,
        server_port=settings.port,
        share=settings.share,
        ssl_certfile=settings.ssl_cert and str(settings.ssl_cert),
        ssl_keyfile=settings.ssl_key and str(settings.ssl_key),
        ssl_verify=settings.ssl_cert is None,
        max_file_size=MAX_UPLOAD,
        state_session_capacity=MOST_SESSIONS,
        allowed_paths=sorted(folders),
        blocked_paths=[str(page.visits.root / INCOMING)],
        enable_monitoring=False,
        ssr_mode=False,
        show_error=True,
        quiet=True,
        prevent_thread_lock=True,
        max_threads=SPARE_EVENTS + 2 * (settings.most_at_once + settings.waiting),
        app_kwargs={
            "routes": [*own_routes(host), *sockets],
            "middleware": [access(settings, page.listeners, sockets)],
            "lifespan": housekeeping(page.blocks, page.visits, settings.keep_sec),
        },
    )
