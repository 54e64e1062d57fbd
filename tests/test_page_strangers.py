"""``python app.py``, really running, and what strangers send it."""

from __future__ import annotations

import re
import secrets
import socket
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from page_app import QUESTION, ROOT, answer_index, as_file, call, running_app, upload


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    with running_app(tmp_path_factory.mktemp("app")) as app:
        yield app


def test_a_folder_as_the_question_leaves_the_deletion_of_files_at_work(app):
    path = Path(upload(app))
    for named in (path.parent, path.parent.parent):
        told = call(app, [as_file(str(named)), "", "", None, 1, 0.8, 250, 0.7, 25, 0])
        assert "event: error" in told
    assert path.exists()
    until = time.monotonic() + 60
    while path.exists():
        assert time.monotonic() < until, "an upload that nobody claimed is still there"
        time.sleep(0.5)
    assert "Traceback" not in app.log.read_text()


def test_an_upload_that_breaks_off_leaves_nothing(app):
    """It stayed in the system's temporary folder for good, as did one in a field of another name."""
    logged, began = len(app.log.read_text()), time.time()
    head = (
        "POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n"
        "Content-Type: multipart/form-data; boundary=here\r\n\r\n--here\r\n"
        'Content-Disposition: form-data; name="files"; filename="mine.wav"\r\n\r\n'
    )
    with socket.create_connection(("127.0.0.1", int(app.address.rsplit(":", 1)[1]))) as client:
        client.sendall(head.encode() + b"\1" * 100_000)
        time.sleep(1.0)
    upload(app, field="other")
    until = time.monotonic() + 60
    while incoming := [path for path in app.uploads.glob("*/incoming/*") if path.is_file()]:
        assert time.monotonic() < until, incoming
        time.sleep(0.5)
    # Gradio's own names for them: eight characters and no ending.
    temporary = [path for path in Path(tempfile.gettempdir()).glob("tmp" + 8 * "?") if path.is_file()]
    temporary = [path for path in temporary if path.stat().st_mtime >= began]
    assert not any(path.read_bytes()[:1000] in (b"\1" * 1000, QUESTION.read_bytes()[:1000]) for path in temporary)
    assert "Traceback" not in app.log.read_text()[logged:]


def test_the_same_sound_sent_twice_is_two_files(app):
    first, second = upload(app, "same.wav"), upload(app, "same.wav")
    assert Path(first).parent != Path(second).parent, "whoever ends a visit would take the other's"


def test_a_request_holds_few_files(app):
    sounds = [("files", (f"{number}.wav", b"sound", "audio/wav")) for number in range(5)]
    answer = httpx.post(app.address + "/gradio_api/upload", files=sounds, timeout=60)
    assert answer.status_code == 400 and "Too many files" in answer.text


def test_an_upload_holds_files_alone(app):
    """Other fields are kept in memory, whatever their size."""
    fields = {"note": (None, "a" * 2_000_000), "files": ("mine.wav", b"sound", "audio/wav")}
    answer = httpx.post(app.address + "/gradio_api/upload", files=fields, timeout=60)
    assert answer.status_code == 400 and "Too many fields" in answer.text


def test_a_call_of_many_megabytes_is_refused(app):
    body = b'{"data": [' + b"1," * 1_000_000 + b"1]}"
    for route in ("call/answer", "queue/join", "component_server"):
        for content in (body, iter([body[:1_000_000], body[1_000_000:]])):  # without its size, too
            answer = httpx.post(f"{app.address}/gradio_api/{route}", content=content, timeout=60)
            assert answer.status_code in (400, 413), route
            assert "too large" in answer.text or "Invalid JSON body" in answer.text, route


def test_a_web_page_of_another_site_cannot_use_it(app):
    """Gradio let pages of any site read it under ``a.localhost``, and files were taken under every name."""
    port = app.address.rsplit(":", 1)[1]
    told = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}
    for host in ("127.0.0.1", "a.localhost", "localhost.", "[::ffff:7f00:1]"):
        headers = {**told, "Host": f"{host}:{port}"}
        assert httpx.get(app.address + "/config", headers=headers, timeout=60).status_code in (403, 421)
        sent = httpx.post(app.address + "/gradio_api/upload", headers=headers, files={"files": b"mine"}, timeout=60)
        assert sent.status_code in (403, 421)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (["q", "You are called Qwxyz."], "The call has 2 inputs; 10 are needed"),
        (["q", "You are called Qwxyz.", "", None, "x", 0.8, 250, 0.7, 25, 0], "seed is 'x'"),
        (["q", "", "", None, 1, None, 250, 0.7, 25, 0], "temperature_audio is None"),
        (["q", "", "", None, 1, 0.8, 250, 9.0, 25, 0], "temperature_text is 9.0; 0.1 to 1.5"),
        (["q", "", "", None, 1, 0.8, 250, 0.7, [1], 0], "top_k_text is"),
        (["q", "", {"a": 1}, None, 1, 0.8, 250, 0.7, 25, 0], "voice is"),
        (["q", "", "", None, 1, 0.8, 250, 0.7, 25, -3], "tail_sec is -3"),
        (["q", "", "", "/etc/passwd", 1, 0.8, 250, 0.7, 25, 0], "could not work with these inputs"),
        (["https://example.com/a.wav", "", "", None, 1, 0.8, 250, 0.7, 25, 0], "fetches no addresses"),
    ],
)
def test_values_of_a_wrong_kind_are_refused_with_a_sentence_and_kept_out_of_the_log(app, data, says):
    data = [as_file(upload(app) if data[0] == "q" else data[0]), *data[1:]]
    started = httpx.post(
        app.address + "/gradio_api/queue/join",
        json={"data": data, "fn_index": answer_index(app), "session_hash": (session := secrets.token_hex(6))},
        timeout=60,
    )
    assert started.status_code == 200
    told = ""
    with httpx.stream("GET", f"{app.address}/gradio_api/queue/data?session_hash={session}", timeout=60) as stream:
        for line in stream.iter_lines():
            told += line
            if "process_completed" in line:
                break
    assert says in told and "Traceback" not in told and str(ROOT) not in told and "site-packages" not in told
    log = app.log.read_text()
    assert "Qwxyz" not in log and "Traceback" not in log


