"""A web page of somebody's own that talks to `/v1/realtime`: the example, in Chromium."""

from __future__ import annotations

import functools
import http.server
import threading

import numpy as np
import pytest
from browser import ROOT
from client_server import serving
from test_client_realtime import TOKENIZER, talkative

pytestmark = pytest.mark.browser


class Files(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def site():
    """The examples' folder on a port of its own: another origin, under this machine's name."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Files, directory=ROOT / "examples"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_the_example_talks(visitor, site):
    with serving(talkative()) as served:
        served.model.tokenizer = TOKENIZER
        browser = visitor()
        browser.page.goto(f"{site}/realtime.html?url={served.url}/v1/realtime")
        browser.page.click("#start")
        browser.page.wait_for_function("words.textContent.includes('Hello Anna.')", timeout=30_000)
        conversation = served.session.conversations[0]
        served.wait_until(lambda: max(np.abs(frame).max() for frame in conversation.heard) > 0.05, 30)
        assert conversation.snapshot[2] == "You work for First Neuron Bank and your name is Sanni."
        assert "[" not in browser.page.locator("#words").inner_text() and not browser.errors
        browser.page.goto("about:blank")
        served.wait_until_free(5.0)


def test_a_page_of_another_site_is_refused(visitor, site):
    with serving(talkative()) as served:
        browser = visitor()
        browser.page.goto(f"{site.replace('127.0.0.1', 'a.localhost')}/realtime.html?url={served.url}/v1/realtime")
        told = browser.page.evaluate(
            "url => new Promise(done => { const s = new WebSocket(url, ['realtime']); s.onopen = () => done('open');"
            " s.onerror = () => done('refused'); })",
            f"{served.url}/v1/realtime",
        )
        assert told == "refused" and not served.session.conversations
