"""Recordings that are not what they seem: cancelled channels, constant levels, cut and joined files."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import soundfile
from tones import tone

from personaplex.audio.activity import speech_spans
from personaplex.audio.files import read_recording, recording_from_array
from personaplex.audio.frames import SAMPLE_RATE_HZ
from personaplex.audio.loudness import normalize_loudness
from personaplex.errors import AudioError, PromptError
from personaplex.personas.own_voice import own_voice
from personaplex.personas.voices import voice_from_file


def test_channels_that_cancel_each_other_are_not_silence(tmp_path):
    """A microphone on both sides of a balanced cable: the mean was silence, unnoted."""
    voice = tone(2.0, 44_100, gain=0.3)
    soundfile.write(tmp_path / "a.wav", np.stack([0.9 * voice, -voice], axis=1), 44_100)
    recording = read_recording(tmp_path / "a.wav")
    assert abs(np.abs(recording.pcm[2000:-2000]).max() - 0.3) < 0.01
    assert [note for note in recording.notes if "cancel each other" in note and "channel 2" in note]
    assert np.abs(recording_from_array(np.stack([voice, -voice], axis=1), 44_100).pcm).max() > 0.29


@pytest.mark.parametrize("kind", ["one side only", "independent", "the same", "eight, one used", "silence"])
def test_other_channels_are_averaged(tmp_path, kind):
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 24_000)) * 0.1
    channels = {
        "one side only": [one, 0 * one], "independent": [one, other], "the same": [one, one],
        "eight, one used": [one, *[0 * one] * 7], "silence": [0 * one, 0 * one],
    }[kind]  # fmt: skip
    soundfile.write(tmp_path / "a.wav", np.stack(channels, axis=1), SAMPLE_RATE_HZ, subtype="FLOAT")
    recording = read_recording(tmp_path / "a.wav")
    np.testing.assert_allclose(recording.pcm, np.mean(channels, axis=0), atol=1e-6)
    assert not [note for note in recording.notes if "cancel" in note]


def test_a_constant_level_is_silence(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.full(72_000, 0.5), SAMPLE_RATE_HZ)
    recording = read_recording(tmp_path / "a.wav")
    assert recording.is_silent and "is silent" in recording.notes[0]
    assert not speech_spans(recording.pcm)
    with pytest.raises(PromptError, match="silent"):
        voice_from_file(tmp_path / "a.wav")
    with pytest.raises(PromptError, match="silent"):
        own_voice(tmp_path / "a.wav")


def test_speech_on_a_constant_level_is_found():
    pcm = np.concatenate([np.zeros(24_000, np.float32), tone(1.0, gain=0.2), np.zeros(24_000, np.float32)])
    (plain,), (shifted,) = speech_spans(pcm), speech_spans(pcm + np.float32(0.3))
    assert (plain.start_sec, plain.end_sec) == pytest.approx((shifted.start_sec, shifted.end_sec), abs=0.021)


def test_levelling_leaves_no_sample_beyond_full_scale(tmp_path):
    """A quiet voice with a click was raised to peaks of 4.4."""
    pcm = tone(3.0, gain=0.003)
    pcm[30_000:30_010] = 0.9
    levelled = normalize_loudness(pcm)
    assert np.abs(levelled).max() <= 1.0
    np.testing.assert_allclose(levelled, pcm * levelled[10] / pcm[10], atol=1e-4)
    soundfile.write(tmp_path / "a.wav", pcm, SAMPLE_RATE_HZ)
    assert "a few loud moments" in voice_from_file(tmp_path / "a.wav").notes[0]


@pytest.mark.parametrize(
    ("longer_sec", "said"),
    [
        (60.03, "is 60.03 s long; at most 60.00 s"),
        (61, "is 61.0 s long; at most 60.0 s"),
        (60.0001, "longer than 60.0 s"),
    ],
)
def test_a_length_is_told_apart_from_what_is_allowed(longer_sec, said):
    with pytest.raises(AudioError, match=said):
        recording_from_array(np.zeros(round(longer_sec * 10_000), np.float32), 10_000, max_sec=60)


@pytest.mark.parametrize(("format", "subtype"), [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)])
@pytest.mark.parametrize("seconds", [3, 40])
def test_recordings_in_one_file_are_all_read(tmp_path, format, subtype, seconds):
    """Chained Ogg and joined MP3 ended after their first part."""
    encoded = io.BytesIO()
    soundfile.write(encoded, tone(seconds, 48_000), 48_000, format=format, subtype=subtype)
    (tmp_path / "one").write_bytes(encoded.getvalue())
    (tmp_path / "two").write_bytes(encoded.getvalue() * 2)
    assert read_recording(tmp_path / "one").duration_sec == pytest.approx(seconds, abs=0.1)
    assert read_recording(tmp_path / "two").duration_sec == pytest.approx(2 * seconds, abs=0.2)


def test_recordings_of_different_kinds_in_one_file(tmp_path):
    parts = []
    for rate_hz, channels in ((48_000, 1), (16_000, 2)):
        encoded = io.BytesIO()
        sound = np.repeat(tone(3.0, rate_hz)[:, None], channels, axis=1)
        soundfile.write(encoded, sound, rate_hz, format="OGG", subtype="VORBIS")
        parts.append(encoded.getvalue())
    (tmp_path / "a.ogg").write_bytes(b"".join(parts))
    with pytest.raises(AudioError, match=r"of different kinds one after the other.*the first \(3\.0 s\)"):
        read_recording(tmp_path / "a.ogg")


@pytest.mark.parametrize(("format", "subtype"), [("MP3", None), ("OGG", "VORBIS"), ("FLAC", None)])
def test_a_recording_read_in_blocks_has_no_seams(tmp_path, format, subtype):
    """After every block SoundFile seeks to where it stands, and MP3 was decoded anew from the middle of a frame."""
    soundfile.write(tmp_path / "a", tone(6.0, gain=0.3), SAMPLE_RATE_HZ, format=format, subtype=subtype)
    whole, _ = soundfile.read(tmp_path / "a", dtype="float32")
    np.testing.assert_allclose(read_recording(tmp_path / "a").pcm[: len(whole)], whole, atol=1e-6)


def wav_bytes(seconds: float = 3.0) -> bytearray:
    encoded = io.BytesIO()
    soundfile.write(encoded, tone(seconds), SAMPLE_RATE_HZ, format="WAV", subtype="PCM_16")
    return bytearray(encoded.getvalue())


def test_a_wav_that_was_cut_is_read_with_a_note(tmp_path):
    (tmp_path / "a.wav").write_bytes(wav_bytes()[:-72_000])
    recording = read_recording(tmp_path / "a.wav")
    assert recording.duration_sec == pytest.approx(1.5)
    assert f"{tmp_path / 'a.wav'} was cut off: 1.5 s of 3.0 s are there" in recording.notes


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFFFFF])
def test_a_wav_that_was_written_to_a_pipe_is_read_to_its_end(tmp_path, size):
    """Its header has no length; with 0 it held "no samples"."""
    written = wav_bytes()
    place = written.index(b"data") + 4
    written[place : place + 4] = struct.pack("<I", size)
    (tmp_path / "a.wav").write_bytes(written)
    recording = read_recording(tmp_path / "a.wav")
    assert recording.duration_sec == pytest.approx(3.0, abs=0.01)
    assert not [note for note in recording.notes if "cut" in note]
    assert bool([note for note in recording.notes if "read to its end" in note]) == (size == 0)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_half_a_flac_is_said_to_break_off_where_it_does(tmp_path, share):
    """ "damaged after 0.0 s", for it was read in pieces of more than a second."""
    encoded = io.BytesIO()
    soundfile.write(encoded, np.random.default_rng(0).normal(size=48_000) * 0.1, SAMPLE_RATE_HZ, format="FLAC")
    (tmp_path / "a.flac").write_bytes(encoded.getvalue()[: int(share * len(encoded.getvalue()))])
    with pytest.raises(AudioError, match="damaged or cut off after") as caught:
        read_recording(tmp_path / "a.flac")
    told_sec = float(str(caught.value).split(" after ")[1].split()[0])
    assert told_sec == pytest.approx(2 * share, abs=0.25)
