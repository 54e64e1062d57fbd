"""LiveKit's OpenAI plugin over `/v1/realtime`: a reply that was asked for, word times, no error.

python livekit_openai.py http://127.0.0.1:7860/v1
"""

from __future__ import annotations

import asyncio
import collections
import sys

import aiohttp
from livekit import rtc
from livekit.plugins.openai import realtime
from scene import BYTES_A_SEC, RATE_HZ, ROLE, is_sanni, pieces, question, report


async def main(url: str) -> None:
    errors, words, seen, tasks, sound = [], [], collections.Counter(), [], 0
    async with aiohttp.ClientSession() as http:
        model = realtime.RealtimeModel(
            base_url=url,
            api_key="none",
            model="nano",
            voice="nano-f",
            http_session=http,
            input_audio_transcription=None,
        )
        session = model.session()

        async def take(generation) -> None:
            async for message in generation.message_stream:
                await asyncio.gather(texts(message), frames(message))

        async def texts(message) -> None:
            async for text in message.text_stream:
                words.append((str(text), getattr(text, "start_time", None)))

        async def frames(message) -> None:
            nonlocal sound
            async for frame in message.audio_stream:
                sound += len(frame.data)

        session.on("generation_created", lambda generation: tasks.append(asyncio.create_task(take(generation))))
        session.on("openai_server_event_received", lambda event: seen.update([event["type"]]))
        session.on("error", lambda error: errors.append(str(error.error)))
        await session.update_instructions(ROLE)
        reply = session.generate_reply()
        for piece, wait_sec in pieces(bytes(6 * BYTES_A_SEC) + question(5.0), 0.02):
            await asyncio.sleep(wait_sec)
            frame = rtc.AudioFrame(piece, sample_rate=RATE_HZ, num_channels=1, samples_per_channel=len(piece) // 2)
            session.push_audio(frame)
        said = "".join(word for word, _ in words)
        timed = sum(isinstance(at, float) for _, at in words)
        history = [(item.role, item.text_content) for item in session.chat_ctx.items if item.type == "message"]
        report(said=said, words=words[:4], timed=timed, of=len(words), errors=errors, seen=dict(seen), sound=sound,
               reply=reply.done() and not reply.exception(), history=history)  # fmt: skip
        assert is_sanni(said) and not errors and reply.done() and not reply.exception()
        await session.aclose()


asyncio.run(main(sys.argv[1]))
