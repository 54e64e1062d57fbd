"""LiveKit's PersonaPlex plugin (livekit-plugins-nvidia) over `/api/chat`.

python livekit_moshi.py ws://127.0.0.1:8998
"""

from __future__ import annotations

import asyncio
import logging
import sys

import aiohttp
import numpy as np
from livekit import rtc
from livekit.plugins.nvidia.experimental.realtime import RealtimeModel
from scene import BYTES_A_SEC, RATE_HZ, ROLE, is_sanni, pieces, question, report


async def main(url: str) -> None:
    errors, said, sound, tasks = [], [], [], []
    async with aiohttp.ClientSession() as http:
        model = RealtimeModel(base_url=url, voice="NATF2", seed=1, text_prompt=ROLE, http_session=http)
        session = model.session()

        async def take(generation) -> None:
            async for message in generation.message_stream:
                await asyncio.gather(words(message), frames(message))

        async def words(message) -> None:
            async for text in message.text_stream:
                said.append(str(text))

        async def frames(message) -> None:
            async for frame in message.audio_stream:
                sound.append(np.frombuffer(frame.data, np.int16))

        session.on("generation_created", lambda generation: tasks.append(asyncio.create_task(take(generation))))
        session.on("error", lambda error: errors.append(str(error.error)))
        await asyncio.wait_for(session._handshake_event.wait(), 30)
        for piece, wait_sec in pieces(bytes(6 * BYTES_A_SEC) + question(5.0), 0.02):
            await asyncio.sleep(wait_sec)
            frame = rtc.AudioFrame(piece, sample_rate=RATE_HZ, num_channels=1, samples_per_channel=len(piece) // 2)
            session.push_audio(frame)
        await asyncio.sleep(0.5)
        heard = np.concatenate(sound)
        report(said="".join(said), generations=len(tasks), errors=errors, sound_sec=len(heard) / RATE_HZ,
               loudness=round(float(heard.std()), 1))  # fmt: skip
        assert is_sanni("".join(said)) and not errors and heard.std() > 100
        await session.aclose()
        await model.aclose()


logging.basicConfig(level=logging.WARNING)
asyncio.run(main(sys.argv[1]))
