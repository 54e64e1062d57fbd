"""``python app.py``, really running, and the programs that talk beside its page."""

from __future__ import annotations

import signal
import time

import httpx
import pytest
from client_server import MoshiClient
from page_app import running_app
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from benchmarks.ports import free_port
from personaplex.messages import STOPPING

KEY = "a-key:of/its+own"
PATH = "/api/chat?text_prompt=&voice_prompt=VOICE"


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    port = free_port()
    flags = ("--moshi-port", str(port), "--conversations", "2", "--waiting", "1")
    with running_app(tmp_path_factory.mktemp("app"), *flags, PERSONAPLEX_API_KEY=KEY) as app:
        app.own_port = f"ws://127.0.0.1:{port}"
        yield app


def client(app, path: str = PATH, own_port: bool = False, key: str = KEY) -> MoshiClient:
    base = app.own_port if own_port else app.address.replace("http:", "ws:")
    return MoshiClient(
        connect(base + path, additional_headers={"Authorization": f"Bearer {key}"}, max_size=None, open_timeout=60)
    )


def figures(app) -> str:
    return httpx.get(app.address + "/metrics", timeout=60).text


@pytest.mark.parametrize("own_port", [False, True])
def test_both_ports_talk_and_the_figures_count_them(app, own_port):
    talking = client(app, own_port=own_port).wait_for_handshake()
    talking.talk(5)
    assert "personaplex_conversations 1.0" in figures(app)
    assert httpx.get(app.address + "/health", timeout=60).json()["running"] == 1
    talking.socket.close()
    until = time.monotonic() + 10
    while "personaplex_conversations 0.0" not in figures(app):
        assert time.monotonic() < until


def test_what_is_not_a_protocols_is_closed_on_both_ports(app):
    for own_port, path in ((False, "/gradio_api/stream/1"), (False, "/"), (True, "/v1/realtime"), (True, "/")):
        with pytest.raises(InvalidStatus) as refused:
            client(app, path, own_port)
        assert refused.value.response.status_code == 404
    with pytest.raises(InvalidStatus) as refused:
        client(app, key="wrong")
    assert refused.value.response.status_code == 401
    assert httpx.get(app.address + "/api/chat", timeout=60).status_code == 404
    assert httpx.get(app.own_port.replace("ws:", "http:") + "/api/chat", timeout=60).status_code == 404


def test_everybody_is_told_when_the_server_stops_and_nothing_of_theirs_is_logged(app):
    talking = [client(app, own_port=own_port).wait_for_handshake() for own_port in (False, True)]
    waiting = client(app, "/api/chat?text_prompt=You+are+Qwxyz.")
    app.process.send_signal(signal.SIGTERM)
    for each in (*talking, waiting):
        assert each.until_closed() == 1001 and each.error == STOPPING
    assert app.process.wait(timeout=60) == 0
    log = app.log.read_text()
    assert "Traceback" not in log and "ERROR" not in log and "Qwxyz" not in log and KEY not in log
