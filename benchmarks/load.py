"""Load test: several visitors at once on a running page; ends in one JSON line.

    python app.py --conversations 4 &
    python -m benchmarks.load http://127.0.0.1:7860 --visitors 4 --seconds 30

Loopback only, and bounded: it is for one's own machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import soxr

from benchmarks.rtc_client import RATE_HZ, Visitor
from personaplex.audio.files import read_recording
from personaplex.audio.frames import to_int16
from personaplex.config import MimiConfig

QUESTION = Path(__file__).parents[1] / "examples" / "questions" / "teacher.wav"
MAX_VISITORS, MAX_SEC = 32, 600
APART_SEC = 0.2
BUDGET_MS = round(1000 * MimiConfig().frame_sec)


def main() -> None:
    given = _arguments()
    sound = question_sound(given.question, given.seconds)
    before = figures(given.url)
    visits = asyncio.run(_visit_all(given.url, given.visitors, given.seconds, sound))
    print(json.dumps(_report(given, visits, before, figures(given.url), _health(given.url))))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--visitors", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0, help="of talk, each")
    parser.add_argument("--question", type=Path, default=QUESTION, help="what the microphones say, in a loop")
    given = parser.parse_args()
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
