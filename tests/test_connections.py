"""Real WebRTC connections over the loopback, one after another: what each leaves behind must be nothing."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from benchmarks.ports import free_port
from benchmarks.rtc_client import PACKET_SAMPLES, RATE_HZ, Visitor, trip_samples
from personaplex.web.webrtc import STUN_ONLY
from personaplex.web.workarounds.aiortc_jitter import reorder_microphone

APP = Path(__file__).parent / "echo_app.py"


@pytest.fixture(scope="module")
def app():
    """The echo page in a process of its own; ``app.url`` is its address."""
    port = free_port()
    paths = f"{APP.parents[1]}{os.pathsep}{APP.parent}"
    environ = {**os.environ, "PYTHONPATH": paths, "MALLOC_ARENA_MAX": "2", "GRADIO_ANALYTICS_ENABLED": "False"}
    app = subprocess.Popen([sys.executable, APP, "--port", str(port)], env=environ, stdout=subprocess.PIPE, text=True)
    try:
        assert "ready" in app.stdout.readline()
        app.url = f"http://127.0.0.1:{port}"
        yield app
    finally:
        app.kill()
        app.wait(10)


@pytest.fixture
def url(app):
    return app.url


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


def test_a_browser_elsewhere_gets_stun_from_a_page_on_loopback(url):
    """nginx as it comes passes the page's own address as Host; the browser's Origin stays."""
    config = httpx.get(f"{url}/config").json()
    rtc_id = next(part["id"] for part in config["components"] if "webrtc" in part["type"])
    call = {"data": {}, "component_id": rtc_id, "fn_name": "turn", "session_hash": "s"}
    for origin, servers in ((url, []), ("https://talk.example.org", STUN_ONLY["iceServers"])):
        answer = httpx.post(f"{url}/gradio_api/component_server", json=call, headers={"Origin": origin})
        assert answer.json() == {"iceServers": servers}


# ---------------------------------------------------------------------------------- bad networks, busy machines


def impair(visitor, *, lost, delay_ms, jitter_ms, seed=1):
    """Lose, delay and reorder the datagrams of a visitor's sockets, both ways; returns what ends it."""
    dice, loop = random.Random(seed), asyncio.get_running_loop()
    (transport,) = {each.sender.transport.transport for each in visitor.pc.getTransceivers()}
    protocols = transport._connection._protocols

    def badly(carry, plain):
        def arrive(*datagram):
            if not plain.is_closing():
                carry(*datagram)

        def carried(*datagram):
            if dice.random() >= lost:
                loop.call_later((delay_ms + dice.uniform(-jitter_ms, jitter_ms)) / 1000, arrive, *datagram)

        return carried

    plain = [(protocol, protocol.transport) for protocol in protocols]
    for protocol, socket_ in plain:
        protocol.datagram_received = badly(protocol.datagram_received, socket_)
        protocol.transport = _BadSocket(socket_, badly(socket_.sendto, socket_))

    def end():
        for protocol, socket_ in plain:
            del protocol.datagram_received
            protocol.transport = socket_

    return end


class _BadSocket:
    def __init__(self, transport, sendto):
        self._transport, self.sendto = transport, sendto

    def __getattr__(self, name):
        return getattr(self._transport, name)


def delay_ms(visitor, until, seconds=4):
    """Microphone → speaker over what was heard in the seconds before ``until``, on the clock.

    To be called after the talk: it would hold the visitor's microphone back.
    """
    first, last = (sum(at <= limit for at in visitor.heard_at) for limit in (until - seconds, until))
    heard = np.concatenate(visitor.heard[first:last]).astype(np.float32)
    heard_from = round((visitor.heard_at[first] - visitor.microphone.started_at) * RATE_HZ)
    return 1000 * trip_samples(visitor.microphone.sound, heard, heard_from, 5 * RATE_HZ) / RATE_HZ


@pytest.mark.parametrize("seconds", [8, pytest.param(60, marks=pytest.mark.slow)])
def test_loss_and_jitter_end_no_conversation_and_leave_no_delay(url, seconds):
    async def scene():
        visitor = Visitor(url, chirps(seconds + 40))
        await visitor.connect()
        reorder_microphone(visitor.pc)  # the visitor's side: aiortc's own buffer would delay for good what it hears
        await asyncio.sleep(6)
        good_until = time.perf_counter()
        end = impair(visitor, lost=0.02, delay_ms=100, jitter_ms=50)
        heard, sent = len(visitor.heard), visitor.microphone.sent
        await asyncio.sleep(seconds)
        heard, sent = len(visitor.heard) - heard, (visitor.microphone.sent - sent) / PACKET_SAMPLES
        now = await asyncio.to_thread(held, url)
        end()
        await asyncio.sleep(8)
        good_again_until, ended = time.perf_counter(), visitor.ended.is_set()
        await visitor.stop()
        before, after = (delay_ms(visitor, until) for until in (good_until, good_again_until))
        return before, heard / sent, now["lost_packets"] / sent, now["running"], after, ended

    before, heard, lost, running, after, ended = asyncio.run(scene())
    print(f"lost {100 * lost:.1f} %, heard {100 * heard:.0f} %; delay {before:.0f} ms before, {after:.0f} ms after")
    assert running == 1 and not ended
    assert 0 < lost < 0.15, "no more than the network itself lost, and a few before the buffer had grown"
    assert heard > 0.3, "a machine that is busy drops frames besides"
    assert after < before + 150
    wait_until_empty(url, 6)


@pytest.mark.slow
def test_a_server_that_stands_still_for_ten_seconds_is_back_within_ten(app):
    async def scene():
        visitor = Visitor(app.url, chirps(60))
        await visitor.connect()
        await asyncio.sleep(6)
        good_until = time.perf_counter()
        app.send_signal(signal.SIGSTOP)
        await asyncio.sleep(10)
        app.send_signal(signal.SIGCONT)
        await asyncio.sleep(10)
        good_again_until, ended = time.perf_counter(), visitor.ended.is_set()
        silent_sec = good_again_until - visitor.heard_at[-1]
        await visitor.stop()
        before, after = (delay_ms(visitor, until) for until in (good_until, good_again_until))
        return before, after, silent_sec, ended

    before, after, silent_sec, ended = asyncio.run(scene())
    print(f"delay {before:.0f} ms before, {after:.0f} ms after")
    assert not ended and silent_sec < 0.5 and after < before + 150
    wait_until_empty(app.url, 6)
