"""How late a client of `/api/chat` hears the persona, beside a visitor of the page; ends in one JSON line.

    python -m benchmarks.delay
    python -m benchmarks.delay --seconds 60 --rounds 5

A page of its own, on this machine, whose persona repeats what it hears (``benchmarks.echo_page``): microphone to
loudspeaker over WebRTC and over the websocket, in turns. Both send packets of 20 ms in real time.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time

import numpy as np
import websockets

from benchmarks.load import BUDGET_MS, QUESTION, echo_page, question_sound
from benchmarks.measuring import OtherLoad, facts, run_benchmark
from benchmarks.rtc_client import Visitor, round_trips_ms
from personaplex.audio.frames import SAMPLE_RATE_HZ, from_int16
from personaplex.audio.opus import PACKET_SAMPLES, OpusReader, OpusWriter
from personaplex.machine.choose import inspect_here
from personaplex.protocols.moshi import Kind

CONNECTED_WITHIN_SEC = 60.0
MOST_PACKETS = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each talk")
    parser.add_argument("--rounds", type=int, default=3, help="talks over each of the two")
    run_benchmark(measure, parser.parse_args())


def measure(given: argparse.Namespace) -> dict:
    sound = question_sound(QUESTION, given.seconds)
    trips_ms: dict[str, list[float]] = {"page": [], "api_chat": []}
    load = OtherLoad()
    with echo_page(1) as (url, _):
        for _ in range(given.rounds):
            trips_ms["page"] += asyncio.run(over_webrtc(url, sound, given.seconds))
            trips_ms["api_chat"] += asyncio.run(over_websocket(url, sound[::2], given.seconds))
    page_ms, chat_ms = (statistics.median(trips) for trips in trips_ms.values())
    return {
        "benchmark": "delay",
        "model": "nano",
        "seconds": given.seconds,
        "rounds": given.rounds,
        "page_ms": round(page_ms, 1),
        "api_chat_ms": round(chat_ms, 1),
        "added_ms": round(chat_ms - page_ms, 1),
        "trips_ms": {name: [round(trip, 1) for trip in trips] for name, trips in trips_ms.items()},
        "budget_ms": BUDGET_MS,
        "other_cores": load.cores(),
        **facts(inspect_here(), "cpu"),
    }


async def over_webrtc(url: str, sound: np.ndarray, seconds: float) -> list[float]:
    """Round trips of one visitor of the page. sound: [N] int16 at 48 kHz."""
    visitor = Visitor(url, sound, wait_for_greeting=False)
    await visitor.connect(CONNECTED_WITHIN_SEC)
    await asyncio.sleep(seconds)
    await visitor.stop()
    return visitor.round_trips_ms()


async def over_websocket(url: str, sound: np.ndarray, seconds: float) -> list[float]:
    """Round trips of one client of `/api/chat`. sound: [N] int16 at 24 kHz."""
    async with websockets.connect(url.replace("http", "ws", 1) + "/api/chat", max_size=None) as socket:
        while (await asyncio.wait_for(socket.recv(), CONNECTED_WITHIN_SEC))[0] != Kind.HANDSHAKE:
            pass
        began_at, heard, came_sec = time.perf_counter(), list[np.ndarray](), list[float]()

        async def listen() -> None:
            reader = OpusReader()
            async for message in socket:
                if message[0] == Kind.AUDIO:
                    assert isinstance(message, bytes)
                    pcm, _ = reader.push(message[1:], MOST_PACKETS)
                    heard.append(pcm)
                    came_sec.append(time.perf_counter() - began_at)

        listening = asyncio.create_task(listen())
        writer = OpusWriter()
        for start in range(0, int(seconds * SAMPLE_RATE_HZ), PACKET_SAMPLES):
            await asyncio.sleep(max(0.0, began_at + start / SAMPLE_RATE_HZ - time.perf_counter()))
            pages = writer.push(from_int16(sound[start : start + PACKET_SAMPLES]))
            await socket.send(bytes([Kind.AUDIO]) + pages)
        listening.cancel()
    return round_trips_ms(sound, heard, came_sec, SAMPLE_RATE_HZ)


if __name__ == "__main__":
    main()
