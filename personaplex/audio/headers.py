"""Headers of sound files: what libsndfile does not say of cut, unfinished and chained ones."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import BinaryIO

_SCAN_BYTES = 1 << 20
_LEAST_SOUND_BYTES = 1024  # fewer, after a header without a length, are not a recording
_TAGS_BYTES = 1 << 14  # titles at an MP3's end
_NO_LENGTH = 0x7FFFF000  # from here on a WAV's size is what programs write that cannot come back to it
_BEGINNING, _END = 2, 4  # flags of an Ogg page


@dataclass(frozen=True)
class Headers:
    """Facts of a file beyond its format."""

    promised_bytes: int | None = None  # of a WAV's samples
    present_bytes: int | None = None
    has_no_length: bool = False  # a WAV that was written to a pipe
    is_chained: bool = False  # several recordings one after the other, of which libsndfile reads the first

    @property
    def needs_ffmpeg(self) -> bool:
        return self.has_no_length or self.is_chained


def read_headers(file: BinaryIO) -> Headers:
    """Look at a file from where it stands; it stands there afterwards."""
    start = file.tell()
    try:
        magic = file.read(4)
        size = os.fstat(file.fileno()).st_size
        if magic == b"RIFF":
            return _of_wav(file, start, size)
        if magic == b"OggS":
            file.seek(start)
            return Headers(is_chained=_is_chained_ogg(file))
        if magic[:3] == b"ID3" or (magic[:1] == b"\xff" and magic[1:2] >= b"\xe0"):
            file.seek(start)
            return Headers(is_chained=_is_joined_mp3(file, size - start))
        return Headers()
    finally:
        file.seek(start)


def _of_wav(file: BinaryIO, start: int, size: int) -> Headers:
    """Walk the chunks to the samples (Microsoft, "Multimedia Programming Interface and Data Specifications 1.0")."""
    file.seek(start + 12)
    while len(head := file.read(8)) == 8:
        name, length = struct.unpack("<4sI", head)
        if name == b"data":
            present = size - file.tell()
            unfinished = length == 0 and present >= _LEAST_SOUND_BYTES
            promised = length if 0 < length < _NO_LENGTH else None
            return Headers(promised, min(present, promised) if promised else present, unfinished)
        file.seek(length + length % 2, os.SEEK_CUR)
    return Headers()


def _is_chained_ogg(file: BinaryIO) -> bool:
    """Whether a logical stream begins after another one's end (RFC 3533, section 4)."""
    ended, rest = False, b""
    while block := file.read(_SCAN_BYTES):
        block = rest + block
        at = block.find(b"OggS\0")
        while 0 <= at < len(block) - 5:
            flags = block[at + 5]
            if ended and flags & _BEGINNING:
                return True
            ended = ended or bool(flags & _END)
            at = block.find(b"OggS\0", at + 5)
        rest = block[-5:]
    return False


def _is_joined_mp3(file: BinaryIO, size: int) -> bool:
    """Whether there is more of it than its first frame says ("Xing" or "Info", as encoders write it)."""
    begin = file.read(_SCAN_BYTES)
    frames_at = 0
    if begin[:3] == b"ID3" and len(begin) > 10:  # a title, its length in four times seven bits
        frames_at = 10 + (begin[6] << 21 | begin[7] << 14 | begin[8] << 7 | begin[9])
    head = begin[frames_at : frames_at + 256]
    at = max(head.find(b"Xing"), head.find(b"Info"))
    if at < 0 or len(head) < at + 16:
        return False
    (flags,) = struct.unpack(">I", head[at + 4 : at + 8])
    if not flags & 2:
        return False
    place = at + 8 + (4 if flags & 1 else 0)
    (stream_bytes,) = struct.unpack(">I", head[place : place + 4])
    file.seek(frames_at + stream_bytes - len(begin), os.SEEK_CUR)
    after = file.read(_TAGS_BYTES)
    another = any(sign in after for sign in (b"Xing", b"Info", b"ID3"))
    return another or size - frames_at > stream_bytes + max(_TAGS_BYTES, stream_bytes // 50)
