"""``python app.py`` with real browsers: their microphones speak a question, their speakers are recorded."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from browser import Browser, lag_ms, microphone_file, require_browser, rms
from zerogpu_api import DeviceApi

from personaplex.audio import read_recording
from personaplex.hub import nano_folder

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[1]
QUESTION = ROOT / "examples" / "questions" / "teacher.wav"
START_WITHIN_SEC = 120.0
SPEECH_RMS = 0.003


@pytest.fixture(scope="module", autouse=True)
def _browser():
    require_browser()


def has_nano() -> bool:
    return (nano_folder() / "config.json").is_file()


def model_flags() -> list[str]:
    """The embedded model; before it exists, the random one of the tests, which babbles."""
    return ["--model", "nano"] if has_nano() else ["--model", "tests/golden", "--dtype", "float32"]


@contextlib.contextmanager
def running(command: list[str], folder: Path, ready: str, **environ: str):
    """A program on a port of its own, until ``ready`` answers 200: its address and process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PERSONAPLEX_")}
    kept |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "HF_HUB_OFFLINE": "1", **environ}
    kept |= {"PERSONAPLEX_HOME": str(folder), "GRADIO_TEMP_DIR": str(folder / "uploads")}
    log = folder / "log.txt"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *command, str(port)], cwd=ROOT, env=kept, stdout=file, stderr=file, start_new_session=True
        )
    try:
        until = time.monotonic() + START_WITHIN_SEC
        while True:
            assert process.poll() is None and time.monotonic() < until, log.read_text()
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(url + ready, timeout=10).status_code == 200:
                    break
            time.sleep(0.1)
        yield url, process, log
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    command = ["app.py", *model_flags(), "--conversations", "2", "--port"]
    with running(command, tmp_path_factory.mktemp("app"), "/health") as (url, _, log):
        yield url
    assert "Traceback" not in log.read_text(), log.read_text()


@pytest.fixture(scope="module")
def microphone(tmp_path_factory):
    """The question, again and again, with time to answer."""
    question = read_recording(QUESTION).pcm
    sound = np.concatenate([np.zeros(24_000, np.float32), question, np.zeros(5 * 24_000, np.float32)])
    return microphone_file(tmp_path_factory.mktemp("microphone") / "question.wav", sound, 24_000)


@pytest.fixture(scope="module")
def playwright():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        yield started


@pytest.fixture
def visitor(playwright, microphone):
    """Makes browsers, and closes them."""
    browsers = []

    def make(sound=microphone):
        browsers.append(Browser(playwright, sound))
        return browsers[-1]

    yield make
    for browser in browsers:
        with contextlib.suppress(Exception):
            browser.close()


def figure(url: str, name: str) -> float:
    lines = httpx.get(f"{url}/metrics", timeout=10).text.splitlines()
    return float(next(line for line in lines if line.startswith(name + " ")).split()[1])


def seconds_until_free(url: str, within_sec: float, running_now: int = 0) -> float:
    started = time.monotonic()
    while figure(url, "personaplex_conversations") > running_now:
        assert time.monotonic() - started < within_sec, f"the slot is not free after {within_sec} s"
        time.sleep(0.05)
    return time.monotonic() - started


def talking(browser: Browser, url: str) -> Browser:
    browser.open(url)
    browser.wait_for_text("state", "ready")
    browser.connected_sec = browser.start()
    browser.wait_for_text("state", "ing.")  # listening or talking
    return browser


def words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.lower())


# ---------------------------------------------------------------------------------- one visitor


def test_a_conversation_in_the_browser(app, visitor):
    browser = talking(visitor(), app)
    microphone, speaker = browser.record(12)
    assert rms(microphone) > SPEECH_RMS, "the fake microphone must speak"
    assert rms(speaker) > SPEECH_RMS, "the agent's speech must arrive"
    browser.wait_for_text("meter", "ms")
    browser.stop()
    assert seconds_until_free(app, 2.0) < 2.0
    browser.page.wait_for_selector("#after", state="visible", timeout=15_000)
    shown = words(browser.text("transcript"))
    with browser.page.expect_download() as download:
        browser.page.locator("#downloads a[download$='.txt']").first.click()
    kept = words(Path(download.value.path()).read_text())
    assert kept and [word for word in shown if word in set(kept)][-len(kept) :] == kept, "page and engine must agree"
    assert not browser.errors
    print(f"connected {browser.connected_sec:.2f} s after the click; speaker RMS {rms(speaker):.4f}")
    assert browser.connected_sec < 1.0


@pytest.mark.skipif(not has_nano(), reason="the embedded model is not there, and the tests' own says nothing")
def test_what_is_heard_is_what_is_read(app, visitor, tmp_path):
    """A speech recogniser hears, in the page's speaker, words of the page's transcript."""
    pocketsphinx = pytest.importorskip("pocketsphinx", reason="no speech recogniser")
    import soxr

    browser = talking(visitor(), app)
    _, speaker = browser.record(20)
    shown = words(browser.text("transcript"))
    decoder = pocketsphinx.Decoder(samprate=16_000)
    decoder.start_utt()
    decoder.process_raw((soxr.resample(speaker, 48_000, 16_000) * 32767).astype(np.int16).tobytes(), False, True)
    decoder.end_utt()
    heard = set(words(decoder.hyp().hypstr)) if decoder.hyp() else set()
    found = sorted(set(shown) & heard)
    print(f"shown {len(shown)} words; recognised of them: {found}")
    assert len(found) >= 2


