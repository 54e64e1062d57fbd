"""What goes wrong for a visitor with a real browser: a sentence on the page, a free slot, a clean log."""

from __future__ import annotations

import re
import signal
import time

import numpy as np
import pytest
from browser import START_BUTTON, microphone_file, model_flags, running

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

NOTICE = "#notice .notice[role=alert]"


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    with running(
        ["app.py", *model_flags(), "--conversations", "2", "--allowed-hosts", "talk.example", "--port"],
        tmp_path_factory.mktemp("app"),
    ) as app:
        yield app
        assert "Traceback" not in app.log.read_text(), app.log.read_text()


def notice(browser, part: str, timeout_sec: float = 20.0) -> None:
    browser.page.wait_for_selector(f"{NOTICE}:has-text({part!r})", timeout=timeout_sec * 1000)


def test_a_muted_microphone_is_noticed(app, visitor, tmp_path):
    browser = visitor(microphone_file(tmp_path / "silence.wav", np.zeros(48_000, np.float32), 48_000))
    browser.talk(app.url)
    notice(browser, "No sound comes from your microphone")
    assert app.running == 1, "listening to the persona is fine"
    browser.stop()
    app.seconds_until_free(2)


def test_http_away_from_localhost_is_explained(app, visitor, microphone):
    browser = visitor(microphone, "--host-resolver-rules=MAP talk.example 127.0.0.1")
    browser.page.goto(app.url.replace("127.0.0.1", "talk.example"))
    notice(browser, "no microphone to a page over plain http")


def test_start_pressed_twice_leaves_no_ghost(app, visitor):
    browser = visitor()
    browser.open(app.url)
    browser.wait_for_phase("ready")
    browser.take_microphone()
    browser.page.locator(START_BUTTON).dblclick()
    time.sleep(2)  # the second press may undo the first or be lost on it
    if browser.page.locator(START_BUTTON).inner_text().strip() == "Stop":
        browser.wait_for_phase("listening", "talking")
        assert app.running == 1
        browser.stop()
    app.seconds_until_free(8)
    time.sleep(1)
    assert app.running == 0, "it came back"
    browser.start()
    browser.wait_for_phase("listening", "talking")
    assert app.running == 1
    browser.stop()
    app.seconds_until_free(2)


def test_the_microphone_is_given_back_after_stop(app, visitor):
    """FastRTC asks for it once more after Stop and keeps every one it ever got: the browser's red dot stayed."""
    browser = visitor()
    browser.talk(app.url)
    live = "window.test_microphones.filter((stream) => stream.getTracks().some((t) => t.readyState == 'live')).length"
    assert browser.page.evaluate(live) == 1
    browser.stop()
    browser.page.wait_for_function(f"{live} == 0", timeout=15_000)
    browser.start()
    browser.wait_for_phase("listening", "talking")
    assert browser.page.evaluate(live) == 1


def test_a_refused_offer_gives_the_microphone_back(app, visitor):
    """FastRTC leaves its connection open and the browser's red dot on."""
    browser = visitor()
    offers = []

    def refuse(route):
        if '"offer"' not in (route.request.post_data or ""):
            return route.continue_()
        offers.append(route)
        return route.fulfill(json={"status": "failed", "meta": {"error": "concurrency_limit_reached", "limit": 1}})

    browser.page.route(re.compile("component_server"), refuse)
    browser.open(app.url)
    browser.wait_for_phase("ready")
    browser.take_microphone()
    browser.page.locator(START_BUTTON).click()
    live = "window.test_microphones.some((stream) => stream.getTracks().some((t) => t.readyState == 'live'))"
    browser.page.wait_for_function(live, timeout=15_000)
    browser.page.wait_for_function(f"!({live})", timeout=40_000)
    assert offers


def test_who_muted_the_microphone_stays_muted_in_the_next_conversation(app, visitor):
    """The mute button goes on saying so."""
    browser = visitor()
    browser.talk(app.url)
    browser.page.evaluate("window.test_microphone.getAudioTracks()[0].enabled = false")
    browser.stop()
    browser.wait_for_phase("ended-stopped")
    browser.start()
    assert browser.page.evaluate("window.test_microphone.getAudioTracks()[0].enabled") is False


