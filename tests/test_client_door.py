"""Who may open a websocket, and what the others are told."""

from __future__ import annotations

import base64
import json
import socket
import time

import pytest
from client_server import MoshiClient, serving
from starlette.datastructures import Headers
from websockets.exceptions import InvalidStatus

from personaplex.errors import ConfigError
from personaplex.protocols.door import Door, key_of
from personaplex.settings import Settings

KEY = "a-key:of/its+own"


def status(served, path="/api/chat", **more) -> int:
    """101 when it is let in."""
    try:
        served.connect(path, **more).close()
    except InvalidStatus as refused:
        body = refused.response.body
        assert body.startswith(b"{") and b"Traceback" not in body and KEY.encode() not in body
        return refused.response.status_code
    return 101


@pytest.fixture(scope="module")
def open_door():
    with serving(conversations=8) as served:
        yield served


@pytest.fixture(scope="module")
def locked():
    with serving(conversations=8, api_key=KEY, allowed_origins="https://app.example, http://localhost:3000/") as served:
        yield served


@pytest.mark.parametrize("path", ["/api/chat", "/bank/api/chat"])
@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        (None, 101), ("http://127.0.0.1:9000", 101), ("https://127.0.0.1", 101), ("https://evil.example", 403),
        ("http://localhost:9000", 403), ("null", 403), ("http://[", 403), ("http://127.0.0.1.evil.example", 403),
    ],
)  # fmt: skip
def test_a_web_page_of_another_site_may_not_talk(open_door, path, origin, expected):
    """Browsers let every web page open websockets to everywhere, to a page on this machine too."""
    assert status(open_door, path, origin=origin) == expected


def test_the_operator_lists_origins_that_may(locked):
    key = {"Authorization": f"Bearer {KEY}"}
    for origin, without, expected in (
        ("https://app.example", 401, 101), ("http://localhost:3000", 401, 101), ("https://app.example:444", 403, 101),
        ("https://evil.example", 403, 101),
    ):  # fmt: skip
        assert status(locked, origin=origin) == without
        assert status(locked, origin=origin, additional_headers=key) == expected, (
            "who has the key may come from anywhere"
        )


@pytest.mark.parametrize(
    ("headers", "given"),
    [
        ({"authorization": "Bearer abc"}, "abc"),
        ({"authorization": "bearer  abc "}, "abc"),
        ({"authorization": "Basic " + base64.b64encode(b"me:a:b").decode()}, "a:b"),
        ({"authorization": "Basic !!"}, ""),
        ({"authorization": "Basic " + base64.b64encode(b"\xff").decode()}, ""),
        ({"sec-websocket-protocol": "realtime, openai-insecure-api-key.abc, other"}, "abc"),
        ({"sec-websocket-protocol": "realtime"}, ""),
        ({}, ""),
    ],
)
def test_a_key_is_a_bearers_a_password_or_a_subprotocol(headers, given):
    assert key_of(Headers(headers)) == given


def test_without_the_key_nobody_comes_in(locked):
    def with_key(key: str) -> int:
        return status(locked, additional_headers={"Authorization": f"Bearer {key}"})

    assert status(locked) == with_key("wrong") == with_key("") == 401
    assert with_key(KEY) == 101
    assert with_key(KEY[:-1]) == with_key(KEY + "\xe4") == 401


def test_a_key_is_one_that_http_carries_and_is_left_out_of_what_is_printed():
    assert KEY not in repr(Settings(api_key=KEY))
    for unusable in ("two words", "ä", "a\n"):
        with pytest.raises(ConfigError, match="api_key holds a blank") as refused:
            Settings(api_key=unusable)
        assert unusable not in str(refused.value)


@pytest.mark.parametrize("path", ["/", "/chat", "/api/chat/more", "/gradio_api/stream/1", "/a/b/api/chat"])
def test_other_addresses_are_closed(open_door, path):
    assert status(open_door, path) == 404


def test_a_name_that_is_not_the_pages_is_not_answered(open_door):
    """DNS rebinding: there Origin and Host agree."""
    port = open_door.url.rsplit(":", 1)[1]
    for name in ("evil.example", "127.0.0.1.evil.example"):
        more = {"additional_headers": {"Origin": f"http://{name}:{port}"}}
        assert status_of_host(open_door, f"{name}:{port}", more["additional_headers"]) == 421


def status_of_host(served, host: str, headers: dict) -> int:
    import httpx

    upgrade = {
        "Host": host, "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode(), **headers,
    }  # fmt: skip
    return httpx.get(served.url.replace("ws:", "http:") + "/api/chat", headers=upgrade, timeout=20).status_code


def test_while_the_model_loads_a_client_is_told_to_come_again(open_door):
    model, open_door.model = open_door.model, None
    try:
        with pytest.raises(InvalidStatus) as refused:
            open_door.connect("/api/chat")
    finally:
        open_door.model = model
    response = refused.value.response
    assert response.status_code == 503 and int(response.headers["Retry-After"]) > 0
    assert json.loads(response.body)["error"]["message"] == "Loading: getting ready"


def test_a_gpu_that_is_lent_is_for_visitors_of_the_page_unless_there_is_a_key(open_door, locked):
    for served, key, expected in ((open_door, "", 503), (locked, "", 401), (locked, KEY, 101)):
        served.is_lent = True
        try:
            given = {"Authorization": f"Bearer {key}"} if key else {}
            assert status(served, additional_headers=given) == expected
        finally:
            served.is_lent = False


def test_connections_are_bounded():
    with serving(waiting=0) as served:
        served.door._most = 3
        for _ in range(3):
            served.connect("/api/chat")
        served.wait_until(lambda: served.door.connections >= 1)
        assert status(served) in (101, 503)
        served.door.connections += 3
        assert status(served) == 503
        served.door.connections -= 3


def test_a_door_without_a_key_is_open_to_programs():
    assert Door(Settings(), lambda: None).is_key("") and not Door(Settings(api_key="a"), lambda: None).is_key("")


def test_a_client_that_vanishes_frees_its_place_within_a_second(open_door):
    client = MoshiClient(open_door.connect("/api/chat")).wait_for_handshake()
    client.talk(2)
    client.socket.socket.shutdown(socket.SHUT_RDWR)
    began = time.monotonic()
    open_door.wait_until_free(within_sec=1.0)
    assert time.monotonic() - began < 1.0
