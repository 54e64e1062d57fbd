"""``python app.py`` with real browsers: their microphones speak a question, their speakers are recorded."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import dataclass

import numpy as np
import pytest
import soundfile
import soxr
from browser import Browser, has_nano, lag_ms, likeness, microphone_file, model_flags, rms, running, words
from zerogpu_api import DeviceApi

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

SPEECH_RMS = 0.003
SANNI = "You work for First Neuron Bank and your name is Sanni."
WALTER = "You work for City Sanitation and your name is Walter."


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    with running(["app.py", *model_flags(), "--conversations", "2", "--port"], tmp_path_factory.mktemp("app")) as app:
        yield app
        assert "Traceback" not in app.log.read_text(), app.log.read_text()


# ---------------------------------------------------------------------------------- one visitor


@dataclass
class Talk:
    """A conversation: what came through the browser and what the page offered of it afterwards."""

    connected_sec: float
    microphone: np.ndarray  # [N] float32 at 48 kHz, as the page had it
    speaker: np.ndarray
    agent: np.ndarray  # [M] float32 at 24 kHz, from the recording: what the engine said
    shown_live: list[str]
    shown: list[str]
    text: list[str]
    chunks: list[str]
    meter: str
    errors: list[str]


@pytest.fixture(scope="module")
def talk(app, playwright, microphone) -> Talk:
    browser = Browser(playwright, microphone)
    try:
        browser.talk(app.url, SANNI, keep=True)
        sides = browser.record(20)
        live, meter = words(" ".join(browser.words())), browser.text("meter")
        browser.stop()
        data = json.loads(browser.kept(".json").read_text())
        return Talk(
            browser.connected_sec, *sides, agent_of(browser), live, words(" ".join(browser.words())),
            words(browser.kept(".txt").read_text()), words(" ".join(chunk["text"] for chunk in data["chunks"])),
            meter, browser.errors,
        )  # fmt: skip
    finally:
        browser.close()


def agent_of(browser: Browser) -> np.ndarray:
    """The agent's side of the recording that the page offers: [N] float32 at 24 kHz."""
    both, rate_hz = soundfile.read(browser.kept(".wav"), dtype="float32")
    assert rate_hz == 24_000
    return both[:, 0]


def test_the_connection_stands_within_a_second(talk):
    print(f"connected {talk.connected_sec:.2f} s after the click")
    assert talk.connected_sec < 1.0


def test_the_agents_speech_arrives(talk):
    alike = likeness(talk.agent, soxr.resample(talk.speaker, 48_000, 24_000), 24_000)
    print(f"RMS: microphone {rms(talk.microphone):.4f}, speaker {rms(talk.speaker):.4f}; alike {alike:.2f}")
    assert rms(talk.microphone) > SPEECH_RMS, "the fake microphone must speak"
    assert rms(talk.speaker) > SPEECH_RMS
    assert alike > 0.8, "the speaker plays what the engine said"


def test_the_page_shows_the_engines_words(talk):
    assert talk.shown == talk.text == talk.chunks
    assert talk.shown_live == talk.text[: len(talk.shown_live)]
    assert not talk.errors
    if has_nano():
        assert len(talk.shown_live) >= 4


@pytest.mark.skipif(not has_nano(), reason="the embedded model is not there, and the tests' own says nothing")
def test_words_of_the_transcript_are_heard(talk):
    """A speech recogniser hears them in the page's speaker; in the same sound backwards it hears what chance gives."""
    pytest.importorskip("pocketsphinx", reason="no speech recogniser")
    sound = soxr.resample(talk.speaker, 48_000, 16_000)
    found, by_chance = (set(talk.shown) & recognised(side) for side in (sound, sound[::-1]))
    print(f"shown {sorted(set(talk.shown))}; heard {sorted(found)}; backwards {sorted(by_chance)}")
    assert len(found) >= 2 and len(found) > len(by_chance)


def recognised(sound: np.ndarray) -> set[str]:
    """Words in [N] float32 at 16 kHz."""
    import pocketsphinx

    decoder = pocketsphinx.Decoder(samprate=16_000)
    decoder.start_utt()
    decoder.process_raw((sound * 32767).astype(np.int16).tobytes(), False, True)
    decoder.end_utt()
    return set(words(decoder.hyp().hypstr)) if decoder.hyp() else set()


