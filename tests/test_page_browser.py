"""The page in a real browser: what it does without a microphone, on a phone, and by the keyboard."""

from __future__ import annotations

import pytest
from browser import CHROMIUM, FLAGS, require_browser
from page_app import running_app

pytestmark = pytest.mark.browser
PATIENCE_MS = 120_000


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    require_browser()
    with running_app(tmp_path_factory.mktemp("app")) as app:
        yield app


@pytest.fixture(scope="module")
def chromium():
    require_browser()
    from playwright.sync_api import sync_playwright

    # Without the flag that says yes to every question, a headless browser gives no microphone.
    flags = [flag for flag in FLAGS if flag != "--use-fake-ui-for-media-stream"]
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield started
        started.close()


@pytest.fixture
def page(chromium, app, request):
    opened = chromium.new_page(viewport=getattr(request, "param", {"width": 1280, "height": 900}))
    opened.set_default_timeout(PATIENCE_MS)
    opened.goto(app.address)
    opened.wait_for_selector("#state .state[data-phase=ready]")
    yield opened
    opened.close()


def wait_for_text(page, selector: str, text: str) -> None:
    page.wait_for_function(
        "([selector, text]) => (document.querySelector(selector)?.innerText ?? '').includes(text)",
        arg=[selector, text],
    )


def test_without_a_microphone_the_page_says_what_to_do(page):
    page.locator("#conversation button").first.click()
    wait_for_text(page, "#notice .notice[role=alert]", "gives no microphone to this page")


def test_a_persona_fills_the_box_and_what_is_typed_is_counted(page):
    page.locator("#persona input").click()
    page.get_by_role("option", name="Drone rental").click()
    page.wait_for_function("document.querySelector('#prompt textarea').value.includes('Silver Drone Rentals')")
    page.locator("#prompt textarea").fill("word " * 300)
    wait_for_text(page, "#prompt-count .over", "too long by")
    page.locator("#prompt textarea").fill("You are kind.")
    page.wait_for_function("!document.querySelector('#prompt-count .over')")


@pytest.mark.parametrize("page", [{"width": 390, "height": 844}, {"width": 320, "height": 600}], indirect=True)
def test_nothing_scrolls_sideways_on_a_phone(page):
    for tab in ("Talk", "From a file", "About"):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(500)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), tab


def test_the_keyboard_reaches_everything(page):
    """Tab from the top: settings, then the conversation, each with a visible outline."""
    reached = set()
    page.evaluate("document.body.focus()")
    for _ in range(40):
        page.keyboard.press("Tab")
        reached |= set(
            page.evaluate(
                "(() => { const ids = []; for (let e = document.activeElement; e; e = e.parentElement)"
                " if (e.id) ids.push(e.id); return ids; })()"
            )
        )
    assert {"persona", "prompt", "voice", "conversation"} <= reached


def test_an_example_is_answered_with_two_clicks(page):
    page.get_by_role("tab", name="From a file").click()
    page.get_by_role("button", name="Bank").click()
    page.wait_for_selector("#file-question audio, #file-question .waveform-container", state="attached")
    page.locator("#file-run").click()
    page.wait_for_selector("#file-both", state="visible")
    assert page.locator("#file-picture svg").count() == 1
    assert page.locator("#file-downloads").inner_text().count("answer") == 4
