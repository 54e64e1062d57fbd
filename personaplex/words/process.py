"""The recogniser's own process: ``python -m personaplex.words.process KIND``, fed through its standard input.

Sound comes in messages of ``HEADER`` (conversation, kind, bytes) and payload; utterances go back as lines of JSON. It
works at a low priority and looks at what it has only when nothing more waits, so that a busy machine gets its
words later, in larger pieces. It ends with its input. Nothing that is said is written anywhere else: what the
recognisers print is thrown away.
"""

from __future__ import annotations

import json
import os
import queue
import struct
import sys
import threading
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
import soxr

from personaplex.audio.frames import SAMPLE_RATE_HZ, from_int16
from personaplex.words.models import load
from personaplex.words.recogniser import RATE_HZ, Ear, Recogniser, Utterance

HEADER = struct.Struct("<IBI")
SOUND, FINISH, FORGET = 1, 2, 3
"""int16 at 24 kHz; the end of a conversation, whose last words are wanted; its end without them."""
READY = {"ready": True}
LESS_PRIORITY = 10

Message = tuple[int, int, bytes]


def main() -> None:
    """Recognise until the input ends."""
    out = os.fdopen(os.dup(1), "wb")
    silent = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silent, stream)
    messages: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=[sys.stdin.buffer, messages], daemon=True).start()
    recogniser = load(sys.argv[1])
    if hasattr(os, "nice"):
        os.nice(LESS_PRIORITY)  # the sound of a talk goes first
    _write(out, READY)
    _Work(recogniser, out).run(messages)


def _read(stream: BinaryIO, messages: queue.SimpleQueue[Message | None]) -> None:
    while len(head := stream.read(HEADER.size)) == HEADER.size:
        talk, kind, size = HEADER.unpack(head)
        messages.put((talk, kind, stream.read(size)))
    messages.put(None)


def _write(out: BinaryIO, told: object) -> None:
    out.write(json.dumps(told).encode() + b"\n")
    out.flush()


class _Work:
    """All conversations' ears."""

    def __init__(self, recogniser: Recogniser, out: BinaryIO) -> None:
        self._recogniser, self._out = recogniser, out
        self._ears: dict[int, tuple[Ear, soxr.ResampleStream]] = {}

    def run(self, messages: queue.SimpleQueue[Message | None]) -> None:
        while (message := messages.get()) is not None:
            self._take(*message)
            while messages.empty() and self._look():
                pass

    def _take(self, talk: int, kind: int, payload: bytes) -> None:
        if kind == FORGET:
            self._ears.pop(talk, None)
            return
        if talk not in self._ears:
            resampler = soxr.ResampleStream(SAMPLE_RATE_HZ, RATE_HZ, 1, dtype="float32")
            self._ears[talk] = self._recogniser.listen(), resampler
        ear, resampler = self._ears[talk]
        if kind == SOUND:
            ear.hear(resampler.resample_chunk(from_int16(np.frombuffer(payload, "<i2"))))
            return
        self._tell(talk, ear.finish())
        _write(self._out, {"talk": talk, "over": True})
        del self._ears[talk]

    def _look(self) -> bool:
        """Whether somebody said something."""
        found = False
        for talk, (ear, _) in list(self._ears.items()):
            utterances = ear.news()
            self._tell(talk, utterances)
            found = found or bool(utterances)
        return found

    def _tell(self, talk: int, utterances: Sequence[Utterance]) -> None:
        for utterance in utterances:
            words = [[word.text, word.start_sec, word.end_sec] for word in utterance.words]
            _write(self._out, {"talk": talk, "number": utterance.number, "words": words, "final": utterance.is_final})


if __name__ == "__main__":
    main()
