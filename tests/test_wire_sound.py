"""The sound of other programs: Ogg pages, Opus, and the telephone's eight bits."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personaplex.audio import g711
from personaplex.audio.frames import to_int16
from personaplex.audio.ogg import MAX_PACKET_BYTES, PacketReader, PageWriter, checksum
from personaplex.audio.opus import OpusReader, OpusWriter
from personaplex.audio.rate import Decimator, Interpolator

RATE_HZ = 24_000
TONE = (0.3 * np.sin(2 * np.pi * 440 * np.arange(RATE_HZ) / RATE_HZ)).astype(np.float32)
MANY = 1000


# ---------------------------------------------------------------------------------- Ogg


def test_the_checksum_is_oggs():
    """The first page of a file that libogg wrote, its own checksum in bytes 22 to 25."""
    page = bytearray(ogg_file(TONE)[:47])
    written = int.from_bytes(page[22:26], "little")
    page[22:26] = bytes(4)
    assert checksum(bytes(page)) == written


def ogg_file(pcm: np.ndarray) -> bytes:
    """An Ogg Opus file as FFmpeg writes it."""
    file = io.BytesIO()
    with av.open(file, "w", format="ogg") as container:
        stream = container.add_stream("libopus", rate=RATE_HZ, layout="mono")
        frame = av.AudioFrame.from_ndarray(to_int16(pcm)[None], format="s16", layout="mono")
        frame.sample_rate = RATE_HZ
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


@given(
    packets=st.lists(st.binary(min_size=1, max_size=700), max_size=6), cuts=st.lists(st.integers(1, 200), max_size=30)
)
@settings(max_examples=50, deadline=None)
def test_packets_come_back_wherever_the_stream_is_cut(packets, cuts):
    writer, reader = PageWriter(), PacketReader()
    stream = b"".join(writer.page(packet, 0) for packet in packets)
    found = []
    for size in [*cuts, len(stream)]:
        found += reader.push(stream[:size])
        stream = stream[size:]
    assert found == packets


@given(garbage=st.binary(max_size=200), flip=st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_garbage_and_a_damaged_page_cost_what_they_touch(garbage, flip):
    writer, reader = PageWriter(), PacketReader()
    first, second, third = (writer.page(bytes([number]) * 400, 0) for number in range(3))
    damaged = bytearray(second)
    damaged[flip % len(damaged)] ^= 1
    # What follows may lie inside a page that the damage claims to be longer than it is: more pages bring it out.
    rest = b"".join(writer.page(b"\7" * 400, 0) for _ in range(200))
    found = reader.push(first + bytes(damaged) + garbage.replace(b"OggS", b"") + third + rest)
    assert found[0] == b"\0" * 400 and b"\7" * 400 in found
    assert all(packet in (bytes([number]) * 400 for number in (0, 2, 7)) for packet in found)


def test_after_half_a_page_the_next_whole_one_is_found_at_once():
    """What the half claims to hold may be 65 kB: 13 s of sound were waited for."""
    writer, reader = PageWriter(), PacketReader()
    for cut in (4, 20, 27, 300):
        assert reader.push(writer.page(b"\xff" * 10_000, 0)[:cut]) == []
        assert reader.push(writer.page(b"\1" * 100, 0)) == [b"\1" * 100]
    assert reader.push(b"OggS" * 100_000) == [] and len(reader._bytes) == 0


def test_half_a_page_waits_and_a_packet_without_an_end_is_not_kept():
    reader = PacketReader()
    page = bytearray(PageWriter().page(b"\1" * 255 * 254, 0))
    page[26 + 255] = 255  # its last length now says that the packet goes on
    page += b"\1" * 255
    page[22:26] = bytes(4)
    page[22:26] = checksum(bytes(page)).to_bytes(4, "little")
    assert reader.push(bytes(page[:100])) == []
    for _ in range(20):
        assert reader.push(bytes(page)) == []
    assert len(reader._begun) <= MAX_PACKET_BYTES + 1 and len(reader._bytes) < 70_000


# ---------------------------------------------------------------------------------- Opus


def heard(stream: bytes) -> np.ndarray:
    return OpusReader().push(stream, MANY)[0]


def likeness(sent: np.ndarray, heard: np.ndarray) -> float:
    middle = slice(4000, 20_000)
    best = 0.0
    for shift in range(0, 400, 4):
        moved = np.roll(heard[: len(sent)], -shift)[middle]
        best = max(best, float(np.corrcoef(sent[middle], moved)[0, 1]))
    return best


def test_what_is_written_is_read_sample_for_sample_in_length():
    writer = OpusWriter()
    stream = b"".join(writer.push(TONE[start : start + 1920]) for start in range(0, 23_040, 1920))
    sound = heard(stream)
    assert len(sound) == 23_040
    assert likeness(TONE[:23_040], sound) > 0.99


def test_ffmpeg_reads_what_is_written():
    writer = OpusWriter()
    with av.open(io.BytesIO(writer.push(TONE)), format="ogg") as container:
        parts = [frame.to_ndarray() for frame in container.decode(audio=0)]
    assert sum(part.shape[1] for part in parts) == 2 * RATE_HZ


def test_what_ffmpeg_writes_is_read():
    assert likeness(TONE, heard(ogg_file(TONE))) > 0.99


def test_sound_is_decoded_even_if_no_header_ever_came():
    stream = OpusWriter().push(TONE)
    packets = PacketReader().push(stream)
    writer = PageWriter()
    bare = b"".join(writer.page(packet, 0) for packet in packets[2:])
    assert likeness(TONE, heard(bare)) > 0.99


def test_a_new_header_begins_a_new_stream():
    reader = OpusReader()
    for _ in range(2):
        sound, packets = reader.push(OpusWriter().push(TONE), MANY)
        assert packets == 50 and likeness(TONE, sound) > 0.99


@given(packet=st.binary(min_size=1, max_size=300))
@settings(max_examples=20, deadline=None)
def test_packets_of_garbage_end_nothing(packet):
    reader, writer = OpusReader(), PageWriter()
    sound, count = reader.push(writer.page(packet, 0), MANY)
    assert count <= 1 and np.isfinite(sound).all() and np.abs(sound).max(initial=0) < 10
    assert likeness(TONE, reader.push(OpusWriter().push(TONE), MANY)[0]) > 0.9


def test_no_more_packets_are_decoded_than_allowed():
    sound, packets = OpusReader().push(OpusWriter().push(TONE), 10)
    assert packets == 50 and len(sound) == 10 * 480


# ---------------------------------------------------------------------------------- rates


@pytest.mark.parametrize("kind", [Decimator, Interpolator])
@pytest.mark.parametrize("factor", [2, 3])
@given(cuts=st.lists(st.integers(0, 500), max_size=8))
@settings(max_examples=20, deadline=None)
def test_pieces_give_what_the_whole_gives_and_no_sample_is_held_back(kind, factor, cuts):
    pieces, at = [], 0
    changer = kind(factor)
    for size in [*cuts, 3000 - sum(cuts) % 3000]:
        pieces.append(changer.push(TONE[at : at + size]))
        at += size
    sound = TONE[:at]
    whole = kind(factor).push(sound)
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1e-6)
    assert len(whole) == (len(sound) // factor if kind is Decimator else len(sound) * factor)


def tone(hz: float, rate_hz: int) -> np.ndarray:
    return np.sin(2 * np.pi * hz * np.arange(rate_hz) / rate_hz).astype(np.float32)


@pytest.mark.parametrize(("hz", "kept"), [(300, 1.0), (1000, 1.0), (3000, 1.0), (4800, 0.0), (8000, 0.0)])
def test_a_telephone_hears_its_band_and_no_images(hz, kept):
    down = Decimator(3).push(tone(hz, RATE_HZ))[100:]
    assert np.sqrt(2 * np.mean(down**2)) == pytest.approx(kept, abs=0.02)
    if hz < 4000:
        up = Interpolator(3).push(tone(hz, 8000))[300:]
        spectrum = np.abs(np.fft.rfft(up * np.hanning(len(up))))
        assert np.argmax(spectrum) == pytest.approx(hz * len(up) / RATE_HZ, abs=1)
        assert spectrum[len(up) * 4600 // RATE_HZ :].max() < 0.01 * spectrum.max()


# ---------------------------------------------------------------------------------- G.711


@pytest.mark.parametrize(
    ("law", "code", "level"),
    [
        # ITU-T G.711, tables 1a to 2b, on the scale of 16 bits: µ-law's 14 bits times 4, A-law's 13 times 8.
        ("mu", 0x80, 32_124), ("mu", 0x00, -32_124), ("mu", 0xFF, 0), ("mu", 0x7F, 0), ("mu", 0xFE, 8),
        ("mu", 0x8F, 16_764), ("mu", 0xEF, 132),
        ("a", 0xAA, 32_256), ("a", 0x2A, -32_256), ("a", 0xD5, 8), ("a", 0x55, -8), ("a", 0xC5, 264),
    ],
)  # fmt: skip
def test_codes_have_the_standards_levels(law, code, level):
    assert g711.decode(bytes([code]), law)[0] * 32_768 == level


@pytest.mark.parametrize("law", g711.LAWS)
def test_each_code_comes_back_and_each_sample_gets_its_nearest_level(law):
    codes = bytes(range(256))
    levels = g711.decode(codes, law)
    again = g711.encode(levels, law)
    assert (g711.decode(again, law) == levels).all()
    samples = np.arange(-32_768, 32_768, 7) / 32_768
    coded = g711.decode(g711.encode(samples, law), law)
    nearest = np.abs(samples[:, None] - levels[None]).min(axis=1)
    np.testing.assert_allclose(np.abs(samples - coded), nearest, atol=1e-7)
