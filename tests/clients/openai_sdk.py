"""openai-python over `/v1/realtime`: every event as the SDK's own types say, paced, in one piece, and interrupted.

python openai_sdk.py http://127.0.0.1:7860/v1 [paced|burst|interrupt]
"""

from __future__ import annotations

import asyncio
import base64
import collections
import sys
import time

from openai import AsyncOpenAI
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter
from scene import BYTES_A_SEC, ROLE, is_sanni, pieces, question, report

BURST_WITHIN_SEC = 12.0
EVENTS = TypeAdapter(RealtimeServerEvent)


class Talk:
    """One connection, with what came over it."""

    def __init__(self, connection):
        self.connection, self.began = connection, time.monotonic()
        self.types, self.problems = collections.Counter(), []
        self.done, self.words, self.sound_bytes, self.errors = [], [], 0, []
        self.speech_started = 0

    async def listen(self, is_over, within_sec: float) -> None:
        while not is_over(self) and time.monotonic() - self.began < within_sec:
            try:
                raw = await asyncio.wait_for(self.connection.recv_bytes(), 1.0)
            except asyncio.TimeoutError:
                continue
            self.take(raw)

    def take(self, raw: bytes) -> None:
        try:
            event = EVENTS.validate_json(raw, strict=True)
        except ValueError as error:
            self.problems.append(str(error)[:500])
            return
        self.types[event.type] += 1
        if event.type == "response.output_audio.delta":
            self.sound_bytes += len(base64.b64decode(event.delta))
        elif event.type == "response.output_audio_transcript.delta":
            self.words.append((event.delta, event.model_extra["start_time"]))
        elif event.type == "response.done":
            details = event.response.status_details
            said = [part.transcript for item in event.response.output for part in item.content]
            self.done.append((event.response.status, details and details.reason, "".join(said)))
        elif event.type == "input_audio_buffer.speech_started":
            self.speech_started += 1
        elif event.type == "error":
            self.errors.append(event.error.message)


async def speak(connection, sound: bytes) -> None:
    for piece, wait_sec in pieces(sound, 0.04):
        await asyncio.sleep(wait_sec)
        await connection.input_audio_buffer.append(audio=base64.b64encode(piece).decode())


async def main(url: str, kind: str) -> None:
    client = AsyncOpenAI(base_url=url, api_key="none")
    query = {"seed": "1"}
    async with client.realtime.connect(model="nano", extra_query=query) as connection:
        talk, took_sec = Talk(connection), None
        role = {"type": "realtime", "instructions": ROLE, "audio": {"output": {"voice": "nano-f"}}}
        await connection.session.update(session=role)
        if kind == "burst":
            await connection.input_audio_buffer.append(
                audio=base64.b64encode(bytes(6 * BYTES_A_SEC) + question()).decode()
            )
            await connection.input_audio_buffer.commit()
            await connection.response.create()
            await talk.listen(lambda talk: len(talk.done) >= 2, 60)
            took_sec = time.monotonic() - talk.began
        else:
            # An interruption: the question over the greeting, which takes three seconds.
            first = bytes((2 if kind == "interrupt" else 6) * BYTES_A_SEC)
            microphone = asyncio.create_task(speak(connection, first + question(5.0)))
            await talk.listen(lambda talk: microphone.done(), 60)
    said = " ".join(text for _, _, text in talk.done)
    report(
        kind=kind, events=sum(talk.types.values()), problems=talk.problems, errors=talk.errors, done=talk.done,
        speech_started=talk.speech_started, sound_sec=talk.sound_bytes / BYTES_A_SEC, first_words=talk.words[:4],
        types=dict(talk.types), took_sec=took_sec,
    )  # fmt: skip
    assert not talk.problems and not talk.errors, "each event is as the SDK's types say"
    assert "".join(word for word, _ in talk.words).startswith("".join(text for _, _, text in talk.done))
    if kind == "interrupt":
        assert ("cancelled", "turn_detected") in [(status, reason) for status, reason, _ in talk.done], talk.done
    else:
        assert is_sanni(said) and len(talk.done) >= 2, said
    assert took_sec is None or took_sec < BURST_WITHIN_SEC


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "paced"))
