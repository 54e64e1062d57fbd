"""Load test: several visitors at once on a running page; ends in one JSON line.

    python app.py --conversations 4 &
    python -m benchmarks.load http://127.0.0.1:7860 --visitors 4 --seconds 30
    python -m benchmarks.load --largest 16 --seconds 60

The second form starts a page of its own whose persona repeats what it hears, and finds the largest number of visitors
with whom no frame is dropped and microphone to loudspeaker takes at most 60 ms longer than with one. The visitors run
on the same machine and need as much of it as the page's WebRTC does.

Loopback only, and bounded: it is for one's own machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil
import soxr

from benchmarks.measuring import ROOT, OtherLoad, facts, note
from benchmarks.ports import free_port
from benchmarks.rtc_client import RATE_HZ, Visitor
from personaplex.audio.files import read_recording
from personaplex.audio.frames import to_int16
from personaplex.config import MimiConfig
from personaplex.machine.choose import inspect_here
from personaplex.serving.capacity import largest

QUESTION = Path(__file__).parents[1] / "examples" / "questions" / "teacher.wav"
MAX_VISITORS, MAX_SEC = 32, 600
APART_SEC = 0.2
BUDGET_MS = round(1000 * MimiConfig().frame_sec)
LATER_MS = 60.0
"""So much longer than with one visitor the round trip may take."""
STARTED_WITHIN_SEC, ENDED_WITHIN_SEC = 120.0, 20.0


def main() -> None:
    given = _arguments()
    if given.largest:
        print(json.dumps(find_largest(given.largest, given.seconds, given.question)))
        return
    sound = question_sound(given.question, given.seconds)
    before = figures(given.url)
    visits = asyncio.run(_visit_all(given.url, given.visitors, given.seconds, sound))
    print(json.dumps(_report(given, visits, before, figures(given.url), _health(given.url))))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="?", help="of a page that runs")
    parser.add_argument(
        "--largest", type=int, help="find the largest number of visitors up to this, on a page of its own"
    )
    parser.add_argument("--visitors", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0, help="of talk, each")
    parser.add_argument("--question", type=Path, default=QUESTION, help="what the microphones say, in a loop")
    given = parser.parse_args()
    if (given.url is None) == (given.largest is None):
        parser.error("give the address of a page, or --largest")
    given.visitors = given.largest or given.visitors
    given.url = given.url or "http://localhost"
    if urlsplit(given.url).hostname not in ("127.0.0.1", "localhost", "::1"):
        parser.error("only a page on this machine may be loaded")
    if not (1 <= given.visitors <= MAX_VISITORS and 1 <= given.seconds <= MAX_SEC):
        parser.error(f"1 to {MAX_VISITORS} visitors and 1 to {MAX_SEC} seconds are allowed")
    given.url = given.url.rstrip("/")
    return given


def question_sound(path: Path, seconds: float) -> np.ndarray:
    """The question and as much silence, again and again: [N] int16 at 48 kHz."""
    recording = read_recording(path)
    spoken = soxr.resample(recording.pcm, recording.sample_rate_hz, RATE_HZ)
    once = np.concatenate([np.zeros(RATE_HZ // 2, np.float32), spoken, np.zeros_like(spoken)])
    return np.tile(to_int16(once), int(np.ceil((seconds + 10) * RATE_HZ / len(once))))


async def _visit_all(url: str, count: int, seconds: float, sound: np.ndarray) -> list[dict]:
    async def visit(number: int) -> dict:
        await asyncio.sleep(number * APART_SEC)
        visitor = Visitor(url, sound)
        try:
            connected_sec = await visitor.connect(timeout_sec=60)
        except (ConnectionRefusedError, TimeoutError) as error:
            return {"error": str(error)}
        await asyncio.sleep(seconds)
        await visitor.stop()
        gaps_ms = np.diff(visitor.heard_at) * 1000
        return {
            "connected_sec": connected_sec,
            "heard_sec": len(visitor.sound()) / RATE_HZ,
            "longest_gap_ms": float(gaps_ms.max(initial=0.0)),
            "error": visitor.end_message,
        }

    return await asyncio.gather(*(visit(number) for number in range(count)))


def figures(url: str) -> dict[str, float]:
    """The page's Prometheus metrics as name → value, summed over labels."""
    found: dict[str, float] = {"at": time.time()}
    for line in httpx.get(f"{url}/metrics", timeout=10).text.splitlines():
        if line and not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            name = name.split("{")[0]
            found[name] = found.get(name, 0.0) + float(value)
    return found


def _health(url: str) -> dict:
    return httpx.get(f"{url}/health", timeout=10).json()


# ---------------------------------------------------------------------------------- the largest number


