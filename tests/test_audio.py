"""Sound files in and out: what comes through untouched, what is converted, what is refused."""

from __future__ import annotations

import os
import struct
import time

import av
import numpy as np
import pyloudnorm
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from tones import peak_hz, tone

from personaplex.audio.files import read_recording, recording_from_array, write_stereo_wav, write_wav
from personaplex.audio.frames import FRAME_SAMPLES, SAMPLE_RATE_HZ, FrameBuffer, split_frames, to_int16
from personaplex.audio.loudness import normalize_loudness
from personaplex.errors import AudioError, OutputError, PromptError
from personaplex.files import check_folder, check_writable, free_bytes, write_atomically

# --- reading


def test_a_24_khz_mono_int16_file_is_bit_identical(tmp_path):
    samples = np.random.default_rng(0).integers(-32768, 32768, 100_001).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", samples, SAMPLE_RATE_HZ)
    recording = read_recording(tmp_path / "a.wav")
    assert recording.pcm.dtype == np.float32
    np.testing.assert_array_equal(recording.pcm, samples.astype(np.float32) / 32768)
    np.testing.assert_array_equal(to_int16(recording.pcm), samples)


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 22_050, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_rate_and_channel_count_keeps_pitch_length_and_level(tmp_path, rate_hz, channels):
    pcm = np.repeat(tone(1.5, rate_hz)[:, None], channels, axis=1)
    soundfile.write(tmp_path / "a.wav", pcm, rate_hz, subtype="FLOAT")
    recording = read_recording(tmp_path / "a.wav")
    assert (recording.source_rate_hz, recording.source_channels) == (rate_hz, channels)
    assert abs(recording.duration_sec - 1.5) < 0.001
    assert abs(peak_hz(recording.pcm) - 440) < 1
    middle = recording.pcm[6000:-6000]
    np.testing.assert_allclose(np.sqrt(np.mean(middle**2)), 0.5 / np.sqrt(2), rtol=1e-3)


def test_resampling_in_blocks_equals_resampling_at_once(tmp_path):
    import soxr

    pcm = np.random.default_rng(1).uniform(-0.5, 0.5, 300_000).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", pcm, 44_100, subtype="FLOAT")
    whole = soxr.resample(pcm, 44_100, SAMPLE_RATE_HZ, quality="HQ")
    np.testing.assert_allclose(read_recording(tmp_path / "a.wav").pcm, whole, atol=1e-6)


def test_stereo_is_averaged(tmp_path):
    left, right = tone(0.5, hz=300), tone(0.5, hz=500)
    write_stereo_wav(tmp_path / "a.wav", left, right)
    np.testing.assert_allclose(read_recording(tmp_path / "a.wav").pcm, (left + right) / 2, atol=1e-4)


@pytest.mark.parametrize(("suffix", "format"), [("flac", "FLAC"), ("ogg", "OGG"), ("mp3", "MP3"), ("aiff", "AIFF")])
def test_libsndfile_formats(tmp_path, suffix, format):
    soundfile.write(tmp_path / f"a.{suffix}", tone(1.0, 48_000), 48_000, format=format)
    recording = read_recording(tmp_path / f"a.{suffix}")
    assert abs(recording.duration_sec - 1.0) < 0.1
    assert abs(peak_hz(recording.pcm[2000:22000]) - 440) < 2


@pytest.mark.parametrize(("container", "codec"), [("m4a", "aac"), ("webm", "libopus")])
def test_formats_of_phones_and_browsers(tmp_path, container, codec):
    path = tmp_path / f"a.{container}"
    encode_with_av(path, codec, tone(2.0, 48_000))
    recording = read_recording(path)
    assert abs(recording.duration_sec - 2.0) < 0.1
    assert abs(peak_hz(recording.pcm[4000:40000]) - 440) < 2