def test_the_meter_shows_figures(talk):
    assert "of 80 ms" in talk.meter and "–" not in talk.meter, talk.meter


# ---------------------------------------------------------------------------------- several


@pytest.mark.slow  # two slow cores are too few for it
def test_two_at_once_hear_their_own_persona_and_a_third_waits(app, visitor):
    first, second = visitor().talk(app.url, SANNI, keep=True), visitor().talk(app.url, WALTER, keep=True)
    assert app.running == 2
    for browser in (first, second):
        browser.begin_recording(15)
    third = visitor()
    third.open(app.url)
    third.start()
    third.wait_for_phase("queued")
    assert "number 1 in the queue" in third.text("state")
    heard = [soxr.resample(browser.recorded()[1], 48_000, 24_000) for browser in (first, second)]
    assert all(rms(sound) > SPEECH_RMS for sound in heard)
    if has_nano():
        first.wait_for_text("transcript", "sanni", timeout_sec=20)
        second.wait_for_text("transcript", "walter", timeout_sec=20)
    first.stop()
    third.wait_for_phase("listening", "talking", timeout_sec=30)
    second.stop()
    third.stop()
    assert "walter" not in first.text("transcript").lower()
    assert "sanni" not in second.text("transcript").lower()
    said = [agent_of(browser) for browser in (first, second)]
    alike = np.array([[likeness(agent, sound, 24_000) for agent in said] for sound in heard])
    print(f"heard (rows) against said (columns):\n{alike.round(2)}")
    assert min(alike[0, 0], alike[1, 1]) > max(0.7, alike[0, 1] + 0.2, alike[1, 0] + 0.2), "nobody hears the other"
    app.seconds_until_free(5)


# ---------------------------------------------------------------------------------- leaving


@pytest.mark.parametrize(("leave", "within_sec"), [("stop", 0.6), ("reload", 1), ("close the tab", 6), ("kill", 6)])
def test_however_a_visitor_leaves_the_slot_is_freed(app, visitor, leave, within_sec):
    browser = visitor().talk(app.url)
    if leave == "stop":
        browser.stop()
    elif leave == "reload":
        browser.page.reload(wait_until="commit")
    elif leave == "close the tab":
        browser.context.new_page()
        browser.page.close()
    else:
        browser.kill()
    print(f"{leave}: free after {app.seconds_until_free(within_sec):.2f} s")


def test_the_space_bar_opens_the_microphone_of_a_conversation(app, visitor):
    """The level moves while the microphone is open; held back, the conversation goes on in silence."""
    browser = visitor()
    browser.talk(app.url)
    page = browser.page
    page.wait_for_selector("#microphone .level:not([data-verdict=off])", timeout=10_000)
    page.locator("#microphone input.holding").check()
    page.wait_for_selector("#microphone .level[data-verdict=closed]", timeout=10_000)
    enabled = "window.test_microphones.at(-1).getAudioTracks()[0].enabled"
    assert page.evaluate(enabled) is False
    page.keyboard.down("Space")
    assert page.evaluate(enabled) is True
    page.wait_for_selector("#microphone .level:not([data-verdict=closed])", timeout=10_000)
    page.keyboard.up("Space")
    assert page.evaluate(enabled) is False and not page.locator("#notice .notice").count()
    browser.wait_for_phase("listening", "talking")
    browser.stop()


def test_a_second_start_after_a_stop_works(app, visitor):
    browser = visitor().talk(app.url)
    browser.stop()
    app.seconds_until_free(3)
    browser.wait_for_phase("ended-stopped")
    browser.start()
    browser.wait_for_phase("listening", "talking")
    assert rms(browser.record(5)[1]) > SPEECH_RMS
    browser.stop()
    app.seconds_until_free(3)


def test_stopping_the_server_tells_the_visitor(tmp_path, visitor):
    with running(["app.py", *model_flags(), "--port"], tmp_path) as app:
        browser = visitor().talk(app.url)
        app.process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        browser.page.wait_for_selector("#state .state[data-phase=ended-shutdown]", timeout=4_000)
        assert "being stopped" in browser.text("state")
        told_sec = time.monotonic() - started
        assert app.process.wait(10) == 0
        ended_sec = time.monotonic() - started
        print(f"told {told_sec:.1f} s, ended {ended_sec:.1f} s after SIGTERM")
        assert ended_sec < 5
        assert "Traceback" not in app.log.read_text()
        assert not list((tmp_path / "uploads").rglob("conversation*"))


