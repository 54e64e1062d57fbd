"""Sound files: reading in any usual format, resampling, checking, writing WAV.

Everything inside the program is mono float32 at the codec's rate. An int16 file that already has this rate and one
channel comes through untouched (sample / 32 768).
"""

from __future__ import annotations

import io
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import soundfile
import soxr
from av import AudioStream
from av.container import InputContainer

from personaplex.audio.frames import SAMPLE_RATE_HZ, to_int16
from personaplex.audio.headers import read_headers
from personaplex.errors import AudioError
from personaplex.files import write_atomically

MAX_RECORDING_SEC = 3600.0
MIN_SAMPLE_RATE_HZ, MAX_SAMPLE_RATE_HZ = 1_000, 768_000
MAX_SAMPLES_A_SEC = 2 * MAX_SAMPLE_RATE_HZ  # all channels: a small file of silence in 255 is minutes of work
TELEPHONE_RATE_HZ = 8_000
MAX_FILE_BYTES = 4 * 1024**3

_BLOCK_SAMPLES = 1 << 12  # read at a time: a long file is refused before it fills the memory, damage found where it is
_FULL_SCALE = 0.999
_MAX_PEAK = 16.0  # float files may overshoot 1 a little; beyond this the numbers are not samples
_CLIPPED_SHARE = 0.001
_SILENT_PEAK = 1e-4
_CANCELLED_SHARE = 0.1  # of the energy that independent channels keep in their mean: below, one is the other inverted
_CUT_SHARE, _CUT_SEC = 0.02, 0.1  # missing of what the header promises, more than padding explains
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
    """Warnings for the user, a sentence each: clipped, silent, cut off, telephone band."""
    is_silent: bool = False
    """Nothing but a constant level."""

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
    promised_sec: float | None = None  # by a header that counts samples: fewer mean that the file was cut
    notes: tuple[str, ...] = ()


class _ChannelsCancel(Exception):
    """The mean of the channels is nearly silent and they are not."""

    def __init__(self, loudest: int) -> None:
        self.loudest = loudest


def read_recording(
    path: str | Path,
    *,
    sample_rate_hz: int = SAMPLE_RATE_HZ,
    max_sec: float = MAX_RECORDING_SEC,
    name: str | None = None,
) -> Recording:
    """Read any sound file libsndfile or FFmpeg's libraries know, at any rate, mono or not.

    ``name``: what errors and notes call it; the path, if not given.

    Channels are averaged (the loudest is taken where they cancel each other); other rates are resampled by soxr (HQ);
    of several recordings in one file (chained Ogg, joined MP3) all are read. Raises AudioError when the path is no
    readable sound file, holds no samples or invalid ones, or is longer than ``max_sec`` (found from the header, or at
    the first sample too many).
    """
    path = Path(path)
    name = name or str(path)
    _check_is_file(path, name)
    try:
        with path.open("rb") as file:
            return _mixed(lambda: _open_source(file, name), name, sample_rate_hz, max_sec)
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
    duration_sec = len(blocks) / max(source_rate_hz, 1)

    def source() -> AbstractContextManager[_Source]:
        return nullcontext(_Source(int(source_rate_hz), blocks.shape[1], duration_sec, iter([blocks])))

    return _mixed(source, name, sample_rate_hz, max_sec)


def _mixed(
    open_source: Callable[[], AbstractContextManager[_Source]], name: str, sample_rate_hz: int, max_sec: float
) -> Recording:
    """The mean of all channels, or the loudest where they cancel each other: that is known at the end only."""
    with open_source() as source:
        _check_shape(source, name, max_sec)
        try:
            return _collect(source, name, sample_rate_hz, max_sec)
        except _ChannelsCancel as found:
            loudest = found.loudest
    with open_source() as source:
        recording = _collect(source, name, sample_rate_hz, max_sec, channel=loudest)
    note = f"the channels of {name} cancel each other (one is inverted): only channel {loudest + 1} is used"
    return replace(recording, notes=(*recording.notes, note))


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


class _Forwards(soundfile.SoundFile):
    """A file that is read from its beginning to its end.

    SoundFile seeks to where it stands after every block. For MP3 that starts the decoder anew in the middle of a frame,
    which is heard, and at the end of a cut FLAC it fails.
    """

    def seekable(self) -> bool:
        return False