def encode_with_av(path, codec: str, pcm: np.ndarray, rate_hz: int = 48_000) -> None:
    try:
        container = av.open(str(path), "w", format={".m4a": "ipod"}.get(path.suffix))
        stream = container.add_stream(codec, rate=rate_hz, layout="mono")
    except (av.FFmpegError, ValueError) as error:
        pytest.skip(f"this PyAV has no {codec} encoder: {error}")
    with container:
        frame = av.AudioFrame.from_ndarray(pcm[None], format="fltp", layout="mono")
        frame.sample_rate = rate_hz
        resampler = av.AudioResampler(stream.format, stream.layout, rate_hz, frame_size=stream.frame_size or 960)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))


def test_the_content_decides_not_the_name(tmp_path):
    soundfile.write(tmp_path / "a.raw", tone(0.5), SAMPLE_RATE_HZ, format="WAV")
    assert len(read_recording(tmp_path / "a.raw").pcm) == SAMPLE_RATE_HZ // 2


def test_a_recording_from_memory():
    pcm = tone(1.0, 48_000)
    from_int16 = recording_from_array((pcm * 32767).astype(np.int16), 48_000)
    from_stereo = recording_from_array(np.stack([pcm, pcm], 1), 48_000)
    np.testing.assert_allclose(from_int16.pcm, from_stereo.pcm, atol=1e-4)
    with pytest.raises(AudioError, match="uint8"):
        recording_from_array(np.zeros(9, np.uint8), 48_000)
    with pytest.raises(AudioError, match="no samples"):
        recording_from_array(np.zeros(0, np.float32), 48_000)


def test_notes_name_what_may_disappoint(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.clip(4 * tone(1.0, 8_000), -1, 1), 8_000)
    clipped, telephone = read_recording(tmp_path / "a.wav").notes
    assert "clipped" in clipped
    assert "telephone" in telephone
    assert "silent" in recording_from_array(np.zeros(4000, np.float32), 24_000).notes[0]
    assert recording_from_array(tone(1.0), 24_000).notes == ()


# --- refused


def refused(path, match: str, **options) -> None:
    with pytest.raises(AudioError, match=match) as caught:
        read_recording(path, **options)
    assert "\n" not in str(caught.value)


def test_missing_folder_empty_and_device(tmp_path):
    refused(tmp_path / "no.wav", "does not exist")
    refused(tmp_path, "is a folder")
    (tmp_path / "empty.wav").touch()
    refused(tmp_path / "empty.wav", "is empty")
    if os.path.exists("/dev/zero"):
        refused("/dev/zero", "not a regular file")
    soundfile.write(tmp_path / "none.wav", np.zeros(0), SAMPLE_RATE_HZ)
    refused(tmp_path / "none.wav", "no samples")


@pytest.mark.parametrize(
    "content",
    [
        b"hello, this is text\n" * 100,
        os.urandom(5000),
        b"RIFF\xff\xff\xff\x7fWAVEfmt ",
        b"\x89PNG\r\n\x1a\n" + b"\0" * 99,
    ],
    ids=["text", "noise", "half a header", "picture"],
)
def test_not_audio(tmp_path, content):
    (tmp_path / "a.wav").write_bytes(content)
    refused(tmp_path / "a.wav", "sound|damaged|no samples")


def test_a_playlist_opens_nothing_else(tmp_path):
    soundfile.write(tmp_path / "secret.wav", tone(1.0), SAMPLE_RATE_HZ)
    (tmp_path / "a.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path}/secret.wav\n")
    refused(tmp_path / "a.m3u8", "not a sound file")
    (tmp_path / "b.wav").write_text(f"ffconcat version 1.0\nfile '{tmp_path}/secret.wav'\n")
    refused(tmp_path / "b.wav", "not a sound file")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_a_number(tmp_path, value):
    pcm = tone(1.0)
    pcm[777] = value
    soundfile.write(tmp_path / "a.wav", pcm, SAMPLE_RATE_HZ, subtype="FLOAT")
    refused(tmp_path / "a.wav", "NaN")


def test_int16_values_saved_as_floats(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(1.0) * 32768, SAMPLE_RATE_HZ, subtype="FLOAT")
    refused(tmp_path / "a.wav", "between -1 and 1")


