"""``python app.py``, really running: its API, its health, what it leaves behind, and how it ends."""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
QUESTION = GOLDEN / "user.wav"
START_WITHIN_SEC = 240.0  # on a machine that is busy with other things


class App:
    """The program in a process of its own, on a port of its own."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address, self.uploads = f"http://127.0.0.1:{port}", folder / "uploads"
        self.log = folder / "log.txt"
        environ = {key: value for key, value in os.environ.items() if not key.startswith("PERSONAPLEX_")}
        environ |= {"GRADIO_TEMP_DIR": str(self.uploads), "HF_HUB_OFFLINE": "1"}
        environ["OMP_NUM_THREADS"] = "1"  # threads that wait for each other crawl on a busy machine
        command = [sys.executable, "app.py", "--model", str(GOLDEN), "--dtype", "float32", "--port", str(port)]
        command += ["--keep-sec", "20"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=log, stderr=log)

    def wait_for(self, path: str, status: int) -> httpx.Response:
        until = time.monotonic() + START_WITHIN_SEC
        while time.monotonic() < until:
            assert self.process.poll() is None, self.log.read_text()
            try:
                answer = httpx.get(self.address + path, timeout=10)
            except httpx.TransportError:
                answer = None
            if answer is not None and answer.status_code == status:
                return answer
            time.sleep(0.2)
        raise AssertionError(f"{path} did not answer {status}: {self.log.read_text()}")


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    running = App(tmp_path_factory.mktemp("app"))
    try:
        running.wait_for("/", 200)
        running.wait_for("/health", 200)
        yield running
    finally:
        running.process.kill()
        running.process.wait()


def visitor(app: App, **more) -> Client:
    return Client(app.address, verbose=False, httpx_kwargs={"timeout": 120}, **more)


@pytest.fixture
def client(app):
    scripted = visitor(app, download_files=str(app.uploads.parent / "downloads"))
    yield scripted
    scripted.close()


def ask(client: Client, **more):
    given = {"question": handle_file(str(QUESTION)), "prompt": "You are kind.", "tail_sec": 0, "seed": 1, **more}
    return client.predict(**given, api_name="/answer")


# --- the API


def test_the_signature_is_the_documented_one(client):
    """docs/page.md promises it: a change here breaks other people's scripts."""
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert list(named) == ["/answer"]
    given = [(p["parameter_name"], p["parameter_has_default"]) for p in named["/answer"]["parameters"]]
    assert given == [
        ("question", False), ("prompt", True), ("voice", True), ("own_voice", True), ("seed", True),
        ("temperature_audio", True), ("top_k_audio", True), ("temperature_text", True), ("top_k_text", True),
        ("tail_sec", True),
    ]  # fmt: skip
    assert [r["label"] for r in named["/answer"]["returns"]] == [
        "The answer", "Both voices: persona left, question right", "Transcript", "Files to keep",
    ]  # fmt: skip
    documented = (ROOT / "docs" / "page.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in documented for name, _ in given)


def test_a_question_is_answered(client):
    answer, both, transcript, files = ask(client, tail_sec=1)
    question, rate_hz = soundfile.read(QUESTION)
    agent, _ = soundfile.read(answer)
    stereo, _ = soundfile.read(both)
    frames = -(-(len(question) + rate_hz) // 1920)
    assert len(agent) == frames * 1920 and stereo.shape == (len(agent), 2)
    np.testing.assert_allclose(stereo[: len(question), 1], question, atol=2 / 32_768)
    np.testing.assert_allclose(stereo[:, 0], agent)
    assert transcript["complete"] is True and transcript["seed"] == 1
    assert " ".join(chunk["text"] for chunk in transcript["chunks"]) == transcript["text"]
    assert sorted(Path(path).suffix for path in files) == [".json", ".png", ".txt", ".vtt"]


def test_a_seed_gives_the_same_answer_again(client):
    first, second, other = (ask(client, seed=seed) for seed in (5, 5, 6))
    assert first[2] == second[2]
    assert Path(first[0]).read_bytes() == Path(second[0]).read_bytes() != Path(other[0]).read_bytes()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"question": handle_file(str(ROOT / "pyproject.toml"))}, "not a sound file"),
        ({"own_voice": handle_file(str(ROOT / "pyproject.toml"))}, "not a sound file"),
        ({"prompt": "word " * 500}, "200 are allowed"),
        ({"voice": "NATF9"}, "NATF9"),
        ({"voice": "/etc/passwd"}, "there is no voice"),
        ({"temperature_text": 0.0}, "0.1"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_sentence(client, more, says):
    with pytest.raises((AppError, ValueError), match=says):
        ask(client, **more)


def test_a_file_of_the_machine_is_no_question(app):
    """Only what was uploaded is read: not /etc/passwd, and not the model either."""
    data = [{"path": str(QUESTION), "meta": {"_type": "gradio.FileData"}}, "", "", None, 1, 0.8, 250, 0.7, 25, 0]
    started = httpx.post(app.address + "/gradio_api/call/answer", json={"data": data}, timeout=60)
    told = httpx.get(f"{app.address}/gradio_api/call/answer/{started.json()['event_id']}", timeout=60)
    assert "event: error" in told.text and "event: complete" not in told.text


def test_a_file_that_is_too_large_is_refused_before_it_is_read(app):
    sound = {"files": ("large.wav", b"\0" * 60_000_000, "audio/wav")}
    answer = httpx.post(app.address + "/gradio_api/upload", files=sound, timeout=120)
    assert answer.status_code == 413 and "maximum allowed size" in answer.text


def test_what_a_visitor_left_goes_when_they_leave(app):
    mine = visitor(app, download_files=False)
    voice = app.uploads.parent / "mine.wav"
    soundfile.write(voice, soundfile.read(QUESTION)[0] * 0.9, 24_000)
    ask(mine, question=handle_file(str(voice)))
    assert list(app.uploads.rglob("mine.wav")) and list(app.uploads.rglob("answer-both.wav"))
    mine.close()
    until = time.monotonic() + 60
    while list(app.uploads.rglob("mine.wav")) or list(app.uploads.rglob("answer-both.wav")):
        assert time.monotonic() < until, "the visitor's files are still there"
        time.sleep(0.2)


# --- what a stranger may send


def call(app: App, data: list, **headers: str) -> str:
    """What a plain POST to the API is told."""
    started = httpx.post(app.address + "/gradio_api/call/answer", json={"data": data}, timeout=60, headers=headers)
    return httpx.get(f"{app.address}/gradio_api/call/answer/{started.json()['event_id']}", timeout=60).text


def upload(app: App, name: str = "question.wav", field: str = "files") -> str:
    sound = {field: (name, QUESTION.read_bytes(), "audio/wav")}
    answer = httpx.post(app.address + "/gradio_api/upload", files=sound, timeout=60)
    return answer.json()[0] if field == "files" else ""


def as_file(path: str) -> dict:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


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


def answer_index(app: App) -> int:
    config = httpx.get(app.address + "/config", timeout=60).json()
    return next(event["id"] for event in config["dependencies"] if event["api_name"] == "answer")


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


def test_whoever_does_not_listen_is_not_answered(app):
    """Nine abandoned calls closed the page for as long as their answers took."""
    long = app.uploads.parent / "long.wav"
    soundfile.write(long, np.tile(soundfile.read(QUESTION)[0], 40)[: 600 * 24_000], 24_000)
    with long.open("rb") as sound:
        path = httpx.post(
            app.address + "/gradio_api/upload", files={"files": ("long.wav", sound, "audio/wav")}, timeout=120
        ).json()[0]
    data = [as_file(path), "", "", None, 1, 0.8, 250, 0.7, 25, 60]
    for _ in range(3):
        httpx.post(app.address + "/gradio_api/call/answer", json={"data": data}, timeout=60)
    until = time.monotonic() + 120
    ended = 'personaplex_conversations_ended_total{reason="stopped"}'
    while f"{ended} 1.0" not in (figures := httpx.get(app.address + "/metrics", timeout=60).text):
        assert time.monotonic() < until, figures
        time.sleep(1.0)


# --- for the operator


def test_health_and_figures(app, client):
    ask(client)
    assert httpx.get(app.address + "/health", timeout=60).json()["healthy"] is True
    figures = httpx.get(app.address + "/metrics", timeout=60).text
    assert value_of(figures, "personaplex_step_seconds_count") > 0
    assert value_of(figures, "personaplex_slots") == 1


def value_of(figures: str, name: str) -> float:
    return float(next(line for line in figures.splitlines() if line.startswith(name + " ")).split()[1])


def test_nothing_that_was_said_or_typed_is_logged(app, client):
    _, _, transcript, _ = ask(client, prompt="You are called Xyzzyx.")
    log = app.log.read_text()
    assert "Xyzzyx" not in log
    assert not any(len(word["text"]) > 3 and word["text"] in log for word in transcript["chunks"])


# --- the end


def test_it_ends_in_order_when_it_is_told_to(app):
    before = len(app.log.read_text())
    app.process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    assert app.process.wait(timeout=60) == 0
    assert time.monotonic() - started < 5 or os.getloadavg()[0] > 2 * (os.cpu_count() or 1)
    assert not list(app.uploads.iterdir()), "nothing that visitors sent is left"
    assert "Traceback" not in app.log.read_text()[before:]


def test_a_slip_in_a_flag_fails_at_once():
    failed = subprocess.run(
        [sys.executable, "app.py", "--modle", "nano"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert failed.returncode == 2
    assert failed.stderr.strip() == "error: --modle is not known; did you mean --model?"
