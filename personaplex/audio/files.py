"""Sound files: reading in any usual format, resampling, checking, writing WAV.

Everything inside the program is mono float32 at the codec's rate. An int16 file that already has this rate and one
channel comes through untouched (sample / 32 768).
"""

from __future__ import annotations

import io
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import soundfile
import soxr

from personaplex.audio.frames import SAMPLE_RATE_HZ, to_int16
from personaplex.errors import AudioError
from personaplex.files import write_atomically

MAX_RECORDING_SEC = 3600.0
MIN_SAMPLE_RATE_HZ, MAX_SAMPLE_RATE_HZ = 1_000, 768_000
TELEPHONE_RATE_HZ = 8_000
MAX_FILE_BYTES = 4 * 1024**3

_BLOCK_SAMPLES = 1 << 16  # read at a time: a long file is refused before it fills the memory
_FULL_SCALE = 0.999
_MAX_PEAK = 16.0  # float files may overshoot 1 a little; beyond this the numbers are not samples
_CLIPPED_SHARE = 0.001
_SILENT_PEAK = 1e-4
# Demuxers a recording may need. Playlists and the like, which open further files, are not among them.
_AV_FORMATS = "wav,mp3,flac,ogg,mov,mp4,m4a,3gp,matroska,webm,aac,asf,amr,aiff,caf,au,avi,mpegts,wv,ape"


@dataclass(frozen=True)
class Recording:
    """A sound file as the model hears it."""

    pcm: np.ndarray
    """[N] float32, mono, at ``sample_rate_hz``."""
    sample_rate_hz: int
    source_rate_hz: int
    source_channels: int
    notes: tuple[str, ...] = ()
    """What may disappoint, in sentences for the user: clipped, silent, telephone band."""

    @property
    def duration_sec(self) -> float:
        return len(self.pcm) / self.sample_rate_hz


@dataclass(frozen=True)
class _Source:
    """An opened file: its shape, and its samples in blocks [n, channels] float32."""

    rate_hz: int
    channels: int
    declared_sec: float | None
    blocks: Iterator[np.ndarray]


def read_recording(
    path: str | Path,
    *,
    sample_rate_hz: int = SAMPLE_RATE_HZ,
    max_sec: float = MAX_RECORDING_SEC,
    name: str | None = None,
) -> Recording:
    """Read any sound file libsndfile or FFmpeg's libraries know, at any rate, mono or not.

    ``name``: what errors and notes call it; the path, if not given.

    Channels are averaged; other rates are resampled by soxr (HQ). Raises AudioError when the
    path is no readable sound file, holds no samples or numbers that are none, or is longer
    than ``max_sec`` (found from the header, or at the first sample too many).
    """
    path = Path(path)
    name = name or str(path)
    _check_is_file(path, name)
    try:
        with path.open("rb") as file, _open_source(file, name) as source:
            _check_shape(source, name, max_sec)
            return _collect(source, name, sample_rate_hz, max_sec)
    except OSError as error:
        raise AudioError(f"{name} cannot be read: {error.strerror or error}") from error


def recording_from_array(
    samples: np.ndarray,
    source_rate_hz: int,
    *,
    sample_rate_hz: int = SAMPLE_RATE_HZ,
    max_sec: float = MAX_RECORDING_SEC,
    name: str = "the recording",
) -> Recording:
    """The same for samples in memory: [N] or [N, channels], int16, int32 or float."""
    samples = np.asarray(samples)
    if samples.ndim not in (1, 2):
        raise AudioError(f"{name} has shape {list(samples.shape)}; [samples] or [samples, channels] is needed")
    if samples.dtype in (np.int16, np.int32):
        samples = samples / np.float32(-float(np.iinfo(samples.dtype).min))
    elif not np.issubdtype(samples.dtype, np.floating):
        raise AudioError(f"{name} holds {samples.dtype} numbers; int16, int32 or float samples are needed")
    blocks = samples.astype(np.float32)[:, None] if samples.ndim == 1 else samples.astype(np.float32)
    source = _Source(int(source_rate_hz), blocks.shape[1], len(blocks) / max(source_rate_hz, 1), iter([blocks]))
    _check_shape(source, name, max_sec)
    return _collect(source, name, sample_rate_hz, max_sec)


