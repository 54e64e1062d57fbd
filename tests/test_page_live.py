"""``python app.py``, really running: its API, its health, what it leaves behind, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from page_app import QUESTION, ROOT, App, running_app, upload


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    with running_app(tmp_path_factory.mktemp("app")) as app:
        yield app


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
    log = app.log.read_text() + httpx.get(app.address + "/metrics", timeout=60).text
    assert "Xyzzyx" not in log
    assert not any(len(word["text"]) > 3 and word["text"] in log for word in transcript["chunks"])


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere 127.0.0.2 is not this machine")
def test_only_this_machine_reaches_it(app):
    """A page that listened on all addresses would answer at 127.0.0.2, too."""
    with pytest.raises(httpx.ConnectError):
        httpx.get(app.address.replace("127.0.0.1", "127.0.0.2"), timeout=10)


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


def test_a_file_name_may_hold_any_letter_whatever_the_locale(tmp_path):
    """An upload was a 500 under LC_ALL=C; the folder has such letters, too."""
    folder = tmp_path / "Grüße & Söhne"
    folder.mkdir()
    app = App(folder, LC_ALL="C", PYTHONUTF8="0")
    try:
        app.wait_for("/", 200)
        assert Path(upload(app, "Größe.wav")).read_bytes() == QUESTION.read_bytes()
    finally:
        app.process.kill()
        app.process.wait()