# ---------------------------------------------------------------------------------- time


@pytest.mark.slow  # two slow cores are too few for it
def test_the_page_is_there_within_five_seconds(tmp_path, playwright, microphone):
    """Of the command, on a warm disk: from the program's start until a browser shows it."""
    browser = Browser(playwright, microphone)
    seconds = []
    try:
        for attempt in ("cold", "warm"):
            (tmp_path / attempt).mkdir()
            started = time.monotonic()
            with running(["app.py", *model_flags(), "--port"], tmp_path / attempt, ready="/") as app:
                browser.open(app.url)
                seconds.append(time.monotonic() - started)
    finally:
        browser.close()
    print(f"the page is there after {seconds[1]:.1f} s (at first {seconds[0]:.1f} s)")
    assert seconds[1] < 5


@pytest.mark.slow  # two slow cores are too few for it
def test_the_engines_path_costs_little_beyond_an_echo(tmp_path, visitor):
    """Through the engine's thread and a real step, against an echo in the handler, in the same run."""
    chirps = np.concatenate([chirp(f) for f in (300, 700, 1100, 1500, 1900)])
    microphone = microphone_file(tmp_path / "chirps.wav", chirps, 48_000)
    delay_ms = {}
    for kind, flags in {"echo": ["--bare"], "engine": model_flags()}.items():
        (tmp_path / kind).mkdir()
        with running(["tests/echo_app.py", *flags, "--port"], tmp_path / kind, "/tables") as app:
            browser = visitor(microphone)
            browser.open(app.url)
            browser.start()
            time.sleep(4)
            delay_ms[kind] = [round(lag_ms(*browser.record(5))) for _ in range(5)]
            browser.close()
    print(f"microphone to speaker, ms: {delay_ms}")
    assert np.median(delay_ms["engine"]) - np.median(delay_ms["echo"]) <= 60


def chirp(start_hz: float) -> np.ndarray:
    """Two seconds, a quarter of one filled: [96 000] float32 at 48 kHz."""
    t = np.arange(12_000) / 48_000
    sound = np.zeros(96_000, np.float32)
    sound[:12_000] = 0.5 * np.hanning(12_000) * np.sin(2 * np.pi * (start_hz * t + 2000 * t**2))
    return sound


def test_no_frame_is_dropped_in_two_minutes(app, visitor):
    browser = visitor().talk(app.url)
    dropped, steps = app.figure("personaplex_dropped_frames_total"), app.figure("personaplex_step_seconds_count")
    time.sleep(120)
    stepped = app.figure("personaplex_step_seconds_count") - steps
    print(f"{stepped:.0f} frames in 120 s; dropped {app.figure('personaplex_dropped_frames_total') - dropped:.0f}")
    assert stepped > 120 * 12.5 * 0.99
    assert app.figure("personaplex_dropped_frames_total") == dropped
    browser.stop()


# ---------------------------------------------------------------------------------- on a lent GPU


def test_a_conversation_on_a_lent_gpu(tmp_path, visitor):
    """The page as on ZeroGPU: the decorator forks, the conversation lives in the worker."""
    with DeviceApi() as api:
        # By its folder: under its name nano runs on the processor, and asks for no GPU.
        command = ["tests/zerogpu_app.py", "--model", "personaplex/nano", "--port"]
        with running(command, tmp_path, **api.environ) as app:
            browser = visitor().talk(app.url, SANNI, keep=True)
            _, speaker = browser.record(8)
            assert rms(speaker) > SPEECH_RMS
            browser.stop()
            app.seconds_until_free(5)
            alike = likeness(agent_of(browser), soxr.resample(speaker, 48_000, 24_000), 24_000)
            print(f"alike {alike:.2f}")
            assert alike > 0.7
            assert words(" ".join(browser.words())) == words(browser.kept(".txt").read_text())
        assert "Traceback" not in app.log.read_text(), app.log.read_text()
    assert [what for what, _ in api.asked].count("schedule") == 1
    assert "release" in [what for what, _ in api.asked]