NO_COMPONENT = {"data": {}, "session_hash": "a", "component_id": 9999, "fn_name": "b"}


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/gradio_api/component_server", NO_COMPONENT, 500),
        ("POST", "/gradio_api/queue/join", {"data": [], "fn_index": 12345, "session_hash": "a"}, 500),
        ("GET", "/monitoring", None, 404),
        ("GET", "/gradio_api/deep_link?session_hash=a", None, 404),
        ("POST", "/gradio_api/process_recording", {}, 404),
        ("POST", "/gradio_api/run/answer", {"data": []}, 404),
        ("GET", "/gradio_api/proxy=https://example.com", None, 404),
        ("GET", "/gradio_api/file=https://example.com", None, 404),
    ],
)  # fmt: skip
def test_errors_are_a_sentence_and_routes_that_the_page_does_not_use_are_closed(app, method, path, body, status):
    answer = httpx.request(method, app.address + path, json=body, timeout=60)
    assert answer.status_code == status
    assert (
        answer.json()["detail"].endswith(".") and "Traceback" not in answer.text and "site-packages" not in answer.text
    )
    assert "Traceback" not in app.log.read_text()


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", ""])
def test_a_name_that_is_not_the_pages_is_not_answered(app, host):
    """DNS rebinding: a page at evil.example, whose name now leads here, reads what this one answers."""
    for path in ("/", "/config", "/gradio_api/info", "/metrics"):
        answer = httpx.get(app.address + path, headers={"Host": host, "Origin": f"http://{host}"}, timeout=60)
        assert answer.status_code in (400, 421) and "gradio" not in answer.text


@pytest.mark.parametrize("host", ["localhost:7860", "127.0.0.1", "[::1]:7860", "192.168.1.5:7860", "LOCALHOST"])
def test_the_pages_own_names_are_answered(app, host):
    assert httpx.get(app.address + "/config", headers={"Host": host}, timeout=60).status_code == 200


def test_nothing_on_the_page_points_elsewhere(app):
    page = httpx.get(app.address + "/", timeout=60)
    tags = re.findall(r"<(?:script|link|img|meta)\b[^>]*https?://[^>]*>", page.text)
    assert not tags, tags
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy and "http" not in policy
    assert httpx.get(app.address + "/manifest.json", timeout=60).json()["name"] == "PersonaPlex"


def test_addresses_of_files_are_relative_for_the_page_and_whole_for_scripts(app):
    """Behind a proxy that passes no name on, the player and the downloads led to 127.0.0.1."""
    data = [as_file(upload(app)), "", "", None, 1, 0.8, 250, 0.7, 25, 0]
    browser = {"Sec-Fetch-Site": "same-origin", "Origin": "https://persona.example"}
    assert '"url": "./gradio_api/file=' in call(app, data, **browser)
    assert '"url": "./gradio_api/file=' in call(app, data, Origin="http://persona.example")
    assert f'"url": "{app.address}/gradio_api/file=' in call(app, data)


def test_whoever_does_not_listen_is_not_answered(tmp_path):
    """Nine abandoned calls closed the page for as long as their answers took."""
    long = tmp_path / "long.wav"
    soundfile.write(long, np.resize(soundfile.read(QUESTION)[0], 600 * 24_000), 24_000)
    with running_app(tmp_path, CXX="false") as app, long.open("rb") as sound:  # operators take minutes for it
        path = httpx.post(
            app.address + "/gradio_api/upload", files={"files": ("long.wav", sound, "audio/wav")}, timeout=120
        ).json()[0]
        data = [as_file(path), "", "", None, 1, 0.8, 250, 0.7, 25, 60]
        for _ in range(3):
            httpx.post(app.address + "/gradio_api/call/answer", json={"data": data}, timeout=60)
        until = time.monotonic() + 120
        ended = 'personaplex_conversations_ended_total{reason="stopped"} 1.0'
        while ended not in (figures := httpx.get(app.address + "/metrics", timeout=60).text):
            assert time.monotonic() < until, figures
            time.sleep(1.0)
