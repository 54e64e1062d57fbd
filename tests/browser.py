"""A real browser with a microphone that plays a file: headless Chromium, driven by playwright."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or "/usr/bin/chromium"
RATE_HZ = 48_000
START_BUTTON = "#conversation button[aria-label='start stream']"
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --use-fake-ui-for-media-stream --use-fake-device-for-media-stream "
    "--autoplay-policy=no-user-gesture-required"
).split()

WATCH = """
(() => {
  const Peer = window.RTCPeerConnection, getMedia = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
  navigator.mediaDevices.getUserMedia = async (wish) => (window.test_microphone = await getMedia(wish));
  window.RTCPeerConnection = function (...settings) {
    const peer = new Peer(...settings);
    window.test_peer = peer;
    peer.addEventListener('track', (event) => { window.test_speaker = event.streams[0]; });
    return peer;
  };
  window.RTCPeerConnection.prototype = Peer.prototype;
  window.test_record = async (seconds) => {
    const context = new AudioContext({ sampleRate: 48000 });
    await context.resume();
    const code = `registerProcessor('both', class extends AudioWorkletProcessor {
      process([microphone, speaker]) {
        const of = (input) => (input && input[0] ? input[0].slice() : new Float32Array(128));
        this.port.postMessage([of(microphone), of(speaker)]);
        return true;
      }});`;
    await context.audioWorklet.addModule(URL.createObjectURL(new Blob([code], { type: 'text/javascript' })));
    const node = new AudioWorkletNode(context, 'both', { numberOfInputs: 2, channelCount: 1,
                                                         channelCountMode: 'explicit' });
    const sides = [[], []];
    node.port.onmessage = ({ data }) => data.forEach((block, side) => sides[side].push(block));
    context.createMediaStreamSource(window.test_microphone).connect(node, 0, 0);
    context.createMediaStreamSource(window.test_speaker).connect(node, 0, 1);
    const silent = context.createGain();
    silent.gain.value = 0;
    node.connect(silent).connect(context.destination);
    await new Promise((done) => setTimeout(done, seconds * 1000));
    node.port.onmessage = null;
    await context.close();
    return sides.map((blocks) => {
      const samples = new Int16Array(blocks.length * 128);
      blocks.forEach((block, at) => block.forEach((value, i) => {
        samples[at * 128 + i] = Math.max(-1, Math.min(1, value)) * 32767; }));
      const bytes = new Uint8Array(samples.buffer);
      let text = '';
      for (let i = 0; i < bytes.length; i += 32768) text += String.fromCharCode(...bytes.subarray(i, i + 32768));
      return btoa(text);
    });
  };
})();
"""


def require_browser() -> None:
    """Skip, and say why, where no browser is."""
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not Path(CHROMIUM).exists():
        pytest.skip("Chromium is not installed (apt-get install chromium)")


def microphone_file(path: Path, sound: np.ndarray, rate_hz: int) -> Path:
    """What Chromium takes for a microphone: 48 kHz, mono, 16 bit; it is played in a loop."""
    soundfile.write(path, soxr.resample(sound, rate_hz, RATE_HZ), RATE_HZ, subtype="PCM_16")
    return path


class Browser:
    """One visitor's browser, with a profile of its own."""

    def __init__(self, playwright, microphone: Path):
        self._profile = tempfile.mkdtemp(prefix="visitor-")
        self.context = playwright.chromium.launch_persistent_context(
            self._profile, executable_path=CHROMIUM, headless=True, permissions=["microphone"],
            args=[*FLAGS, f"--use-file-for-fake-audio-capture={microphone}"],
        )  # fmt: skip
        self.page = self.context.pages[0] if self.context.pages else self.context.new_page()
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.context.add_init_script(WATCH)

    def open(self, url: str) -> None:
        self.page.goto(url)
        self.page.wait_for_selector("#conversation button", timeout=60_000)

    def start(self) -> float:
        """Press Start; seconds until the connection stands."""
        if not self.page.locator(START_BUTTON).count():  # first the microphone is asked for
            self.page.locator("#conversation button").first.click()
            self.page.wait_for_selector(START_BUTTON, timeout=20_000)
        self.page.evaluate("window.test_peer = undefined")
        pressed_at = time.monotonic()
        self.page.locator(START_BUTTON).click()
        self.page.wait_for_function("window.test_peer?.connectionState == 'connected'", timeout=30_000, polling=20)
        return time.monotonic() - pressed_at

    def stop(self) -> None:
        self.page.locator(START_BUTTON).click()

    def text(self, element_id: str) -> str:
        return self.page.locator(f"#{element_id}").inner_text()

    def wait_for_text(self, element_id: str, part: str, timeout_sec: float = 30.0) -> None:
        found = f"document.getElementById({element_id!r})?.innerText.toLowerCase().includes({part.lower()!r})"
        self.page.wait_for_function(found, timeout=timeout_sec * 1000)

    def record(self, seconds: float) -> tuple[np.ndarray, np.ndarray]:
        """Microphone and speaker as the page has them, [N] float32 at 48 kHz."""
        sides = self.page.evaluate(f"window.test_record({seconds})")
        return tuple(np.frombuffer(base64.b64decode(side), np.int16).astype(np.float32) / 32768 for side in sides)

    def close(self) -> None:
        self.context.close()
        shutil.rmtree(self._profile, ignore_errors=True)

    def kill(self) -> None:
        """Without a word to anybody."""
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if self._profile.encode() in (process / "cmdline").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)
            except (OSError, ProcessLookupError):
                continue


def lag_ms(sent: np.ndarray, heard: np.ndarray) -> float:
    """How much later the second signal holds what the first does: [N], [M] float32 at 48 kHz, up to 2 s."""
    size = len(sent) + len(heard)
    match = np.fft.irfft(np.fft.rfft(heard, size) * np.conj(np.fft.rfft(sent, size)), size)
    return 1000 * float(np.argmax(np.abs(match[: 2 * RATE_HZ]))) / RATE_HZ


def rms(sound: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(sound, dtype=np.float64))))