def find_largest(most: int, seconds: float, question: Path = QUESTION) -> dict:
    """Talks of 1, 2, 4 … visitors at once, each ``seconds`` long → the largest number that holds, and every try."""
    tries: dict[int, dict] = {}
    load, sound = OtherLoad(), question_sound(question, seconds)

    def holds(count: int) -> bool:
        found = asyncio.run(_talk_together(url, page, count, seconds, sound))
        base_ms = tries[1]["round_trip_ms"] if tries else found["round_trip_ms"]
        found["holds"] = (
            not found["errors"] and not found["dropped_frames"] and found["round_trip_ms"] <= base_ms + LATER_MS
        )
        tries[count] = found
        note(json.dumps(found))
        return bool(found["holds"])

    with echo_page(most) as (url, page):
        found = largest(holds, most, lambda: True)
    return {
        "benchmark": "load_largest",
        "model": "nano",
        "most": most,
        "seconds": seconds,
        "largest": found if tries[1]["holds"] else 0,
        "tries": [tries[count] for count in sorted(tries)],
        "budget_ms": BUDGET_MS,
        "other_cores": load.cores(),
        **facts(inspect_here(), "cpu"),
    }


@contextmanager
def echo_page(conversations: int) -> Iterator[tuple[str, psutil.Process]]:
    """``benchmarks.echo_page`` in a process of its own, once it holds conversations."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.echo_page", f"--port={port}", f"--conversations={conversations}"]
    page = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    url, until = f"http://127.0.0.1:{port}", time.monotonic() + STARTED_WITHIN_SEC
    try:
        while time.monotonic() < until:
            with suppress(httpx.TransportError):
                if httpx.get(f"{url}/health", timeout=10).status_code == 200:
                    break
            if page.poll() is not None:
                raise RuntimeError("the page ended by itself; python -m benchmarks.echo_page shows why")
            time.sleep(0.1)
        yield url, psutil.Process(page.pid)
    finally:
        page.terminate()
        try:
            page.wait(ENDED_WITHIN_SEC)
        except subprocess.TimeoutExpired:
            page.kill()


async def _talk_together(url: str, page: psutil.Process, count: int, seconds: float, sound: np.ndarray) -> dict:
    """``count`` visitors, who come one after the other, all talk for ``seconds``."""
    visitors = [Visitor(url, sound, wait_for_greeting=False) for _ in range(count)]
    coming = figures(url)
    for visitor in visitors:
        try:
            await visitor.connect(timeout_sec=60)
        except (ConnectionRefusedError, TimeoutError):
            continue  # it is told of below
    talking = [visitor for visitor in visitors if visitor.heard]
    before, busy = figures(url), sum(page.cpu_times()[:2])
    await asyncio.sleep(seconds)
    after, busy = figures(url), sum(page.cpu_times()[:2]) - busy
    for visitor in talking:
        await visitor.stop()
    errors = [
        visitor.end_message or "no sound came" for visitor in visitors if visitor.end_message or not visitor.heard
    ]

    def change(name: str, since: dict[str, float]) -> float:
        return after.get(name, 0.0) - since.get(name, 0.0)

    frames = max(1.0, count * seconds * 1000 / BUDGET_MS)
    steps_sec = change("personaplex_step_seconds_sum", before)
    trips_ms = [statistics.median(trips) for visitor in talking if (trips := visitor.round_trips_ms())]
    return {
        "visitors": count,
        "errors": errors,
        "dropped_frames": round(change("personaplex_dropped_frames_total", before)),
        "dropped_frames_with_arrivals": round(change("personaplex_dropped_frames_total", coming)),
        "round_trip_ms": round(max(trips_ms, default=0.0), 1),
        "step_mean_ms": round(1000 * steps_sec / max(1.0, change("personaplex_step_seconds_count", before)), 2),
        # Exact where steps wait for nobody: on one thread and a quiet machine.
        "edge_ms_a_frame": round(1000 * max(0.0, busy - steps_sec) / frames, 2),
    }


# ---------------------------------------------------------------------------------- a page that runs


def _report(given: argparse.Namespace, visits: list[dict], before: dict, after: dict, health: dict) -> dict:
    talked = [visit for visit in visits if not visit["error"]]

    def change(name: str) -> int:
        return round(after.get(name, 0) - before.get(name, 0))

    return {
        "benchmark": "load",
        "visitors": given.visitors,
        "seconds": given.seconds,
        "talked": len(talked),
        "errors": [visit["error"] for visit in visits if visit["error"]],
        "connected_max_sec": round(max((visit["connected_sec"] for visit in talked), default=0.0), 3),
        "heard_least_sec": round(min((visit["heard_sec"] for visit in talked), default=0.0), 2),
        "longest_gap_ms": round(max((visit["longest_gap_ms"] for visit in talked), default=0.0)),
        "steps": change("personaplex_step_seconds_count"),
        "dropped_frames": change("personaplex_dropped_frames_total"),
        "failures": change("personaplex_errors_total"),
        "step_p50_ms": health["step_p50_ms"],
        "step_p99_ms": health["step_p99_ms"],
        "budget_ms": BUDGET_MS,
    }


if __name__ == "__main__":
    main()