def _check_is_file(path: Path, name: str) -> None:
    try:
        info = path.stat()
    except FileNotFoundError:
        raise AudioError(f"{name} does not exist; give the path of a sound file") from None
    except (OSError, ValueError) as error:
        raise AudioError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if stat.S_ISDIR(info.st_mode):
        raise AudioError(f"{name} is a folder; give the path of a sound file")
    if not stat.S_ISREG(info.st_mode):
        raise AudioError(f"{name} is not a regular file; give the path of a sound file")
    if info.st_size == 0:
        raise AudioError(f"{name} is empty (0 bytes)")
    if info.st_size > MAX_FILE_BYTES:
        raise AudioError(
            f"{name} has {info.st_size / 1024**3:.1f} GiB; at most {MAX_FILE_BYTES // 1024**3} GiB are read: "
            "cut the part you need"
        )


@contextmanager
def _open_source(file: BinaryIO, name: str) -> Iterator[_Source]:
    """Open by content, never by extension: libsndfile first, then FFmpeg's demuxers."""
    try:
        sound = soundfile.SoundFile(file)
    except (soundfile.LibsndfileError, TypeError):  # TypeError: a name that ends in .raw
        file.seek(0)
        with _open_with_av(file, name) as source:
            yield source
        return
    with sound:
        yield _Source(sound.samplerate, sound.channels, sound.frames / sound.samplerate, _soundfile_blocks(sound, name))


