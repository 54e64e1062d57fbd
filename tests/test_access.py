"""Who may ask the page for what, in which words it refuses, and what a request that fails leaves in the log."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace

import httpx
import pytest
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from personaplex.settings import Settings
from personaplex.web.access import MAX_BODY_BYTES, Access, host_names, is_allowed, is_from_elsewhere
from personaplex.web.listeners import LISTEN_WITHIN_SEC, Listeners, stream_of
from personaplex.web.log_format import PrivateFormatter
from personaplex.web.workarounds.front_end import without_foreign_tags
from personaplex.web.workarounds.gradio_urls import root_url


class Clock:
    now_sec = 0.0

    def __call__(self) -> float:
        return self.now_sec


# --- names


@pytest.mark.parametrize(
    ("settings", "environ", "host", "allowed"),
    [
        (Settings(), {}, "localhost:7860", True),
        (Settings(), {}, "app.localhost", True),
        (Settings(), {}, "[::1]:7860", True),
        (Settings(), {}, "192.168.1.5:7860", True),
        (Settings(), {}, "[::ffff:7f00:1]:7860", False),
        (Settings(), {}, "0.0.0.0:7860", False),
        (Settings(host="0.0.0.0"), {}, "0.0.0.0:7860", True),
        (Settings(), {"GRADIO_SERVER_NAME": "0.0.0.0"}, "0.0.0.0:7860", True),
        (Settings(), {}, "persona.example", False),
        (Settings(), {}, "abc.gradio.live", False),
        (Settings(), {}, "", False),
        (Settings(host="persona.example"), {}, "persona.example:7860", True),
        (Settings(share=True), {}, "abc.gradio.live", True),
        (Settings(share=True), {}, "gradio.live.evil.example", False),
        (Settings(), {"SPACE_HOST": "me-persona.hf.space"}, "me-persona.hf.space", True),
        (Settings(), {"SPACE_HOST": "me-persona.hf.space"}, "another.hf.space", False),
        (Settings(allowed_hosts="persona.example, *.talk.example"), {}, "PERSONA.example.", True),
        (Settings(allowed_hosts="persona.example, *.talk.example"), {}, "a.talk.example:443", True),
        (Settings(allowed_hosts="persona.example"), {}, "evil-persona.example", False),
    ],
)
def test_the_page_answers_to_its_own_names(settings, environ, host, allowed):
    assert is_allowed(host, host_names(settings, environ)) is allowed


def ask(app, path: str = "/", host: str = "localhost", **more) -> list[dict]:
    """The messages that the middleware sends for a request."""
    sent: list[dict] = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "method": "GET", "path": path, "query_string": b"", "headers": [(b"host", host.encode())],
        **more,
    }  # fmt: skip
    asyncio.run(Access(app, ("localhost",), Listeners())(scope, receive, send))
    return sent


async def fine(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"here"})


def test_another_name_and_closed_routes_are_refused_and_the_rest_let_through():
    assert ask(fine)[0]["status"] == 200
    assert ask(fine, host="evil.example")[0]["status"] == 421
    assert ask(fine, "/gradio_api/deep_link")[0]["status"] == ask(fine, "/monitoring/summary")[0]["status"] == 404
    assert ask(fine, "/persona/gradio_api/run/answer", root_path="/persona")[0]["status"] == 404


@pytest.mark.parametrize("path", ["/gradio_api/file=https://evil.example/", "/gradio_api/file/HTTP://evil.example/"])
def test_the_page_redirects_nobody_elsewhere(path):
    assert ask(fine, path)[0]["status"] == 404


@pytest.mark.parametrize("host", ["localhost:7860", "localhost.:7860", "a.localhost:7860", "127.0.0.1:7860"])
def test_pages_of_other_sites_cannot_use_the_one_on_this_machine(host):
    def status(method: str = "GET", **told: str) -> int:
        headers = [(b"host", host.encode())]
        headers += [(f"sec-fetch-{name}".encode(), value.encode()) for name, value in told.items()]
        sent: list[dict] = []

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": method, "path": "/", "query_string": b"", "headers": headers}
        names = host_names(Settings(), {})
        asyncio.run(Access(fine, names, Listeners())(scope, receive_nothing, send))
        return sent[0]["status"]

    assert status() == 200  # a script
    assert status("POST", site="same-origin", mode="cors") == status("POST", site="none", mode="navigate") == 200
    assert status("POST", site="cross-site", mode="cors") == status(site="cross-site", mode="no-cors") == 403
    assert status("POST", site="cross-site", mode="navigate") == 403  # a form
    assert status(site="cross-site", mode="navigate") == 200  # a link


def test_other_sites_may_use_a_public_page():
    headers = Headers({"host": "me-persona.hf.space", "sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"})
    assert not is_from_elsewhere(headers, "POST")


async def receive_nothing():
    return {"type": "http.request", "body": b"", "more_body": False}


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_that_is_no_upload_is_bounded(declared):
    """JSON of 100 MB took 2.5 GB and stopped the page for 20 s."""

    async def reading(request):
        return PlainTextResponse(str(len(await request.body())))

    routes = [Route(path, reading, methods=["POST"]) for path in ("/gradio_api/queue/join", "/gradio_api/upload")]
    app = Starlette(routes=routes, middleware=[Middleware(Access, names=("localhost",), listeners=Listeners())])

    async def told(path: str, size: int) -> int:
        body = b" " * size if declared else in_pieces(size)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return (await client.post(path, content=body)).status_code

    assert asyncio.run(told("/gradio_api/queue/join", MAX_BODY_BYTES)) == 200
    assert asyncio.run(told("/gradio_api/queue/join", MAX_BODY_BYTES + 1)) == 413
    assert asyncio.run(told("/gradio_api/upload", MAX_BODY_BYTES + 1)) == 200


async def in_pieces(size: int):
    while size > 0:
        yield b" " * min(size, 100_000)
        size -= 100_000


def test_the_browser_is_told_to_fetch_nothing_from_elsewhere():
    headers = dict(ask(fine)[0]["headers"])
    policy = headers[b"content-security-policy"].decode()
    assert "default-src 'self'" in policy and "http" not in policy and "*" not in policy


def test_a_request_that_fails_is_a_sentence_and_a_line_without_its_words(caplog):
    async def failing(scope, receive, send):
        raise ValueError("You are called Qwxyz.")

    with caplog.at_level(logging.INFO):
        start, body = ask(failing)
    assert start["status"] == 500 and b"could not work with this request" in body["body"]
    assert "ValueError at test_access" in caplog.text and "Qwxyz" not in caplog.text

    async def hung_up(scope, receive, send):
        raise ClientDisconnect

    assert ask(hung_up) == []


def test_tracebacks_name_the_error_and_not_what_a_visitor_sent():
    def logged(error: Exception) -> str:
        try:
            raise error
        except Exception as caught:
            found = (type(caught), caught, caught.__traceback__)
        return PrivateFormatter().format(logging.LogRecord("a", logging.ERROR, "b", 1, "it failed", None, found))

    told = logged(ValueError("You are called Qwxyz."))
    assert "Qwxyz" not in told and "test_access.py" in told and told.endswith("ValueError: (message left out)")
    assert "No space left" in logged(OSError(28, "No space left on device"))


# --- who listens


@pytest.mark.parametrize(
    ("path", "query", "session"),
    [
        ("/gradio_api/queue/data", b"session_hash=abc", "abc"),
        ("/persona/gradio_api/call/answer/12ab", b"", "12ab"),
        ("/gradio_api/queue/data", b"", None),
        ("/gradio_api/call/answer", b"", None),
        ("/", b"", None),
    ],
)
def test_a_stream_of_events_names_its_session(path, query, session):
    assert stream_of({"type": "http", "method": "GET", "path": path, "query_string": query}) == session
    assert stream_of({"type": "http", "method": "POST", "path": path, "query_string": query}) is None


def test_a_caller_listens_while_a_stream_is_open_and_a_little_longer():
    clock = Clock()
    listeners = Listeners(clock)
    assert listeners.is_listening("anna", asked_at=0.0), "it has time to open its stream"
    clock.now_sec = LISTEN_WITHIN_SEC + 1
    assert not listeners.is_listening("anna", asked_at=0.0)
    with listeners.listening("anna"), listeners.listening("anna"):
        clock.now_sec += 1000
        assert listeners.is_listening("anna", asked_at=0.0) and not listeners.is_listening("bert", asked_at=0.0)
    assert listeners.is_listening("anna", asked_at=0.0), "a broken connection is opened again"
    clock.now_sec += LISTEN_WITHIN_SEC
    assert not listeners.is_listening("anna", asked_at=0.0)


# --- addresses of files


@pytest.mark.parametrize(
    ("headers", "root_path", "root"),
    [
        ({"sec-fetch-site": "same-origin"}, "", "."),
        ({"sec-fetch-site": "none", "sec-fetch-mode": "navigate"}, "", "."),
        ({"origin": "http://persona.example"}, "/persona", "."),
        ({"accept": "text/html,*/*"}, "", "."),
        ({"sec-fetch-site": "cross-site", "origin": "https://other.example"}, "", "http://127.0.0.1:7860"),
        ({"accept": "*/*"}, "", "http://127.0.0.1:7860"),
        ({"sec-fetch-site": "same-origin"}, "https://persona.example/a", "https://persona.example/a"),
    ],
)
def test_the_pages_own_browser_resolves_addresses_itself(headers, root_path, root):
    request = SimpleNamespace(headers=headers, url="http://127.0.0.1:7860/gradio_api/queue/join")
    assert root_url(request, "/gradio_api/queue/join", root_path) == root


def test_tags_that_lead_elsewhere_are_left_out():
    html = (
        '<link rel="preconnect" href="https://fonts.googleapis.com" />\n<script\n\tsrc="https://cdnjs.example/a.js"\n'
        '\tasync\n></script><link rel="manifest" href="/manifest.json" /><script src="./assets/own.js"></script>'
    )
    kept = without_foreign_tags(html)
    assert "http" not in kept and './assets/own.js"></script>' in kept and 'href="./manifest.json"' in kept
