"""Pipecat's OpenAI Realtime service over `/v1/realtime`.

python pipecat_openai.py ws://127.0.0.1:7860/v1/realtime
"""

from __future__ import annotations

import asyncio
import collections
import sys

from loguru import logger
from pipecat.frames.frames import EndFrame, InputAudioRawFrame, LLMContextFrame, TTSAudioRawFrame, TTSTextFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.runner import PipelineRunner
from pipecat.pipeline.task import PipelineParams, PipelineTask
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.services.openai.realtime import events
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService
from scene import BYTES_A_SEC, RATE_HZ, ROLE, is_sanni, pieces, question, report


class Sink(FrameProcessor):
    """Counts what passes."""

    def __init__(self):
        super().__init__()
        self.seen, self.said, self.errors, self.sound_bytes = collections.Counter(), [], [], 0

    async def process_frame(self, frame, direction):
        await super().process_frame(frame, direction)
        name = type(frame).__name__
        self.seen[name] += 1
        if name == "ErrorFrame":
            self.errors.append(str(frame.error)[:300])
        if isinstance(frame, TTSTextFrame):
            self.said.append(frame.text)
        if isinstance(frame, TTSAudioRawFrame):
            self.sound_bytes += len(frame.audio)
        await self.push_frame(frame, direction)


async def main(url: str) -> None:
    voice = events.SessionProperties(audio=events.AudioConfiguration(output=events.AudioOutput(voice="nano-f")))
    settings = OpenAIRealtimeLLMService.Settings(model="nano", system_instruction=ROLE, session_properties=voice)
    service = OpenAIRealtimeLLMService(api_key="none", base_url=url, settings=settings)
    top, sink = Sink(), Sink()
    rates = PipelineParams(audio_in_sample_rate=RATE_HZ, audio_out_sample_rate=RATE_HZ)
    task = PipelineTask(Pipeline([top, service, sink]), params=rates, cancel_on_idle_timeout=False)

    async def speak() -> None:
        await asyncio.sleep(0.5)
        await task.queue_frame(LLMContextFrame(LLMContext([{"role": "user", "content": "Say hello!"}])))
        await asyncio.sleep(0.5)
        for piece, wait_sec in pieces(bytes(6 * BYTES_A_SEC) + question(5.0), 0.02):
            await asyncio.sleep(wait_sec)
            await task.queue_frame(InputAudioRawFrame(audio=piece, sample_rate=RATE_HZ, num_channels=1))
        await task.queue_frame(EndFrame())

    await asyncio.gather(PipelineRunner(handle_sigint=False).run(task), speak())
    errors, said = top.errors + sink.errors, "".join(sink.said)
    report(seen=dict(sink.seen), said=said, errors=errors, sound_sec=sink.sound_bytes / BYTES_A_SEC)
    assert is_sanni(said) and not errors


logger.remove()
logger.add(sys.stderr, level="WARNING")
asyncio.run(main(sys.argv[1]))
