"""The page under long and hostile use: what breaks, and what is left behind; ends in one JSON line.

    python -m benchmarks.soak                             # about thirty-five minutes
    python -m benchmarks.soak --talks 5 --minutes 0.5     # a short run

Starts the page with nano in a temporary folder and visits it on loopback: talks one after another, four at once,
clients that are killed, uploads that break off, malformed offers at 20 a second beside a talk, and at last one long
talk with a recording, minute by minute.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from benchmarks.load import QUESTION, figures, question_sound
from benchmarks.measuring import facts
from benchmarks.ports import free_port
from benchmarks.rtc_client import Page, Visitor
from personaplex.machine.choose import inspect_here

ROOT = Path(__file__).parents[1]
STARTED_WITHIN_SEC, CONNECTED_WITHIN_SEC, FREE_WITHIN_SEC = 180.0, 120.0, 15.0
APART_SEC = 0.2
WARM_TALK_SEC, WARM_TOGETHER_SEC = 0.3, 20.0
KEEP_SEC = 10.0  # the least that the page allows
MALFORMED_A_SECOND = 20
UPLOAD_BYTES = 1_000_000
CANDIDATE = "candidate:0 1 UDP 2122187007 192.0.2.2 40487 typ host"
MALFORMED: tuple[Any, ...] = (
    None,
    {},
    {"webrtc_id": "a\nERROR a line of my own"},
    {"webrtc_id": "a", "type": "offer", "sdp": "nonsense"},
    {"webrtc_id": "a", "type": "offer", "sdp": "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\n"},
    {"webrtc_id": "a", "type": "offer", "sdp": "v=0\r\n" * 30_000},
    {"webrtc_id": "nobody", "type": "ice-candidate", "candidate": {"candidate": CANDIDATE, "sdpMid": "0"}},
    {"webrtc_id": "nobody", "type": "ice-candidate", "candidate": {"candidate": "a\nERROR another"}},
)


@dataclass
class Report:
    """The result; everything but the first rows should be 0, or as much after as before."""

    benchmark: str = "soak"
    talks: int = 0
    at_once: int = 0
    at_once_minutes: float = 0.0
    killed_clients: int = 0
    aborted_uploads: int = 0
    malformed_offers: int = 0
    failed_talks: int = 0
    dropped_frames: int = 0  # of all talks
    dropped_frames_beside_malformed: int = 0
    malformed_offers_answered_500: int = 0
    slots_lost: int = 0
    descriptors_before: int = 0
    descriptors_after: int = 0
    memory_before_mb: float = 0.0
    memory_after_mb: float = 0.0
    memory_mb: dict[str, float] = field(default_factory=dict)
    """After each stage."""
    recorded_cpu_sec: list[float] = field(default_factory=list)
    recorded_memory_mb: list[float] = field(default_factory=list)
    """Of each minute of the long talk: the page's processor time, and its memory afterwards. The recording itself is
    5.8 MB a minute."""
    files_left: int = 0
    log_lines: int = 0
    tracebacks: int = 0
    errors: list[str] = field(default_factory=list)


def main(arguments: list[str] | None = None) -> None:
    given = _arguments(arguments)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder, _page(given, Path(folder)) as (url, process):
        report = asyncio.run(_Soak(given, url, process, Path(folder)).run())
    print(json.dumps(asdict(report) | facts(inspect_here(), "cpu")))


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    warm = "short ones before the first look: the allocator's and the interpreter's pools fill within some eighty"
    parser.add_argument("--warm-talks", type=int, default=100, help=warm)
    parser.add_argument("--talks", type=int, default=50, help="one after another")
    parser.add_argument("--talk-sec", type=float, default=4.0, help="how long each of them is")
    parser.add_argument("--at-once", type=int, default=4, help="visitors who talk at the same time")
    parser.add_argument("--minutes", type=float, default=10.0, help="for so long")
    parser.add_argument("--killed", type=int, default=10, help="clients that are killed in their talk")
    parser.add_argument("--uploads", type=int, default=20, help="uploads that break off")
    parser.add_argument("--malformed-sec", type=float, default=60.0, help="seconds of malformed offers beside a talk")
    parser.add_argument("--recorded-minutes", type=float, default=10.0, help="of one talk that is recorded")
    calm = "seconds before the last look; unconnected offers end after 10, a visit as long after its page"
    parser.add_argument("--calm-sec", type=float, default=20.0, help=calm)
    return parser.parse_args(arguments)


@contextlib.contextmanager
def _page(given: argparse.Namespace, folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """The page in a process of its own, whose temporary files all lie in ``folder``."""
    port = free_port()
    flags = {
        "model": "nano", "device": "cpu", "port": port, "conversations": given.at_once, "keep-sec": KEEP_SEC,
        "conversation-sec": max(600.0, 60 * max(given.minutes, given.recorded_minutes) + 60),
    }  # fmt: skip
    command = [sys.executable, "-m", "personaplex", "page", *(f"--{name}={value}" for name, value in flags.items())]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PERSONAPLEX_")}
    (folder / "tmp").mkdir()
    environ |= {"GRADIO_TEMP_DIR": str(folder / "uploads"), "TMPDIR": str(folder / "tmp"), "HF_HUB_OFFLINE": "1"}
    with (folder / "log.txt").open("w") as log:
        page = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_healthy(url, page, folder / "log.txt")
        yield url, psutil.Process(page.pid)
    finally:
        page.terminate()
        page.wait(10)


def _wait_until_healthy(url: str, page: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + STARTED_WITHIN_SEC
    while time.monotonic() < until and page.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/health", timeout=10).status_code == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"the page did not start within {STARTED_WITHIN_SEC:.0f} s; its log:\n{log.read_text()}")


class _Soak:
    """The stages, and what is counted in them."""

    def __init__(self, given: argparse.Namespace, url: str, process: psutil.Process, folder: Path):
        self.given, self.url, self.process, self.folder = given, url, process, folder
        self.report = Report(at_once=given.at_once, at_once_minutes=given.minutes)

    async def run(self) -> Report:
        """All stages; the page is warm before the first figures are taken."""
        report, given = self.report, self.given
        for seconds in [given.talk_sec] * given.at_once + [WARM_TALK_SEC] * given.warm_talks:
            await self._talk(seconds)
            await self._slots_are_free()
        await self._at_once(WARM_TOGETHER_SEC)  # what each of as many at once holds is taken once
        await self._slots_are_free()
        dropped = self._dropped()
        files, report.descriptors_before, report.memory_before_mb = self._held()
        for _ in range(given.talks):
            report.talks += await self._talk(given.talk_sec)
            await self._slots_are_free()
        self._note("talks")
        report.talks += await self._at_once(60 * given.minutes)
        await self._slots_are_free()
        self._note("at once")
        for _ in range(given.killed):
            report.killed_clients += await self._talk(given.talk_sec, end="vanish")
            await self._slots_are_free()
        self._note("killed")
        await self._abort_uploads()
        self._note("uploads")
        await self._malformed_beside_a_talk()
        await self._slots_are_free()
        self._note("malformed")
        await asyncio.sleep(given.calm_sec)
        left, report.descriptors_after, report.memory_after_mb = self._held()
        report.files_left = len(left - files)
        await self._recorded_talk()  # the last: of what it frees the allocator keeps some
        await self._slots_are_free()
        report.dropped_frames = self._dropped() - dropped
        log = (self.folder / "log.txt").read_text(errors="replace")
        report.log_lines, report.tracebacks = len(log.splitlines()), log.count("Traceback")
        return report

    # -- stages ------------------------------------------------------------------------------

    async def _talk(self, seconds: float, end: str = "stop", **changes: object) -> int:
        """One visitor's talk, with these changes to the page's settings; 1 unless it fails, which is noted."""
        visitor = Visitor(self.url, self._sound(seconds), **changes)
        try:
            await visitor.connect(CONNECTED_WITHIN_SEC)
            await asyncio.sleep(seconds)
            ended_early = visitor.end_message
        except (ConnectionRefusedError, TimeoutError, httpx.HTTPError) as error:
            ended_early = f"{type(error).__name__}: {error}"
        if hasattr(visitor, "pc"):
            await getattr(visitor, end)()
        if ended_early:
            self.report.failed_talks += 1
            self.report.errors.append(ended_early)
        return not ended_early

    async def _at_once(self, seconds: float) -> int:
        async def talk(number: int) -> int:
            await asyncio.sleep(number * APART_SEC)
            return await self._talk(seconds)

        return sum(await asyncio.gather(*(talk(number) for number in range(self.given.at_once))))

    async def _abort_uploads(self) -> None:
        """Announce a file, send half of it, and hang up."""
        boundary = secrets.token_hex(8)
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="question.wav"\r\n'
            "Content-Type: audio/wav\r\n\r\n"
        ).encode()
        request = (
            f"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {UPLOAD_BYTES}\r\n"
            f"Content-Type: multipart/form-data; boundary={boundary}\r\n\r\n"
        ).encode()
        address = httpx.URL(self.url)
        for _ in range(self.given.uploads):
            _, writer = await asyncio.open_connection(address.host, address.port)
            writer.write(request + head + secrets.token_bytes(UPLOAD_BYTES // 2))
            await writer.drain()
            await asyncio.sleep(0.1)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            self.report.aborted_uploads += 1

    async def _malformed_beside_a_talk(self) -> None:
        """Offers that cannot be used, at a steady rate, while one visitor talks."""
        seconds = self.given.malformed_sec
        before = self._dropped()
        talking = asyncio.create_task(self._talk(seconds + 2))
        page = await Page.load(self.url)
        started, sent = time.monotonic(), 0
        while (passed := time.monotonic() - started) < seconds:
            if sent < passed * MALFORMED_A_SECOND:
                await self._send_malformed(page, MALFORMED[sent % len(MALFORMED)])
                sent += 1
            else:
                await asyncio.sleep(0.01)
        self.report.malformed_offers = sent
        self.report.talks += await talking
        await page.http.aclose()
        self.report.dropped_frames_beside_malformed = self._dropped() - before

    async def _recorded_talk(self) -> None:
        """One visitor who talks on and on, and wants a recording of it."""
        report, seconds = self.report, 60 * self.given.recorded_minutes
        talking = asyncio.create_task(self._talk(seconds, record=True))
        spent, left = self._cpu_sec(), seconds
        while left > 0 and not talking.done():
            await asyncio.wait({talking}, timeout=min(60.0, left))
            left -= 60.0
            now = self._cpu_sec()
            report.recorded_cpu_sec.append(round(now - spent, 2))
            report.recorded_memory_mb.append(self._held()[2])
            spent = now
        report.talks += await talking

    async def _send_malformed(self, page: Page, body: Any) -> None:
        call = {"data": body, "component_id": page.rtc_id, "fn_name": "offer", "session_hash": page.session}
        answer = await page.http.post(f"{self.url}/gradio_api/component_server", json=call)
        self.report.malformed_offers_answered_500 += answer.status_code >= 500

    # -- figures -----------------------------------------------------------------------------

    def _sound(self, seconds: float) -> np.ndarray:
        return question_sound(QUESTION, seconds)

    def _dropped(self) -> int:
        return round(figures(self.url)["personaplex_dropped_frames_total"])

    async def _slots_are_free(self) -> None:
        """Wait until nobody talks; what is held after FREE_WITHIN_SEC counts as lost."""
        until = time.monotonic() + FREE_WITHIN_SEC
        while (running := figures(self.url)["personaplex_conversations"]) and time.monotonic() < until:
            await asyncio.sleep(0.1)
        self.report.slots_lost = max(self.report.slots_lost, round(running))

    def _cpu_sec(self) -> float:
        times = self.process.cpu_times()
        return times.user + times.system

    def _note(self, stage: str) -> None:
        self.report.memory_mb[stage] = self._held()[2]

    def _held(self) -> tuple[set[Path], int, float]:
        """Files below the page's folders, its descriptors, and its memory in MB."""
        files = {path for path in self.folder.rglob("*") if path.is_file() and path.name != "log.txt"}
        return files, self.process.num_fds(), round(self.process.memory_info().rss / 1e6, 1)


if __name__ == "__main__":
    main()