@contextmanager
def _open_source(file: BinaryIO, name: str) -> Iterator[_Source]:
    """Open by content, never by extension: libsndfile first, then FFmpeg's demuxers."""
    file.seek(0)
    headers = read_headers(file)
    try:
        sound = _Forwards(file) if not headers.needs_ffmpeg else None
    except (soundfile.LibsndfileError, TypeError):  # TypeError: a name that ends in .raw
        sound = None
    if sound is None:
        file.seek(0)
        with _open_with_av(file, name) as source:
            notes = (f"{name} does not say how long it is: read to its end",) if headers.has_no_length else ()
            yield replace(source, notes=notes)
        return
    with sound:
        duration_sec = sound.frames / sound.samplerate
        promised_sec = duration_sec
        if headers.promised_bytes is not None and headers.present_bytes:
            promised_sec *= max(1.0, headers.promised_bytes / headers.present_bytes)
        blocks = _soundfile_blocks(sound, name)
        yield _Source(sound.samplerate, sound.channels, duration_sec, blocks, promised_sec)


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


def _av_blocks(container: InputContainer, stream: AudioStream, name: str) -> Iterator[np.ndarray]:
    """Decoded blocks, all with the stream's first rate and layout, also of recordings chained to the first."""
    rate_hz = stream.rate or 0
    layout, done = stream.layout.name, 0
    resampler: av.AudioResampler | None = None
    shape = None
    try:
        for frame in container.decode(stream):
            if resampler is None or shape != (frame.sample_rate, frame.layout.name, frame.format.name):
                if resampler is not None:  # another recording, chained to the first
                    yield from _rest_of(resampler)
                resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate_hz)
                shape = (frame.sample_rate, frame.layout.name, frame.format.name)
            for planar in resampler.resample(frame):
                done += planar.samples
                yield np.ascontiguousarray(planar.to_ndarray().T)
        if resampler is not None:
            yield from _rest_of(resampler)
    except av.error.PatchWelcomeError as error:
        raise AudioError(
            f"{name} holds recordings of different kinds one after the other, which cannot be read beyond the first "
            f"({done / max(rate_hz, 1):.1f} s): save each as a file of its own"
        ) from error
    except (av.FFmpegError, ValueError) as error:
        raise _damaged(name, done / max(rate_hz, 1), error) from error


def _rest_of(resampler: av.AudioResampler) -> Iterator[np.ndarray]:
    return (np.ascontiguousarray(planar.to_ndarray().T) for planar in resampler.resample(None))


def _damaged(name: str, at_sec: float, error: Exception) -> AudioError:
    return AudioError(f"{name} is damaged or cut off after {at_sec:.1f} s: {error}")


def _check_shape(source: _Source, name: str, max_sec: float) -> None:
    if source.channels < 1:
        raise AudioError(f"{name} has no channels")
    if not MIN_SAMPLE_RATE_HZ <= source.rate_hz <= MAX_SAMPLE_RATE_HZ:
        raise AudioError(
            f"{name} says it has {source.rate_hz} samples a second; {MIN_SAMPLE_RATE_HZ} to {MAX_SAMPLE_RATE_HZ} "
            "are allowed"
        )
    if source.rate_hz * source.channels > MAX_SAMPLES_A_SEC:
        raise AudioError(f"{name} says it has {source.channels} channels at {source.rate_hz} Hz; export it in stereo")
    if source.declared_sec is not None and source.declared_sec > max_sec:
        raise _too_long(name, source.declared_sec, max_sec)


def _too_long(name: str, longer_sec: float | None, max_sec: float) -> AudioError:
    """``longer_sec``: its length, where the header says it."""
    most, how_long = _clock(max_sec), f"longer than {_clock(max_sec)}"
    if longer_sec is not None:
        digits = next((digits for digits in (1, 2, 3) if _clock(longer_sec, digits) != _clock(max_sec, digits)), None)
        if digits is not None:
            how_long, most = f"{_clock(longer_sec, digits)} long", _clock(max_sec, digits)
    return AudioError(f"{name} is {how_long}; at most {most} is allowed: cut it into shorter files")


def _clock(seconds: float, digits: int = 1) -> str:
    if seconds < 120:
        return f"{seconds:.{digits}f} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.{digits - 1}f} min" if minutes < 120 else f"{hours:.{digits}f} h"


