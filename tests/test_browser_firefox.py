"""The page with a real Firefox: plainly, through a firewall, and where no sound can pass."""

from __future__ import annotations

import re
import time

import pytest
from browser import model_flags, running
from firefox import Firefox, require_firefox
from firewall import NO_UDP, STATEFUL, behind_firewall

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


@pytest.fixture
def firefox():
    require_firefox()
    browser = Firefox()
    yield browser
    browser.close()


def page(folder, *flags, **where):
    return running(["app.py", *model_flags(), *flags, "--port"], folder, **where)


def trouble_in(app) -> list[str]:
    """Lines of the log that a good conversation must not leave."""
    return re.findall(r".*(?: ERROR |Traceback|candidate).*", app.log.read_text())


def test_a_conversation(firefox, tmp_path):
    with page(tmp_path) as app:
        firefox.open(app.url)
        firefox.start()
        print(f"connected after {firefox.connected_sec:.2f} s")
        firefox.wait_for("document.querySelector('#transcript .words')", 30)
        assert app.running == 1
        firefox.stop()
        app.seconds_until_free(3)
        assert firefox.words() and not trouble_in(app)


def test_through_a_stateful_firewall(firefox, tmp_path):
    """The server must send to Firefox's own address first; FastRTC 0.0.34 threw that away."""
    with (
        behind_firewall(STATEFUL) as inside,
        page(tmp_path, "--host", inside.address, host=inside.address, prefix=inside.prefix) as app,
    ):
        firefox.open(app.url)
        firefox.start()
        print(f"connected after {firefox.connected_sec:.2f} s")
        assert app.running == 1 and not trouble_in(app)


def test_where_no_sound_can_pass_the_page_says_so_within_ten_seconds(firefox, tmp_path):
    with (
        behind_firewall(NO_UDP) as inside,
        page(tmp_path, "--host", inside.address, host=inside.address, prefix=inside.prefix) as app,
    ):
        firefox.open(app.url)
        firefox.press_start()
        waited = firefox.wait_for("document.querySelector('#notice')?.innerText.includes('Sound cannot pass')", 10)
        notice = firefox.text("notice")
        assert waited < 10 and "TURN" in notice and "--share" in notice and "From a file" in notice
        firefox.wait_for("document.querySelector('#conversation .button-wrap')?.innerText.includes('Start')", 5)
        assert app.running == 0
        time.sleep(3)
        assert "a connection that began no conversation" in app.log.read_text()
