"""What WebRTC costs a conversation: the processor time of one frame of it, both ways."""

from __future__ import annotations

import fractions
import time

import numpy as np

RATE_HZ = 48_000
PACKET_SAMPLES = RATE_HZ // 50
PACKETS = 4  # of a frame of 80 ms

TIMES_THE_CODEC = 15.0
"""All of a conversation's edge (sockets, encryption, jitter buffer, event loop, Opus) over Opus alone, each as
processor time of the page's threads: 16 with one conversation, 14 with two (AVX512-BF16, 0.47 ms of Opus a frame)."""

TRIES = 3
LOUDNESS = 1000


def edge_ms() -> float:
    """Milliseconds of a core that a conversation's frame costs outside the engine, from timing its Opus codec."""
    from aiortc.codecs.opus import OpusDecoder, OpusEncoder
    from aiortc.jitterbuffer import JitterFrame
    from av import AudioFrame

    encoder, decoder = OpusEncoder(), OpusDecoder()
    noise = np.random.default_rng(0).normal(0, LOUDNESS, (1, PACKET_SAMPLES)).astype(np.int16)
    packet = AudioFrame.from_ndarray(noise, format="s16", layout="mono")
    packet.sample_rate, packet.time_base = RATE_HZ, fractions.Fraction(1, RATE_HZ)
    best_sec, sent = float("inf"), 0
    for _ in range(TRIES):
        started = time.thread_time()
        for _ in range(PACKETS):
            packet.pts = sent
            sent += PACKET_SAMPLES
            for data in encoder.encode(packet)[0]:
                decoder.decode(JitterFrame(data, sent))
        best_sec = min(best_sec, time.thread_time() - started)
    return 1000 * TIMES_THE_CODEC * best_sec
