"""Pictures of the running page, at a desk and on a phone, light and dark.

    python app.py &
    python docs/screenshots.py http://127.0.0.1:7860 examples/questions/bank.wav

Needs Chromium and playwright. The recording plays as the microphone; without one nobody talks.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import soxr
from playwright.sync_api import Page, sync_playwright

HERE = Path(__file__).parent
TABS = {"file": "From a file", "about": "About"}
TALK_SEC = 14
ROOM_LEVEL = 3e-4  # of full scale: a microphone that hears nothing at all is taken to be muted
SILENT_SEC = (7, 5)  # before and after the question, which is asked over and over
FLAGS = (
    "--no-sandbox --disable-gpu --disable-background-networking --use-fake-ui-for-media-stream "
    "--use-fake-device-for-media-stream --autoplay-policy=no-user-gesture-required"
).split()
START = "#conversation .button-wrap > button:first-child"
SHOWN = re.findall(r"page-([a-z]+)-(\d+)-([a-z]+)\.png", (HERE / "page.md").read_text(encoding="utf-8"))
"""(what, width, theme) of the pictures that the page's description shows."""


def picture(page: Page, what: str, width: int, theme: str) -> None:
    if (what, str(width), theme) not in SHOWN:
        return
    page.wait_for_timeout(1500)
    page.screenshot(path=HERE / f"page-{what}-{width}-{theme}.png", full_page=True)
    print(what, width, theme, flush=True)


def assert_no_scrolling_sideways(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it scrolls sideways"


def talk(page: Page, width: int, theme: str) -> None:
    """A conversation with a recording of it."""
    page.locator("#more button").first.click()
    page.locator("#record input").check()
    page.locator("#more button").first.click()
    page.locator("#conversation button").first.click()
    page.locator(START).click()
    live = "document.querySelector('#state .state[data-phase=listening], #state .state[data-phase=talking]')"
    page.wait_for_function(live, timeout=120_000)
    page.wait_for_timeout(1000 * TALK_SEC)
    picture(page, "live", width, theme)
    page.locator(START).click()
    page.wait_for_selector("#after", state="visible", timeout=60_000)
    picture(page, "after", width, theme)
    assert_no_scrolling_sideways(page)


def main(address: str, question: str | None) -> None:
    flags = list(FLAGS)
    if question is not None:
        sound, rate_hz = soundfile.read(question)
        sound = np.pad(sound, [round(seconds * rate_hz) for seconds in SILENT_SEC])
        sound += np.random.default_rng(0).normal(scale=ROOM_LEVEL, size=len(sound))
        microphone = Path(tempfile.mkdtemp()) / "microphone.wav"
        soundfile.write(microphone, soxr.resample(sound, rate_hz, 48_000), 48_000, subtype="PCM_16")
        flags.append(f"--use-file-for-fake-audio-capture={microphone}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=flags)
        for width, theme in ((1280, "light"), (390, "dark"), (1280, "dark"), (390, "light")):
            page = browser.new_page(viewport={"width": width, "height": 900}, permissions=["microphone"])
            page.goto(f"{address}?__theme={theme}", timeout=120_000)
            page.wait_for_selector("#state .state[data-phase=ready]", timeout=240_000)
            for tab, title in TABS.items():
                page.get_by_role("tab", name=title).click()
                picture(page, tab, width, theme)
            assert_no_scrolling_sideways(page)
            if question is not None:
                page.get_by_role("tab", name="Talk").click()
                talk(page, width, theme)
            page.close()
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
