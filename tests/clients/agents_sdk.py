"""openai-agents (Python) over `/v1/realtime`: it talks over the greeting, and is interrupted once.

python agents_sdk.py ws://127.0.0.1:7860/v1/realtime
"""

from __future__ import annotations

import asyncio
import collections
import sys

from agents.realtime import RealtimeAgent, RealtimeRunner
from scene import BYTES_A_SEC, ROLE, pieces, question, report


async def main(url: str) -> None:
    agent = RealtimeAgent(name="bank", instructions=ROLE)
    runner = RealtimeRunner(agent, config={"model_settings": {"model_name": "nano", "voice": "nano-f"}})
    connecting = {"url": url + "?seed=1", "api_key": "none"}
    connecting["initial_model_settings"] = {"turn_detection": {"type": "server_vad"}}
    seen, raw, errors, history, sound_bytes = collections.Counter(), collections.Counter(), [], [], 0
    async with await runner.run(model_config=connecting) as session:

        async def speak() -> None:
            for piece, wait_sec in pieces(bytes(2 * BYTES_A_SEC) + question(5.0), 0.04):
                await asyncio.sleep(wait_sec)
                await session.send_audio(piece)
            await session.close()

        microphone = asyncio.create_task(speak())
        async for event in session:
            seen[event.type] += 1
            if event.type == "audio":
                sound_bytes += len(event.audio.data)
            elif event.type == "error":
                errors.append(str(event.error)[:300])
            elif event.type == "raw_model_event":
                raw[event.data.type] += 1
            elif event.type == "history_updated":
                history = event.history
        await microphone
    told = [(item.role, item.status, [getattr(part, "transcript", None) for part in item.content]) for item in history]
    report(seen=dict(seen), raw=dict(raw), errors=errors, history=told, sound_sec=sound_bytes / BYTES_A_SEC)
    assert seen["audio_interrupted"] == 1 and not errors


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
