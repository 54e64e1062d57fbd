"""The microphone's level in words and the button that opens it, in Chromium, on sounds that the test makes."""

import pytest
from browser import CHROMIUM, FLAGS

from personaplex.web import page as page_module
from personaplex.web.html import MICROPHONE

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

SCRIPT = (page_module.Path(page_module.__file__).parent / "microphone.js").read_text(encoding="utf-8")
PAGE = (
    f"<style>.bar i {{ display: block; height: 5px }}</style><div id=microphone>{MICROPHONE}</div><textarea></textarea>"
)
SOUNDS = """
const context = new AudioContext();
// A tone whose loudness changes every 150 ms; the same seed, the same changes.
function voice(seed, loudest) {
  const tone = context.createOscillator(), loudness = context.createGain();
  tone.frequency.value = 300;
  let state = seed;
  for (let at = 0; at < 30; at += 0.15) {
    state = (state * 48271) % 2147483647;
    loudness.gain.setValueAtTime(state % 3 ? loudest * (0.02 + state / 2147483647) : 0.0005, context.currentTime + at);
  }
  tone.connect(loudness);
  tone.start();
  return loudness;
}
function streamOf(node) {
  const out = context.createMediaStreamDestination();
  node.connect(out);
  return out.stream;
}
function through(node, delay_sec, gain) {
  const delay = context.createDelay(1), softer = context.createGain();
  delay.delayTime.value = delay_sec;
  softer.gain.value = gain;
  node.connect(delay).connect(softer);
  return softer;
}
"""


@pytest.fixture(scope="module")
def chromium(playwright):
    browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
    yield browser
    browser.close()


@pytest.fixture
def page(chromium):
    page = chromium.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.set_content(PAGE)
    page.add_script_tag(content=SCRIPT)
    page.add_script_tag(content=SOUNDS)
    yield page
    page.close()
    assert not errors


def told(page, verdict):
    page.wait_for_selector(f"#microphone .level[data-verdict={verdict}]", timeout=20_000)
    return page.locator("#microphone [role=status]").inner_text()


def test_the_meter_moves_and_says_that_it_hears(page):
    assert "off" in page.locator("#microphone [role=status]").inner_text()
    page.evaluate("PersonaPlexMicrophone.follow(streamOf(voice(7, 0.3)))")
    assert told(page, "heard") == "I hear you."
    widths = {
        page.locator("#microphone i").evaluate("bar => bar.style.width")
        for _ in range(8)
        if not page.wait_for_timeout(120)
    }
    assert len(widths) > 2


@pytest.mark.parametrize(("loudest", "verdict"), [(0.008, "soft"), (3.0, "clipped"), (0.00001, "quiet")])
def test_too_soft_too_loud_and_nothing(page, loudest, verdict):
    page.evaluate(f"PersonaPlexMicrophone.follow(streamOf(voice(7, {loudest})))")
    told(page, verdict)


def test_its_own_loudspeaker_is_told_from_a_voice(page):
    page.evaluate(
        "const spoken = voice(7, 0.6); PersonaPlexMicrophone.play(streamOf(spoken));"
        "PersonaPlexMicrophone.follow(streamOf(through(spoken, 0.24, 0.1)))"
    )
    assert "headphones" in told(page, "myself")
    page.evaluate("PersonaPlexMicrophone.follow(streamOf(voice(12345, 0.6)))")
    told(page, "heard")
    page.wait_for_timeout(3000)
    assert page.locator("#microphone .level").get_attribute("data-verdict") == "heard"


def is_open(page):
    return page.evaluate("track.enabled")


def test_the_space_bar_and_the_button_hold_the_microphone_open(page):
    page.evaluate(
        "var stream = streamOf(voice(7, 0.3)), [track] = stream.getAudioTracks(); PersonaPlexMicrophone.follow(stream)"
    )
    assert is_open(page) and page.locator("button.hold").is_hidden()
    page.locator("input.holding").check()
    assert "space bar" in told(page, "closed") and not is_open(page)
    page.keyboard.down("Space")
    assert is_open(page) and page.locator("button.hold").get_attribute("aria-pressed") == "true"
    told(page, "heard")
    page.keyboard.up("Space")
    assert not is_open(page)
    page.locator("button.hold").hover()
    page.mouse.down()
    assert is_open(page)
    page.mouse.up()
    assert not is_open(page) and page.locator("button.hold").get_attribute("aria-pressed") == "false"


def test_a_space_that_is_typed_and_a_page_that_is_left_hold_nothing(page):
    page.evaluate(
        "var stream = streamOf(voice(7, 0.3)), [track] = stream.getAudioTracks(); PersonaPlexMicrophone.follow(stream)"
    )
    page.locator("input.holding").check()
    page.locator("textarea").press("Space")
    assert page.locator("textarea").input_value() == " " and not is_open(page)
    page.locator("button.hold").focus()
    page.keyboard.down("Space")
    page.evaluate("dispatchEvent(new Event('blur'))")
    assert not is_open(page)
    page.keyboard.up("Space")
    page.locator("input.holding").uncheck()
    assert is_open(page) and page.locator("button.hold").is_hidden()
