"""A session without a model, for the tests of everything around it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from personaplex.config import ModelConfig
from personaplex.errors import CapacityError

PADDING = 3
WORD = 42
FRAME_SAMPLES = 1920


class FakeConversation:
    def __init__(self, session, row, snapshot, options):
        self.session, self.row, self.snapshot, self.options = session, row, snapshot, options
        self.heard, self.told, self.is_open, self.abandoned = [], [], True, False

    def tell(self, text):
        left = self.session.on_tell(self, text)
        self.told.append((text, len(self.heard)))
        return 200 - len(self.told) if left is None else left

    def close(self):
        if self.is_open:
            self.is_open = False
            self.session.give_back(self.row)

    def abandon(self):
        self.abandoned = True
        self.close()


class FakeSession:
    """Answers every frame with itself, halved; ``on_step`` may change the answer or raise, ``on_check`` refuse it."""

    def __init__(self, slots=1, pieces=3):
        self.loaded = SimpleNamespace(config=ModelConfig())
        self.free, self.slots, self.pieces = list(range(slots)), slots, pieces
        self.conversations, self.batches, self.prepared = [], [], []
        self.on_check = lambda conversation, pcm: None
        self.on_step = lambda conversation, pcm: None
        self.on_tell = lambda conversation, text: None
        self.on_prepare = lambda text, piece: None

    def prepare_in_pieces(self, *, voice, text, truncate_text=False):
        row = self._take()
        try:
            for piece in range(1, self.pieces + 1):
                self.on_prepare(text, piece)
                yield piece, self.pieces
        finally:
            self.give_back(row)
        self.prepared.append(text)
        return ("snapshot", voice, text)

    def start(self, snapshot, options=None):
        conversation = FakeConversation(self, self._take(), snapshot, options)
        self.conversations.append(conversation)
        return conversation

    def step_together(self, heard):
        for conversation, pcm in heard.items():
            self.on_check(conversation, pcm)
        self.batches.append([conversation.row for conversation in heard])
        outputs = {}
        for conversation, pcm in heard.items():
            assert conversation.is_open, "a closed conversation was stepped"
            conversation.heard.append(pcm)
            output = self.on_step(conversation, pcm)
            outputs[conversation] = output if output is not None else said(pcm / 2)
        return outputs

    def give_back(self, row):
        self.free.append(row)
        self.free.sort()

    def _take(self):
        if not self.free:
            raise CapacityError("all taken")
        return self.free.pop(0)


def said(pcm, text_token=PADDING):
    return SimpleNamespace(pcm=np.asarray(pcm, np.float32), text_token=text_token, tokens=np.zeros(17, np.int64))


def frame(value=0.0):
    return np.full(FRAME_SAMPLES, value, np.float32)


class Clock:
    """Time that passes when told."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def pass_sec(self, seconds):
        self.now += seconds


class Notes:
    """A listener that remembers."""

    def __init__(self):
        self.states, self.frames = [], []

    def on_state(self, state):
        self.states.append(state)

    def on_frame(self, output, heard, meter):
        self.frames.append((output, heard, meter))

    @property
    def phases(self):
        return [state.phase.value for state in self.states]

    @property
    def last(self):
        return self.states[-1]