def _soundfile_blocks(sound: soundfile.SoundFile, name: str) -> Iterator[np.ndarray]:
    done = 0
    while True:
        try:
            block = sound.read(_BLOCK_SAMPLES, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise _damaged(name, done / sound.samplerate, error) from error
        if not len(block):
            return
        done += len(block)
        yield block


@contextmanager
def _open_with_av(file: BinaryIO, name: str) -> Iterator[_Source]:
    try:
        container = av.open(file, mode="r", metadata_errors="replace", options={"format_whitelist": _AV_FORMATS})
    except (av.FFmpegError, ValueError) as error:
        raise AudioError(f"{name} is not a sound file that can be read (WAV, FLAC, MP3, Ogg, M4A, WebM …)") from error
    with container:
        if not container.streams.audio:
            raise AudioError(f"{name} holds no sound")
        stream = container.streams.audio[0]
        if stream.codec_context is None:
            raise AudioError(f"{name} holds sound in a format that cannot be decoded; export it as WAV or FLAC")
        declared = None if container.duration is None else container.duration / av.time_base
        yield _Source(stream.rate or 0, stream.channels or 0, declared, _av_blocks(container, stream, name))


def _av_blocks(container: av.container.InputContainer, stream: av.AudioStream, name: str) -> Iterator[np.ndarray]:
    """Decoded blocks, all with the stream's first rate and layout."""
    resampler = av.AudioResampler(format="fltp", rate=stream.rate)
    done = 0
    try:
        for frame in container.decode(stream):
            for planar in resampler.resample(frame):
                done += planar.samples
                yield np.ascontiguousarray(planar.to_ndarray().T)
        for planar in resampler.resample(None):
            yield np.ascontiguousarray(planar.to_ndarray().T)
    except (av.FFmpegError, ValueError) as error:
        raise _damaged(name, done / stream.rate, error) from error


def _damaged(name: str, at_sec: float, error: Exception) -> AudioError:
    return AudioError(f"{name} is damaged after {at_sec:.1f} s: {error}")


def _check_shape(source: _Source, name: str, max_sec: float) -> None:
    if source.channels < 1:
        raise AudioError(f"{name} has no channels")
    if not MIN_SAMPLE_RATE_HZ <= source.rate_hz <= MAX_SAMPLE_RATE_HZ:
        raise AudioError(
            f"{name} says it has {source.rate_hz} samples a second; {MIN_SAMPLE_RATE_HZ} to {MAX_SAMPLE_RATE_HZ} "
            "are allowed"
        )
    if source.declared_sec is not None and source.declared_sec > max_sec:
        raise _too_long(name, f"{_clock(source.declared_sec)} long", max_sec)


def _too_long(name: str, how_long: str, max_sec: float) -> AudioError:
    return AudioError(f"{name} is {how_long}; at most {_clock(max_sec)} is allowed: cut it into shorter files")


def _clock(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.0f} min" if minutes < 120 else f"{hours:.1f} h"


def _collect(source: _Source, name: str, sample_rate_hz: int, max_sec: float) -> Recording:
    """Mix down, resample and check block by block."""
    same_rate = source.rate_hz == sample_rate_hz
    resampler = None if same_rate else soxr.ResampleStream(source.rate_hz, sample_rate_hz, 1, dtype="float32")
    max_samples = int(max_sec * source.rate_hz)
    parts: list[np.ndarray] = []
    read = clipped = 0
    peak = 0.0
    for block in source.blocks:
        read += len(block)
        if read > max_samples:
            raise _too_long(name, f"longer than {_clock(max_sec)}", max_sec)
        if not np.isfinite(block).all():
            raise AudioError(f"{name} holds numbers that are no samples (NaN or infinite); export it again")
        magnitude = np.abs(block)
        peak = max(peak, float(magnitude.max(initial=0.0)))
        clipped += int((magnitude.max(axis=1) >= _FULL_SCALE).sum())
        mono = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)
        parts.append(mono if resampler is None else resampler.resample_chunk(np.ascontiguousarray(mono)))
    if not read:
        raise AudioError(f"{name} holds no samples")
    if peak > _MAX_PEAK:
        raise AudioError(f"{name} has samples up to {peak:.0f}; float samples lie between -1 and 1: export it again")
    if resampler is not None:
        parts.append(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
    pcm = np.ascontiguousarray(np.concatenate(parts), dtype=np.float32)
    if not len(pcm):
        raise AudioError(f"{name} is too short: {read} samples at {source.rate_hz} a second")
    notes = _notes(name, peak, clipped / read, source.rate_hz)
    return Recording(pcm, sample_rate_hz, source.rate_hz, source.channels, notes)


def _notes(name: str, peak: float, clipped_share: float, rate_hz: int) -> tuple[str, ...]:
    notes = []
    if peak < _SILENT_PEAK:
        notes.append(f"{name} is silent: was the microphone muted?")
    if clipped_share > _CLIPPED_SHARE:
        notes.append(f"{name} is clipped ({clipped_share:.1%} of it at full scale): record it with less gain")
    if rate_hz <= TELEPHONE_RATE_HZ:
        notes.append(f"{name} is telephone sound ({rate_hz} samples a second): words may be misheard")
    return tuple(notes)


def write_wav(path: str | Path, pcm: np.ndarray, sample_rate_hz: int = SAMPLE_RATE_HZ) -> None:
    """Write [N] or [N, channels] float as 16-bit WAV: complete, or not at all (OutputError)."""
    encoded = io.BytesIO()
    soundfile.write(encoded, to_int16(pcm), sample_rate_hz, format="WAV", subtype="PCM_16")
    write_atomically(path, lambda file: file.write(encoded.getbuffer()))


def write_stereo_wav(
    path: str | Path, left: np.ndarray, right: np.ndarray, sample_rate_hz: int = SAMPLE_RATE_HZ
) -> None:
    """Two mono signals [N], [M] as one stereo WAV; the shorter is filled up with silence."""
    both = np.zeros((max(len(left), len(right)), 2), np.float32)
    both[: len(left), 0] = left
    both[: len(right), 1] = right
    write_wav(path, both, sample_rate_hz)