def test_ten_hours_are_refused_from_the_header(tmp_path):
    with soundfile.SoundFile(tmp_path / "long.flac", "w", 1_000, 1, format="FLAC") as file:
        for _ in range(10):
            file.write(np.zeros(3600 * 1_000, np.int16))
    start = time.perf_counter()
    refused(tmp_path / "long.flac", r"10\.0 h long; at most 60 min")
    assert time.perf_counter() - start < 0.5


def test_too_long_without_a_header_that_says_so():
    with pytest.raises(AudioError, match="longer than|long; at most"):
        recording_from_array(np.zeros(3 * 8000, np.float32), 8000, max_sec=2.0)


def test_a_rate_that_is_none(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(100, np.int16), 10)
    refused(tmp_path / "a.wav", "10 samples a second")


def test_many_channels_are_refused_before_they_are_read(tmp_path):
    """Ten minutes of silence in 255 channels are a megabyte of Vorbis and minutes of decoding."""
    with soundfile.SoundFile(tmp_path / "a.ogg", "w", 48_000, 255, "VORBIS", format="OGG") as file:
        file.write(np.zeros((480, 255), np.float32))
    refused(tmp_path / "a.ogg", "255 channels at 48000 Hz")
    soundfile.write(tmp_path / "a.wav", np.zeros((1_000, 8)) + tone(1_000 / 192_000, 192_000)[:, None], 192_000)
    assert read_recording(tmp_path / "a.wav").source_channels == 8


# --- loudness


def test_loudness_is_what_pyloudnorm_computes():
    rng = np.random.default_rng(2)
    pcm = (rng.standard_normal(3 * SAMPLE_RATE_HZ) * 0.05).astype(np.float32)
    meter = pyloudnorm.Meter(SAMPLE_RATE_HZ)
    expected = pyloudnorm.normalize.loudness(pcm, meter.integrated_loudness(pcm), -24.0)
    np.testing.assert_array_equal(normalize_loudness(pcm), expected.astype(np.float32))
    assert abs(meter.integrated_loudness(normalize_loudness(pcm)) + 24) < 0.05
    assert normalize_loudness(pcm).dtype == np.float32


def test_a_voice_that_cannot_be_measured():
    with pytest.raises(PromptError, match=r"0\.20 s long"):
        normalize_loudness(tone(0.2))
    with pytest.raises(PromptError, match="silent"):
        normalize_loudness(np.zeros(SAMPLE_RATE_HZ, np.float32))


# --- frames


def test_frame_size_comes_from_the_codec():
    assert FRAME_SAMPLES * 12.5 == SAMPLE_RATE_HZ


def test_the_last_frame_is_filled_with_zeros():
    pcm = np.arange(1, FRAME_SAMPLES + 2, dtype=np.float32)
    frames = split_frames(pcm)
    assert frames.shape == (2, FRAME_SAMPLES)
    assert frames[1, 0] == FRAME_SAMPLES + 1
    assert not frames[1, 1:].any()
    assert split_frames(pcm[:0]).shape == (0, FRAME_SAMPLES)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 25), max_size=30))
def test_chunks_of_any_size_give_the_frames_of_the_whole(sizes):
    pcm = np.arange(sum(sizes), dtype=np.float32)
    buffer, frames, at = FrameBuffer(7), [], 0
    for size in sizes:
        frames.append(buffer.push(pcm[at : at + size]))
        at += size
        assert buffer.fill_samples == at % 7
    frames.append(buffer.flush())
    np.testing.assert_array_equal(np.concatenate(frames), split_frames(pcm, 7))


def test_frames_do_not_share_memory_with_the_buffer():
    buffer = FrameBuffer(4)
    first = buffer.push(np.arange(6, dtype=np.float32)).copy()
    kept = buffer.push(np.arange(6, 10, dtype=np.float32))
    before = kept.copy()
    buffer.push(np.full(9, 99, np.float32))
    np.testing.assert_array_equal(kept, before)
    np.testing.assert_array_equal(first[0], [0, 1, 2, 3])