def test_two_visitors_at_once_and_a_third_in_the_queue(app, visitor):
    first, second = talking(visitor(), app), talking(visitor(), app)
    assert figure(app, "personaplex_conversations") == 2
    third = visitor()
    third.open(app)
    third.start()
    third.wait_for_text("state", "queue")
    _, speaker = second.record(8)
    assert rms(speaker) > SPEECH_RMS
    first.stop()
    third.wait_for_text("state", "ing.", timeout_sec=30)
    second.stop()
    third.stop()
    seconds_until_free(app, 5)


# ---------------------------------------------------------------------------------- leaving


@pytest.mark.parametrize(("leave", "within_sec"), [("stop", 2), ("reload", 2.5), ("close the tab", 7), ("kill", 8)])
def test_however_a_visitor_leaves_the_slot_is_freed(app, visitor, leave, within_sec):
    browser = talking(visitor(), app)
    if leave == "stop":
        browser.stop()
    elif leave == "reload":
        browser.page.reload()
    elif leave == "close the tab":
        browser.context.new_page()
        browser.page.close()
    else:
        browser.kill()
    print(f"{leave}: free after {seconds_until_free(app, within_sec):.2f} s")


def test_a_second_start_after_a_stop_works(app, visitor):
    browser = talking(visitor(), app)
    browser.stop()
    seconds_until_free(app, 3)
    time.sleep(1)
    browser.start()
    browser.wait_for_text("state", "ing.")
    assert rms(browser.record(5)[1]) > 0
    browser.stop()
    seconds_until_free(app, 3)


def test_stopping_the_server_tells_the_visitor(tmp_path, visitor):
    with running(["app.py", *model_flags(), "--port"], tmp_path, "/health") as (url, process, log):
        browser = talking(visitor(), url)
        process.terminate()
        started = time.monotonic()
        browser.page.wait_for_selector("text=being stopped", timeout=8_000)
        assert process.wait(10) == 0
        print(f"ended {time.monotonic() - started:.1f} s after SIGTERM")
        assert time.monotonic() - started < 5.5
        assert "Traceback" not in log.read_text()


# ---------------------------------------------------------------------------------- delay


def test_the_engines_path_costs_little_beyond_its_step(tmp_path, visitor):
    """Through the engine's thread and a real step, against an echo in the handler, in the same run."""
    chirps = np.concatenate([chirp(f) for f in (300, 700, 1100, 1500, 1900)])
    microphone = microphone_file(tmp_path / "chirps.wav", chirps, 48_000)
    delay_ms = {}
    for kind, flags in {"bare": ["--bare"], "engine": model_flags()}.items():
        (tmp_path / kind).mkdir()
        with running(["tests/echo_app.py", *flags, "--port"], tmp_path / kind, "/tables") as (url, *_):
            browser = visitor(microphone)
            browser.open(url)
            browser.start()
            time.sleep(4)
            delay_ms[kind] = np.median([lag_ms(*browser.record(5)) for _ in range(3)])
            browser.close()
    print(f"microphone to speaker: {delay_ms}")
    assert delay_ms["engine"] - delay_ms["bare"] < 60


def chirp(start_hz: float) -> np.ndarray:
    """Two seconds, a quarter of one filled: [96 000] float32 at 48 kHz."""
    t = np.arange(12_000) / 48_000
    sound = np.zeros(96_000, np.float32)
    sound[:12_000] = 0.5 * np.hanning(12_000) * np.sin(2 * np.pi * (start_hz * t + 2000 * t**2))
    return sound


@pytest.mark.slow
def test_no_frame_is_dropped_in_two_minutes(app, visitor):
    before = figure(app, "personaplex_dropped_frames_total")
    browser = talking(visitor(), app)
    steps = figure(app, "personaplex_step_seconds_count")
    time.sleep(120)
    assert figure(app, "personaplex_step_seconds_count") - steps > 120 * 12.5 * 0.99
    assert figure(app, "personaplex_dropped_frames_total") == before
    browser.stop()


# ---------------------------------------------------------------------------------- on a lent GPU


def test_a_conversation_on_a_lent_gpu(tmp_path, visitor):
    """The page as on ZeroGPU: the decorator forks, the conversation lives in the worker."""
    with DeviceApi() as api:
        command = ["tests/zerogpu_app.py", *model_flags(), "--device", "cpu", "--port"]
        with running(command, tmp_path, "/health", **api.environ) as (url, _, log):
            browser = talking(visitor(), url)
            _, speaker = browser.record(8)
            assert rms(speaker) > SPEECH_RMS
            browser.stop()
            seconds_until_free(url, 5)
        assert "Traceback" not in log.read_text(), log.read_text()
    assert [what for what, _ in api.asked].count("schedule") == 1
    assert "release" in [what for what, _ in api.asked]