def _collect(source: _Source, name: str, sample_rate_hz: int, max_sec: float, channel: int | None = None) -> Recording:
    """Mix down (or take one channel), resample and check block by block; raises _ChannelsCancel at the end."""
    same_rate = source.rate_hz == sample_rate_hz
    resampler = None if same_rate else soxr.ResampleStream(source.rate_hz, sample_rate_hz, 1, dtype="float32")
    max_samples = int(max_sec * source.rate_hz)
    parts: list[np.ndarray] = []
    levels = _Levels(source.channels)
    for block in source.blocks:
        if levels.samples + len(block) > max_samples:
            raise _too_long(name, None, max_sec)
        if not np.isfinite(block).all():
            raise AudioError(f"{name} holds samples that are NaN or infinite; export it again")
        chosen = block[:, channel or 0] if channel is not None or block.shape[1] == 1 else None
        mono = block.mean(axis=1, dtype=np.float32) if chosen is None else chosen
        levels.add(block, mono)
        parts.append(mono if resampler is None else resampler.resample_chunk(np.ascontiguousarray(mono)))
    if not levels.samples:
        raise AudioError(f"{name} holds no samples")
    if levels.peak > _MAX_PEAK:
        raise AudioError(
            f"{name} has samples up to {levels.peak:.0f}; float samples lie between -1 and 1: export it again"
        )
    if channel is None and levels.cancel:
        raise _ChannelsCancel(levels.loudest)
    if resampler is not None:
        parts.append(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
    pcm = np.ascontiguousarray(np.concatenate(parts), dtype=np.float32)
    if not len(pcm):
        raise AudioError(f"{name} is too short: {levels.samples} samples at {source.rate_hz} a second")
    notes = (*source.notes, *_notes(name, source, levels))
    return Recording(pcm, sample_rate_hz, source.rate_hz, source.channels, notes, levels.is_silent)


class _Levels:
    """Statistics of a recording's samples, block by block."""

    def __init__(self, channels: int) -> None:
        self.samples = self.clipped = 0
        self.peak = 0.0
        self._low, self._high = np.inf, -np.inf  # of the mono signal
        self._energy, self._mono_energy = np.zeros(channels), 0.0

    def add(self, block: np.ndarray, mono: np.ndarray) -> None:
        """block: [n, channels] float32; mono: [n] float32, what is used of it."""
        if not len(block):
            return
        magnitude = np.abs(block)
        self.samples += len(block)
        self.peak = max(self.peak, float(magnitude.max()))
        self.clipped += int((magnitude.max(axis=1) >= _FULL_SCALE).sum())
        self._low, self._high = min(self._low, float(mono.min())), max(self._high, float(mono.max()))
        self._energy += np.square(block, dtype=np.float64).sum(axis=0)
        self._mono_energy += float(np.square(mono, dtype=np.float64).sum())

    @property
    def is_silent(self) -> bool:
        """Not even a constant level is sound."""
        return self._high - self._low < 2 * _SILENT_PEAK

    @property
    def cancel(self) -> bool:
        """Independent channels keep their summed energy over the square of their number in the mean."""
        independent = self._energy.sum() / len(self._energy) ** 2
        return self.peak >= _SILENT_PEAK and self._mono_energy < _CANCELLED_SHARE * independent

    @property
    def loudest(self) -> int:
        return int(self._energy.argmax())


def _notes(name: str, source: _Source, levels: _Levels) -> tuple[str, ...]:
    notes = []
    read_sec, clipped_share = levels.samples / source.rate_hz, levels.clipped / levels.samples
    if levels.is_silent:
        notes.append(f"{name} is silent: was the microphone muted?")
    if clipped_share > _CLIPPED_SHARE:
        notes.append(f"{name} is clipped ({clipped_share:.1%} of it at full scale): record it with less gain")
    if source.rate_hz <= TELEPHONE_RATE_HZ:
        notes.append(f"{name} is telephone sound ({source.rate_hz} samples a second): words may be misheard")
    promised_sec = source.promised_sec or 0.0
    if promised_sec - read_sec > max(_CUT_SEC, _CUT_SHARE * promised_sec):
        notes.append(f"{name} was cut off: {read_sec:.1f} s of {promised_sec:.1f} s are there")
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