# --- writing


def test_stereo_is_left_agent_right_user_and_as_long_as_the_longer(tmp_path):
    write_stereo_wav(tmp_path / "a.wav", np.full(10, 0.25), np.full(4, -0.5))
    samples, rate_hz = soundfile.read(tmp_path / "a.wav")
    assert rate_hz == SAMPLE_RATE_HZ
    np.testing.assert_allclose(samples[:, 0], 0.25)
    np.testing.assert_allclose(samples[:, 1], [-0.5] * 4 + [0] * 6)


def test_loud_samples_are_clipped_not_wrapped(tmp_path):
    write_wav(tmp_path / "a.wav", np.array([2.0, -2.0, 1.0]))
    np.testing.assert_array_equal(soundfile.read(tmp_path / "a.wav", dtype="int16")[0], [32767, -32768, 32767])


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"old")

    def fail(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a.bin", fail)
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_a_new_file_has_usual_permissions_and_a_link_stays_a_link(tmp_path):
    (tmp_path / "usual").touch()
    write_atomically(tmp_path / "new", lambda file: file.write(b"1"))
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "usual").stat().st_mode
    (tmp_path / "link").symlink_to(tmp_path / "new")
    write_atomically(tmp_path / "link", lambda file: file.write(b"2"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "new").read_bytes() == b"2"


def test_folders_that_cannot_be_written_are_found_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    for fine in (tmp_path, tmp_path / "new", tmp_path / "new" / "below"):
        check_folder(fine)
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "looking makes nothing"
    cases = {tmp_path / "file": "is a file", tmp_path / "file" / "below": "is a file"}
    if os.path.exists("/proc/version"):
        cases["/proc/nothing"] = "/proc/nothing cannot be written"
    for path, reason in cases.items():
        with pytest.raises(OutputError, match=reason):
            check_folder(path)


def test_the_room_on_a_disk_is_that_of_the_nearest_folder_there(tmp_path, monkeypatch):
    assert free_bytes(tmp_path / "not" / "there") > 0

    def gone(_):
        raise FileNotFoundError("the system cannot find the path")

    monkeypatch.setattr("shutil.disk_usage", gone)
    assert free_bytes(tmp_path) == 0


def test_paths_that_cannot_be_written_are_found_before_the_work(tmp_path):
    check_writable(tmp_path / "a.wav", [".wav"])
    assert not list(tmp_path.iterdir())
    cases = {tmp_path: "is a folder", tmp_path / "no" / "a.wav": "no folder", "bad\0name.wav": "cannot be written"}
    if os.path.exists("/proc/version"):
        cases["/proc/a.wav"] = "cannot be written"
    if os.path.exists("/dev/null"):
        cases["/dev/null"] = "not a regular file"
    for path, reason in cases.items():
        with pytest.raises(OutputError, match=reason):
            check_writable(path)
    with pytest.raises(OutputError, match=r"must end in \.wav"):
        check_writable(tmp_path / "a.mp3", [".wav"])


def wav_header(rate_hz: int, format_tag: int, data: bytes) -> bytes:
    layout = struct.pack("<HHIIHH", format_tag, 1, rate_hz, 2 * rate_hz, 2, 16)
    chunks = b"fmt " + struct.pack("<I", len(layout)) + layout + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def test_a_sound_nobody_can_decode(tmp_path):
    (tmp_path / "odd.wav").write_bytes(wav_header(24_000, 0x1231, bytes(4800)))
    with pytest.raises(AudioError, match=r"odd\.wav (holds sound in a format|is not a sound file)"):
        read_recording(tmp_path / "odd.wav")


def test_a_sound_too_short_to_be_one(tmp_path):
    (tmp_path / "click.wav").write_bytes(wav_header(768_000, 1, bytes(2)))
    with pytest.raises(AudioError, match="is too short: 1 samples at 768000"):
        read_recording(tmp_path / "click.wav")
