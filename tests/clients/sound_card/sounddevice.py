"""A sound card made of two files, for `python -m moshi.client`, which imports a module of this name.

CARD_IN is the microphone, then silence; CARD_OUT is what was played, written after CARD_SEC, when the program ends.
"""

import os
import threading
import time

import numpy as np
import soundfile

RATE_HZ = 24_000
_ends_at = time.monotonic() + float(os.environ.get("CARD_SEC", "10"))


class _Stream:
    def __init__(self, *, samplerate, channels, blocksize, callback):
        assert samplerate == RATE_HZ and channels == 1
        self.size, self.callback = blocksize, callback
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        pass

    def _run(self):
        due = time.monotonic()
        while due < _ends_at:
            self.turn()
            due += self.size / RATE_HZ
            time.sleep(max(0.0, due - time.monotonic()))
        self.over()

    def over(self):
        pass


class InputStream(_Stream):
    def __init__(self, **given):
        super().__init__(**given)
        self._sound, self._at = soundfile.read(os.environ["CARD_IN"], dtype="float32")[0], 0

    def turn(self):
        block = np.zeros((self.size, 1), np.float32)
        part = self._sound[self._at : self._at + self.size]
        block[: len(part), 0] = part
        self._at += self.size
        self.callback(block, self.size, None, None)


class OutputStream(_Stream):
    def __init__(self, **given):
        super().__init__(**given)
        self._played = []

    def turn(self):
        block = np.zeros((self.size, 1), np.float32)
        self.callback(block, self.size, None, None)
        self._played.append(block[:, 0].copy())

    def over(self):
        soundfile.write(os.environ["CARD_OUT"], np.concatenate(self._played), RATE_HZ)
        os._exit(0)
