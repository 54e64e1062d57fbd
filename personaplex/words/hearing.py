"""The user's words from outside: one recogniser for all conversations, one HeardWords for each.

recognition = Recognition("moonshine")
heard = recognition.listen(tell=lambda utterance: print(utterance.text))
heard.push(pcm)                     # each frame that the model hears; returns at once
heard.finish(); heard.wait(3.0)     # the last words
heard.words
recognition.close()
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from personaplex.audio.frames import split_frames, to_int16
from personaplex.text.transcript import Word
from personaplex.words.process import FINISH, FORGET, HEADER, SOUND
from personaplex.words.recogniser import Utterance

log = logging.getLogger(__name__)

END_WITHIN_SEC = 2.0
ROOM_POLL_SEC = 0.05
LONGEST_BACKLOG = 1500
"""Frames that wait to be handed over, two minutes of one conversation: of what comes then there are no words."""

Tell = Callable[[Utterance], None]


class HeardWords:
    """The words of one conversation's user. Every method may be called from any thread and returns at once."""

    def __init__(self, recognition: Recognition, talk: int, tell: Tell | None) -> None:
        self._recognition, self._talk, self._tell = recognition, talk, tell
        self._utterances: dict[int, Utterance] = {}
        self._is_finishing = False
        self._is_over = threading.Event()

    def push(self, pcm: np.ndarray, block: bool = False) -> None:
        """pcm: [N] float32 at 24 kHz, what the model heard next: silence, too, as times are counted in samples.

        ``block``: wait for room instead of losing words, for recordings.
        """
        if not self._is_finishing:
            self._recognition.send(self._talk, SOUND, to_int16(pcm).astype("<i2").tobytes(), block)

    def finish(self) -> None:
        """No more sound comes; the last words follow."""
        if not self._is_finishing:
            self._is_finishing = True
            self._recognition.send(self._talk, FINISH)

    def wait(self, timeout_sec: float) -> bool:
        """Wait for the last words after ``finish``; false if they did not come in time."""
        return self._is_over.wait(timeout_sec)

    def close(self) -> None:
        """Nobody wants the words any more."""
        self._is_finishing = True
        self._recognition.send(self._talk, FORGET)
        self._recognition.forget(self._talk)
        self._is_over.set()

    @property
    def words(self) -> list[Word]:
        """All words so far, in order; those of the newest utterance may change yet."""
        utterances = dict(self._utterances)
        return [word for number in sorted(utterances) for word in utterances[number].words]

    def take(self, utterance: Utterance) -> None:
        """An utterance is new or has changed; called from the recogniser's thread."""
        self._utterances[utterance.number] = utterance
        if self._tell is not None:
            self._tell(utterance)

    def end(self) -> None:
        self._is_finishing = True
        self._is_over.set()


class Recognition:
    """A recogniser in a process of its own, started with the first conversation that wants it."""

    def __init__(self, kind: str) -> None:
        """``kind``: one that is installed (``recogniser.chosen``)."""
        self.kind = kind
        self._lock = threading.Lock()
        self._talks: dict[int, HeardWords] = {}
        self._newest = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._messages: queue.SimpleQueue[tuple[int, int, bytes] | None] = queue.SimpleQueue()
        self._is_ready = threading.Event()
        self._is_closed = False

    def listen(self, tell: Tell | None = None) -> HeardWords:
        """Words of another conversation; ``tell`` is called from a thread of the recogniser's and must not block."""
        with self._lock:
            self._newest += 1
            heard = HeardWords(self, self._newest, tell)
            if self._is_closed:
                heard.end()
                return heard
            self._talks[self._newest] = heard
            if self._process is None:
                self._start()
        return heard

    def words_of(self, pcm: np.ndarray, timeout_sec: float) -> tuple[Word, ...]:
        """pcm: [N] float32 at 24 kHz → the words of a whole recording, those that came in time. Blocks."""
        heard = self.listen()
        for frame in split_frames(pcm):
            heard.push(frame, block=True)
        heard.finish()
        heard.wait(timeout_sec)
        words = tuple(heard.words)
        heard.close()
        return words

    def warm_up(self, timeout_sec: float) -> bool:
        """Start, and wait until the model is loaded; false if it takes longer, or fails."""
        with self._lock:
            if self._process is None and not self._is_closed:
                self._start()
        return self._is_ready.wait(timeout_sec) and not self._is_closed

    def send(self, talk: int, kind: int, payload: bytes = b"", block: bool = False) -> None:
        """A message to the process; sound is left out while very much of it waits, unless ``block``."""
        waiting = self._messages.qsize()
        while block and waiting >= LONGEST_BACKLOG and not self._is_closed:
            time.sleep(ROOM_POLL_SEC)
            waiting = self._messages.qsize()
        if not self._is_closed and (kind != SOUND or waiting < LONGEST_BACKLOG):
            self._messages.put((talk, kind, payload))

    def forget(self, talk: int) -> None:
        with self._lock:
            self._talks.pop(talk, None)

    def close(self) -> None:
        """End the process; whoever waits for words waits no more."""
        with self._lock:
            self._is_closed = True
            process = self._process
            talks, self._talks = list(self._talks.values()), {}
        for heard in talks:
            heard.end()
        self._is_ready.set()
        self._messages.put(None)
        if process is not None:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_WITHIN_SEC)

    def _start(self) -> None:
        folder = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "personaplex.words.process", self.kind],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        for name, work in (("words-out", self._send_all), ("words-in", self._receive_all)):
            threading.Thread(target=work, args=[self._process], name=name, daemon=True).start()

    def _send_all(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None, "it was opened with one"
        try:
            while (message := self._messages.get()) is not None:
                talk, kind, payload = message
                process.stdin.write(HEADER.pack(talk, kind, len(payload)) + payload)
                process.stdin.flush()
        except OSError:
            log.debug("the recogniser's process is gone")

    def _receive_all(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None, "it was opened with one"
        for line in process.stdout:
            try:
                self._take(json.loads(line))
            except Exception:
                log.exception("a listener to the user's words failed")
        if not self._is_closed:
            log.warning("the recogniser of users' words ended (%s); conversations go on without them", process.wait())
            self.close()

    def _take(self, told: dict[str, Any]) -> None:
        if "ready" in told:
            self._is_ready.set()
            return
        with self._lock:
            heard = self._talks.get(told["talk"])
            if "over" in told:
                self._talks.pop(told["talk"], None)
        if heard is None:
            return
        if "over" in told:
            heard.end()
        else:
            words = tuple(Word(*word) for word in told["words"])
            heard.take(Utterance(told["number"], words, told["final"]))
