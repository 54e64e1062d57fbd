"""Live Opus in Ogg, mono at 24 kHz ↔ float32 (RFC 6716, RFC 7845), through PyAV's libopus."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import av
import numpy as np
from av.audio.codeccontext import AudioCodecContext

from personaplex.audio.frames import SAMPLE_RATE_HZ, from_int16
from personaplex.audio.ogg import FIRST_PAGE, PacketReader, PageWriter
from personaplex.audio.rate import Decimator

PACKET_MS = 20
PACKET_SAMPLES = SAMPLE_RATE_HZ * PACKET_MS // 1000
BITRATE = 32_000
OPUS_RATE_HZ = 48_000
"""Granules count at this rate, and decoders give it, whatever went in."""
HEAD, TAGS = b"OpusHead", b"OpusTags"
VENDOR = b"personaplex"


def _head(rate_hz: int) -> bytes:
    """The header of a mono stream. No samples are to be skipped: what is spoken lies where it was spoken."""
    return HEAD + struct.pack("<BBHIhB", 1, 1, 0, rate_hz, 0, 0)


class OpusWriter:
    """Sound → Ogg pages of one packet of 20 ms each; the stream's two headers come before the first."""

    def __init__(self) -> None:
        codec = av.CodecContext.create("libopus", "w")
        assert isinstance(codec, AudioCodecContext)
        codec.sample_rate, codec.format, codec.layout, codec.bit_rate = SAMPLE_RATE_HZ, "flt", "mono", BITRATE
        codec.options = {"application": "voip", "frame_duration": str(PACKET_MS)}
        self._codec = codec
        self._pages = PageWriter()
        tags = TAGS + struct.pack("<I", len(VENDOR)) + VENDOR + struct.pack("<I", 0)
        self._headers = self._pages.page(_head(SAMPLE_RATE_HZ), 0, FIRST_PAGE) + self._pages.page(tags, 0)
        self._rest = np.zeros(0, np.float32)
        self._samples = 0

    def push(self, pcm: np.ndarray) -> bytes:
        """pcm: [n] float32 at 24 kHz, any n. Returns the pages that are complete now; empty if none is."""
        joined = np.concatenate([self._rest, np.asarray(pcm, np.float32)])
        cut = len(joined) // PACKET_SAMPLES * PACKET_SAMPLES
        self._rest = joined[cut:]
        pages, self._headers = (self._headers, b"") if cut else (b"", self._headers)
        for part in joined[:cut].reshape(-1, PACKET_SAMPLES):
            frame = av.AudioFrame.from_ndarray(part[None], format="flt", layout="mono")
            frame.sample_rate, frame.pts = SAMPLE_RATE_HZ, self._samples
            self._samples += PACKET_SAMPLES
            granule = self._samples * OPUS_RATE_HZ // SAMPLE_RATE_HZ
            pages += b"".join(self._pages.page(bytes(packet), granule) for packet in self._codec.encode(frame))
        return pages


class OpusReader:
    """Bytes of an Ogg stream → sound. Headers may be missing or come again; what cannot be decoded is left out."""

    def __init__(self) -> None:
        self._packets = PacketReader()
        self._begin()

    def _begin(self) -> None:
        codec = av.CodecContext.create("libopus", "r")
        assert isinstance(codec, AudioCodecContext)
        codec.extradata = _head(OPUS_RATE_HZ)  # a decoder takes stereo packets as mono, so no stream's own is needed
        codec.sample_rate, codec.layout = OPUS_RATE_HZ, "mono"
        self._codec = codec
        self._to_our_rate = Decimator(OPUS_RATE_HZ // SAMPLE_RATE_HZ)

    def push(self, data: bytes, most_packets: int) -> tuple[np.ndarray, int]:
        """→ ([n] float32 at 24 kHz, packets of sound). Those beyond ``most_packets`` are dropped undecoded.

        A page of 300 bytes may claim 15 s of sound, so a caller must bound how many packets it pays for.
        """
        parts, count = [np.zeros(0, np.float32)], 0
        for packet in self._packets.push(data):
            if packet.startswith(HEAD):
                self._begin()
            elif packet and not packet.startswith(TAGS):
                count += 1
                if count <= most_packets:
                    parts += self._decoded(packet)
        return np.concatenate(parts), count

    def _decoded(self, packet: bytes) -> Iterator[np.ndarray]:
        try:
            frames = self._codec.decode(av.Packet(packet))
        except (av.FFmpegError, ValueError):
            return
        for frame in frames:
            sound = frame.to_ndarray()[0]
            yield self._to_our_rate.push(from_int16(sound) if sound.dtype == np.int16 else sound)