def test_the_newest_words_are_in_view_unless_the_reader_scrolled_up(app, visitor):
    """What scrolled was made anew with every word, and stood at its top."""
    browser = visitor()
    browser.open(app.url)
    browser.wait_for_phase("ready")
    say = """(count) => {
      const lines = Array.from({ length: count }, (_, i) => `<p><time>0:00</time> <span>line ${i}</span></p>`).join("");
      document.querySelector("#transcript .transcript").outerHTML = `<div class="transcript">${lines}</div>`;
    }"""
    below = """() => {
      const box = document.querySelector("#transcript").getBoundingClientRect();
      return document.querySelector("#transcript p:last-child").getBoundingClientRect().bottom - box.bottom;
    }"""
    for count in (40, 41):
        browser.page.evaluate(say, count)
        assert browser.page.evaluate(below) < 5
    assert browser.page.evaluate("document.querySelector('#transcript').clientHeight") < 400
    browser.page.evaluate("document.querySelector('#transcript').scrollBy(0, -200)")
    browser.page.evaluate(say, 41)
    assert browser.page.evaluate(below) > 100


def test_start_and_stop_are_called_so(app, visitor):
    browser = visitor()
    browser.talk(app.url)
    assert browser.page.get_by_role("button", name="Stop", exact=True).count() == 1
    browser.stop()
    browser.page.get_by_role("button", name="Start", exact=True).wait_for(timeout=10_000)
    assert browser.page.locator("[title*=webcam]").count() == 0


def test_two_tabs_are_two_visitors(app, visitor):
    browser = visitor().talk(app.url)
    first = browser.page
    browser.page = browser.context.new_page()
    browser.talk(app.url)
    assert app.running == 2
    first.close()
    app.seconds_until_free(2, left=1)
    browser.wait_for_phase("listening", "talking")
    browser.stop()
    app.seconds_until_free(2)


def test_a_network_that_is_gone_for_ten_seconds(app, visitor):
    """Nothing is sent or answered meanwhile: the slot is freed, and the page, once it is back, says so."""
    browser = visitor().talk(app.url)
    browser.signal(signal.SIGSTOP)
    try:
        print(f"free after {app.seconds_until_free(6):.1f} s")
        time.sleep(5)
    finally:
        browser.signal(signal.SIGCONT)
    browser.page.wait_for_selector(f"{NOTICE}:has-text('connection'), .state:has-text('connection')", timeout=20_000)
    assert "a connection is dead" in app.log.read_text()


def test_a_server_that_stands_still_for_ten_seconds_goes_on(app, visitor):
    """FastRTC ends a conversation at the first sign of an interruption."""
    browser = visitor().talk(app.url)
    app.process.send_signal(signal.SIGSTOP)
    try:
        browser.page.wait_for_selector(f"{NOTICE}:has-text('is interrupted')", timeout=15_000)
        time.sleep(3)  # about ten seconds in all
    finally:
        app.process.send_signal(signal.SIGCONT)
    browser.page.wait_for_function("window.test_peer.connectionState == 'connected'", timeout=10_000)
    browser.page.wait_for_selector(NOTICE, state="detached", timeout=5_000)
    assert app.running == 1
    said = len(browser.words())
    browser.page.wait_for_function(
        f"document.querySelectorAll('#transcript .words').length > {said} || "
        "document.querySelector('#state .state[data-phase=talking]')",
        timeout=20_000,
    )
    browser.stop()
    app.seconds_until_free(3)


def test_a_persona_that_is_too_long_is_refused(app, visitor):
    browser = visitor()
    browser.open(app.url)
    browser.wait_for_phase("ready")
    browser.page.locator("#prompt textarea").fill("word " * 500)
    browser.start()
    browser.wait_for_phase("ended-refused")
    assert "200 are allowed. Shorten it." in browser.text("state")
    assert app.running == 0
    assert "a conversation was refused: PromptError" in app.log.read_text()


@pytest.mark.parametrize(
    ("place", "megabytes", "says"),
    [
        ("#file-question", 500, "maximum"),
        ("#file-question", 0.001, "not a sound file"),
        ("#own-voice", 0.001, "not a sound file"),
    ],
)
def test_an_upload_that_cannot_be_used_is_refused(app, visitor, tmp_path, place, megabytes, says):
    upload = tmp_path / "upload.wav"
    with upload.open("wb") as file:
        file.truncate(round(megabytes * 1e6))
    browser = visitor()
    browser.open(app.url)
    browser.wait_for_phase("ready")
    if place == "#file-question":
        browser.page.get_by_role("tab", name="From a file").click()
    else:
        browser.page.locator("#own-voice-section button").first.click()
    browser.page.locator(f"{place} input[type=file]").set_input_files(upload)
    if place == "#file-question" and megabytes < 1:
        browser.page.wait_for_selector(f"{place} audio, {place} .waveform-container", state="attached")
        browser.page.locator("#file-run").click()
    browser.page.wait_for_selector(f"text={says}", timeout=30_000)
    assert app.running == 0
