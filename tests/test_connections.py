"""Real WebRTC connections over the loopback, one after another: what each leaves behind must be nothing."""

import asyncio
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from benchmarks.rtc_client import RATE_HZ, Visitor

APP = Path(__file__).parent / "echo_app.py"


@pytest.fixture(scope="module")
def url():
    """The echo page in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    paths = f"{APP.parents[1]}{os.pathsep}{APP.parent}"
    environ = {**os.environ, "PYTHONPATH": paths, "MALLOC_ARENA_MAX": "2", "GRADIO_ANALYTICS_ENABLED": "False"}
    app = subprocess.Popen([sys.executable, APP, "--port", str(port)], env=environ, stdout=subprocess.PIPE, text=True)
    try:
        assert "ready" in app.stdout.readline()
        yield f"http://127.0.0.1:{port}"
    finally:
        app.kill()
        app.wait(10)


def held(url):
    return httpx.get(f"{url}/tables").json()


def is_empty(now):
    return not any(now["tables"].values()) and now["running"] == now["waiting"] == 0 and now["free"] == 2


def wait_until_empty(url, within_sec):
    """Seconds until nothing is held any more."""
    started = time.monotonic()
    while not is_empty(now := held(url)):
        assert time.monotonic() - started < within_sec, f"still held after {within_sec} s: {now}"
        time.sleep(0.05)
    return time.monotonic() - started


def chirps(seconds):
    """A sound of 0.3 s every second, each different from the others: [N] int16 at 48 kHz."""
    time_sec = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    number, beat = np.divmod(time_sec, 1.0)
    return (9000 * np.sin(2 * np.pi * (300 + 170 * number + 900 * beat) * beat) * (beat < 0.3)).astype(np.int16)


async def until(condition, within_sec=30):
    async def poll():
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.05)

    await asyncio.wait_for(poll(), within_sec)


async def talk(url, seconds, end="stop"):
    visitor = Visitor(url, chirps(seconds + 5), prompt="a teacher")
    await visitor.connect()
    await asyncio.sleep(seconds)
    await getattr(visitor, end)()
    return visitor


def test_a_visitor_hears_the_answer_and_the_page_shows_the_words(url):
    visitor = asyncio.run(talk(url, 3))
    loudness = np.sqrt(np.mean(visitor.sound().astype(float) ** 2))
    assert loudness > 500, "an echo must come back"
    shown = str(visitor.shown)
    assert "word42" in shown and "Listening" in shown
    print(f"microphone to speaker: {visitor.round_trip_ms():.0f} ms")
    assert visitor.round_trip_ms() < 1000, "what comes back is what was just said"
    wait_until_empty(url, 5)


def test_two_at_once_and_the_third_waits_and_is_let_in(url):
    async def scene():
        first, second = Visitor(url, chirps(9)), Visitor(url, chirps(9))
        await asyncio.gather(first.connect(), second.connect())
        third = Visitor(url, chirps(9))
        connecting = asyncio.create_task(third.connect())
        await until(lambda: held(url)["waiting"] == 1)
        assert not connecting.done()
        await first.stop()
        await connecting
        assert "number 1" in str(third.shown)
        await second.stop()
        await third.stop()

    asyncio.run(scene())
    wait_until_empty(url, 5)


def test_a_visitor_who_vanishes_frees_the_slot_within_six_seconds(url):
    asyncio.run(talk(url, 1, end="vanish"))
    assert held(url)["running"] == 1, "nobody has noticed yet"
    started = time.monotonic()
    while held(url)["running"]:
        assert time.monotonic() - started < 6
        time.sleep(0.05)
    wait_until_empty(url, 10)


def some_conversations(url, count):
    for _ in range(count):
        asyncio.run(talk(url, 0.6))
        wait_until_empty(url, 6)
    return held(url)


def test_conversations_leave_nothing_behind(url):
    threads = some_conversations(url, 1)["threads"]
    assert some_conversations(url, 2)["threads"] <= threads + 1


@pytest.mark.slow
def test_fifty_conversations_do_not_grow_the_memory(url):
    first = some_conversations(url, 5)
    last = some_conversations(url, 45)
    grown_mb = last["rss_mb"] - first["rss_mb"]
    print(f"memory after 5: {first['rss_mb']:.0f} MB, after 50: {last['rss_mb']:.0f} MB; threads {last['threads']}")
    assert grown_mb < 20 and last["threads"] <= first["threads"] + 2
