"""The page in a process of its own, and plain requests to it, for tests."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from benchmarks.ports import free_port

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
QUESTION = GOLDEN / "user.wav"
START_WITHIN_SEC = 240.0  # on a machine that is busy with other things


class App:
    """The program in a process of its own, on a port of its own."""

    def __init__(self, folder: Path, *flags: str, **environ: str) -> None:
        port = free_port()
        self.address, self.uploads = f"http://127.0.0.1:{port}", folder / "uploads"
        self.log = folder / "log.txt"
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PERSONAPLEX_")}
        kept |= {"GRADIO_TEMP_DIR": str(self.uploads), "HF_HUB_OFFLINE": "1", **environ}
        kept["OMP_NUM_THREADS"] = "1"  # threads that wait for each other crawl on a busy machine
        command = [sys.executable, "app.py", "--model", str(GOLDEN), "--dtype", "float32", "--port", str(port)]
        command += ["--window", "published"]  # its context is shorter than a prompt
        command += ["--keep-sec", "20", "--conversations", "1", *flags]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=kept, stdout=log, stderr=log)

    def wait_for(self, path: str, status: int) -> httpx.Response:
        until = time.monotonic() + START_WITHIN_SEC
        while time.monotonic() < until:
            assert self.process.poll() is None, self.log.read_text()
            try:
                answer = httpx.get(self.address + path, timeout=10)
            except httpx.TransportError:
                answer = None
            if answer is not None and answer.status_code == status:
                return answer
            time.sleep(0.2)
        raise AssertionError(f"{path} did not answer {status}: {self.log.read_text()}")


@contextlib.contextmanager
def running_app(folder: Path, *flags: str, **environ: str) -> Iterator[App]:
    """The page with its model loaded, until it is killed."""
    running = App(folder, *flags, **environ)
    try:
        running.wait_for("/", 200)
        running.wait_for("/health", 200)
        yield running
    finally:
        running.process.kill()
        running.process.wait()


def call(app: App, data: list, **headers: str) -> str:
    """What a plain POST to the API is told."""
    started = httpx.post(app.address + "/gradio_api/call/answer", json={"data": data}, timeout=60, headers=headers)
    return httpx.get(f"{app.address}/gradio_api/call/answer/{started.json()['event_id']}", timeout=60).text


def upload(app: App, name: str = "question.wav", field: str = "files") -> str:
    sound = {field: (name, QUESTION.read_bytes(), "audio/wav")}
    answer = httpx.post(app.address + "/gradio_api/upload", files=sound, timeout=60)
    return answer.json()[0] if field == "files" else ""


def as_file(path: str) -> dict:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def answer_index(app: App) -> int:
    config = httpx.get(app.address + "/config", timeout=60).json()
    return next(event["id"] for event in config["dependencies"] if event["api_name"] == "answer")
