"""A real browser with a microphone that plays a file: headless Chromium, driven by playwright."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
import soxr

from benchmarks.ports import free_port
from personaplex.weights.names import nano_folder

ROOT = Path(__file__).parents[1]
START_WITHIN_SEC = 120.0
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or "/usr/bin/chromium"
RATE_HZ = 48_000
START_BUTTON = "#conversation .button-wrap > button:first-child"
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --use-fake-ui-for-media-stream --use-fake-device-for-media-stream "
    "--autoplay-policy=no-user-gesture-required"
).split()

WATCH = """
(() => {
  const Peer = window.RTCPeerConnection, getMedia = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
  window.test_microphones = [];
  navigator.mediaDevices.getUserMedia = async (wish) => {
    window.test_microphones.push(window.test_microphone = await getMedia(wish));
    return window.test_microphone;
  };
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

    def __init__(self, playwright, microphone: Path, *more_flags: str):
        self._profile = tempfile.mkdtemp(prefix="visitor-")
        self.connected_sec = float("nan")
        self.context = playwright.chromium.launch_persistent_context(
            self._profile, executable_path=CHROMIUM, headless=True, permissions=["microphone"],
            args=[*FLAGS, f"--use-file-for-fake-audio-capture={microphone}", *more_flags],
        )  # fmt: skip
        self.page = self.context.pages[0] if self.context.pages else self.context.new_page()
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.context.add_init_script(WATCH)

    def open(self, url: str) -> None:
        self.page.goto(url)
        self.page.wait_for_selector("#conversation button", timeout=60_000)

    def take_microphone(self) -> None:
        if not self.page.locator(START_BUTTON).count():
            self.page.locator("#conversation button").first.click()
            self.page.wait_for_selector(START_BUTTON, timeout=20_000)

    def start(self) -> None:
        """Press Start and wait for the connection; ``connected_sec`` then says how long it took."""
        self.take_microphone()
        self.page.evaluate("window.test_peer = undefined")
        pressed_at = time.monotonic()
        self.page.locator(START_BUTTON).click()
        self.page.wait_for_function("window.test_peer?.connectionState == 'connected'", timeout=30_000, polling=20)
        self.connected_sec = time.monotonic() - pressed_at

    def talk(self, url: str, prompt: str | None = None, keep: bool = False) -> Browser:
        """Open the page and start: as the persona ``prompt``, with a recording if it is to ``keep`` one."""
        self.open(url)
        self.wait_for_phase("ready")
        if prompt is not None:
            self.page.locator("#prompt textarea").fill(prompt)
        if keep:
            self.page.locator("#more button").first.click()
            self.page.locator("#record input").check()
        self.start()
        self.wait_for_phase("listening", "talking")
        return self

    def stop(self) -> None:
        self.page.locator(START_BUTTON).click()

    def text(self, element_id: str) -> str:
        return self.page.locator(f"#{element_id}").inner_text()

    def wait_for_text(self, element_id: str, part: str, timeout_sec: float = 30.0) -> None:
        found = f"document.getElementById({element_id!r})?.innerText.toLowerCase().includes({part.lower()!r})"
        self.page.wait_for_function(found, timeout=timeout_sec * 1000)

    def wait_for_phase(self, *phases: str, timeout_sec: float = 60.0) -> None:
        where = ", ".join(f"#state .state[data-phase={phase}]" for phase in phases)
        self.page.wait_for_selector(where, timeout=timeout_sec * 1000)

    def words(self) -> list[str]:
        """The transcript."""
        return self.page.locator("#transcript .words").all_inner_texts()

    def begin_recording(self, seconds: float) -> None:
        self.page.evaluate(f"window.test_recording = window.test_record({seconds}), 0")

    def recorded(self) -> tuple[np.ndarray, np.ndarray]:
        """Microphone and speaker as the page had them, [N] float32 at 48 kHz."""
        sides = self.page.evaluate("window.test_recording")
        return tuple(np.frombuffer(base64.b64decode(side), np.int16).astype(np.float32) / 32768 for side in sides)

    def record(self, seconds: float) -> tuple[np.ndarray, np.ndarray]:
        self.begin_recording(seconds)
        return self.recorded()

    def kept(self, ending: str) -> Path:
        """A file that the page offers after a conversation."""
        self.page.wait_for_selector("#after", state="visible", timeout=30_000)
        with self.page.expect_download() as download:
            self.page.locator(f"#after a[download$='{ending}']").first.click()
        return Path(download.value.path())

    def close(self) -> None:
        self.context.close()
        shutil.rmtree(self._profile, ignore_errors=True)

    def signal(self, number: int) -> None:
        """To all its processes: a kill says no word to anybody, SIGSTOP is a network that carries nothing."""
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self._profile.encode() in (process / "cmdline").read_bytes():
                    os.kill(int(process.name), number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)


# ---------------------------------------------------------------------------------- the program


@dataclass
class Program:
    """The page, or a smaller one, in a process of its own."""

    url: str
    process: subprocess.Popen
    log: Path

    def figure(self, name: str) -> float:
        """One of its metrics."""
        lines = httpx.get(f"{self.url}/metrics", timeout=10).text.splitlines()
        return float(next(line for line in lines if line.startswith(name + " ")).split()[1])

    @property
    def running(self) -> float:
        """Conversations that hold a slot."""
        return self.figure("personaplex_conversations")

    def seconds_until_free(self, within_sec: float, left: int = 0) -> float:
        """Until no more than ``left`` conversations run."""
        started = time.monotonic()
        while self.running > left:
            assert time.monotonic() - started < within_sec, f"the slot is not free after {within_sec} s"
            time.sleep(0.03)
        return time.monotonic() - started


@contextlib.contextmanager
def running(
    command: list[str], folder: Path, ready: str = "/health", *, host: str = "127.0.0.1", prefix: Sequence[str] = (),
    **environ: str,
) -> Iterator[Program]:  # fmt: skip
    """``python COMMAND… PORT`` until it is killed here; given once ``ready`` answers 200 at ``host``.

    ``prefix`` is a command that runs another, such as ``ip netns exec NAME``.
    """
    port = free_port()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PERSONAPLEX_")}
    kept |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "HF_HUB_OFFLINE": "1", **environ}
    kept["GRADIO_TEMP_DIR"] = str(folder / "uploads")
    log = folder / "log.txt"
    with log.open("w") as file:
        process = subprocess.Popen(
            [*prefix, sys.executable, *command, str(port)],
            cwd=ROOT,
            env=kept,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    program = Program(f"http://{host}:{port}", process, log)
    try:
        until = time.monotonic() + START_WITHIN_SEC
        while not answers(program.url + ready):
            told = log.read_text()
            given_up = process.poll() is not None or "could not be loaded" in told or time.monotonic() > until
            assert not given_up, told
            time.sleep(0.05)
        yield program
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # ZeroGPU's workers are forked from it
        process.wait()


def answers(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(url, timeout=10).status_code == 200
    return False


def has_nano() -> bool:
    return (nano_folder() / "config.json").is_file()


def model_flags() -> list[str]:
    """The embedded model; before it exists, the random one of the tests, which babbles."""
    return (
        ["--model", "nano"]
        if has_nano()
        else ["--model", "tests/golden", "--dtype", "float32", "--window", "published"]
    )


# ---------------------------------------------------------------------------------- sound and words


def words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.lower())


def likeness(said: np.ndarray, heard: np.ndarray, rate_hz: int) -> float:
    """How well what is heard is found in what was said, 0 to 1: [N], [M] float32, wherever it lies and however loud.

    The median over the louder half-seconds of what is heard, so that a buffer may stretch a pause between them.
    """
    size = rate_hz // 2
    blocks = heard[: len(heard) // size * size].reshape(-1, size)
    loud = np.sqrt(np.mean(blocks**2, axis=1))
    blocks = blocks[loud > 0.5 * loud.max()]
    spectrum = np.fft.rfft(said, len(said) + size)
    energy = np.cumsum(np.concatenate([np.zeros(1), said.astype(np.float64) ** 2]))
    power = np.sqrt(np.maximum(energy[size:] - energy[:-size], 0)) + 1e-2  # of each place; a floor below silence
    matches = []
    for block in blocks:
        match = np.fft.irfft(spectrum * np.conj(np.fft.rfft(block, len(said) + size)), len(said) + size)
        matches.append(np.max(match[: len(power)] / power) / np.linalg.norm(block))
    return float(np.median(matches))


def lag_ms(sent: np.ndarray, heard: np.ndarray) -> float:
    """How much later the second signal holds what the first does: [N], [M] float32 at 48 kHz, up to 2 s."""
    size = len(sent) + len(heard)
    match = np.fft.irfft(np.fft.rfft(heard, size) * np.conj(np.fft.rfft(sent, size)), size)
    return 1000 * float(np.argmax(np.abs(match[: 2 * RATE_HZ]))) / RATE_HZ


def rms(sound: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(sound, dtype=np.float64))))
