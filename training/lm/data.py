"""Training batches: dialogues as columns of 17 tokens, with agent inputs hidden at random."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from personaplex.config import AGENT, END_OF_PADDING_ID, TEXT, USER, LMConfig
from training.dialogues import DialogueMaker
from training.draft import PAD_ID, Dialogue
from training.lm.model import Batch

NOTHING = -1  # embeds to zero
VIGIL_STRETCH = 5
LISTENING_SHARE = 0.6  # of a drill's sentences, those that answer a question


_SIZES = ("dialogues", "depth_frames_max", "quiet_frames", "recitals", "drills", "listening")


@dataclass(frozen=True)
class BatchOptions:
    dialogues: int = 10
    frames: int = 288  # a prompt with facts takes a quarter of them
    long_share: float = 0.15  # of the batches: half as many dialogues, twice as long
    vigil_share: float = 0.04  # of the batches: a fifth as many, five times as long, with a silence of minutes
    hidden_share_max: float = 0.7  # agent frames hidden from the input, drawn per dialogue
    depth_hidden: float = 0.2  # the depth inputs are hidden this much as often
    skip_share: float = 0.3  # of the dialogues: positions jump once, so that long conversations occur in training
    skip_frames_max: int = 1400
    depth_frames_max: int = 900  # frames the depth transformer is trained on
    quiet_frames: int = 120  # at least, of these, with a silent agent
    pad_weight: float = 0.3
    listening_pad_weight: float = 1.0  # while the user says a word
    held_pad_weight: float = 1.5  # where the agent might speak, and must not
    content_weight: float = 4.0  # of names and places in sound
    text_content_weight: float = 6.0  # … and in text
    text_first_weight: float = 3.0  # of the word that shows whether a question was understood
    recitals: int = 6  # a fifth of their frames are names and facts in sound; of a dialogue, one in fifty
    recital_frames: int = 288
    drills: int = 4
    drill_frames: int = 160
    listening: int = 32  # users in a batch of nothing else
    listening_hidden: float = 0.25  # of their codebooks, those hidden from the input for a while: recordings are few
    listening_frames: int = 96

    def scaled(self, factor: float) -> BatchOptions:
        """Batches `factor` times as large."""
        return replace(self, **{name: max(1, round(getattr(self, name) * factor)) for name in _SIZES})


def columns_of(dialogue: Dialogue, config: LMConfig) -> np.ndarray:
    """[T, 17] int64: every row delayed, the first columns initial tokens, as when stepping."""
    frames = len(dialogue.text)
    streams = np.concatenate([dialogue.text[None], dialogue.agent, dialogue.user])
    columns = np.full((frames, config.num_streams), config.card)
    columns[:, TEXT] = config.text_card
    for row, delay in enumerate(config.delays):
        columns[delay + 1 :, row] = streams[row, 1 : frames - delay]
    return columns


class BatchMaker:
    def __init__(self, dialogues: DialogueMaker, config: LMConfig, options: BatchOptions, seed: int = 0) -> None:
        self.dialogues, self.config, self.options = dialogues, config, options
        self.rng = np.random.default_rng(seed)

    def make(self) -> Batch:
        """Dialogues, all of which is learned from."""
        options = self.options
        drawn = self.rng.random()
        stretch = (
            VIGIL_STRETCH if drawn < options.vigil_share else 1 + (drawn < options.vigil_share + options.long_share)
        )
        frames = options.frames * stretch
        made = [self.dialogues.make(frames + 1) for _ in range(max(1, options.dialogues // stretch))]
        return self._spoken(made, options.skip_share, options.depth_frames_max)

    def make_recital(self) -> Batch:
        """Sound alone (`DialogueMaker.recital`): text is given, not learned."""
        frames = self.options.recital_frames
        made = [self.dialogues.recital(frames + 1) for _ in range(self.options.recitals)]
        batch = self._spoken(made, 0.0, frames * len(made))
        batch.text_weight.zero_()
        return batch

    def _spoken(self, made: list[Dialogue], skip_share: float, depth_frames_max: int) -> Batch:
        columns = np.stack([columns_of(d, self.config) for d in made])
        inputs, targets = columns[:, :-1].copy(), columns[:, 1:]
        start = np.array([d.prompt_frames for d in made])[:, None]
        column = np.arange(1, columns.shape[1])[None]  # of the targets
        talking = column >= start
        rate = self.rng.uniform(0, self.options.hidden_share_max, (len(made), 1))
        told = np.stack([d.told for d in made])  # as the prompt: all of it is known, nothing of it learned
        talking &= ~told[:, 1:]
        hidden = (self.rng.random(talking.shape) < rate) & (column - 1 >= start) & ~told[:, :-1]
        inputs[..., AGENT][hidden] = NOTHING
        speaking = np.stack([(d.speaking | d.stopped)[1:] for d in made])
        sounding = (column > start) & talking & ~told[:, :-1]  # most codes of a frame are a column late
        depth_frames = self._depth_frames(speaking, sounding, depth_frames_max)
        content = np.stack([d.content[1:] for d in made]).reshape(-1)[depth_frames]
        depth_codes = targets.reshape(-1, self.config.num_streams)[depth_frames][:, AGENT][:, :-1].copy()
        row_rate = np.broadcast_to(rate, talking.shape).reshape(-1)[depth_frames]
        depth_codes[self.rng.random(len(depth_codes)) < row_rate * self.options.depth_hidden] = NOTHING
        return _batch(
            inputs=inputs,
            targets=targets,
            positions=self._positions(start, talking.shape, skip_share),
            text_weight=self._text_weight(targets[..., 0], made) * talking,
            user_words=_user_words(made),
            depth_frames=depth_frames,
            depth_codes=depth_codes,
            depth_weight=np.where(content, self.options.content_weight, 1.0),
        )

    def make_drill(self, times: int = 1, listening_share: float = LISTENING_SHARE) -> Batch:
        """A batch of drills (`DialogueMaker.drill`): agent codes hidden, no targets for the depth transformer."""
        frames = self.options.drill_frames
        made = [self.dialogues.drill(frames + 1, listening_share) for _ in range(times * self.options.drills)]
        columns = np.stack([columns_of(d, self.config) for d in made])
        inputs, targets = columns[:, :-1].copy(), columns[:, 1:]
        start = np.array([d.prompt_frames for d in made])[:, None]
        inputs[..., AGENT][np.arange(frames)[None] >= start] = NOTHING
        talking = np.arange(1, frames + 1)[None] >= start
        none = np.zeros(0, np.int64)
        return _batch(
            inputs=inputs,
            targets=targets,
            positions=self._positions(start, talking.shape, self.options.skip_share),
            text_weight=self._text_weight(targets[..., 0], made) * talking,
            user_words=_user_words(made),
            depth_frames=none,
            depth_codes=none,
            depth_weight=none,
        )

    def make_listening(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Users alone: columns [B, T, 17], half of the agent's codes and some of theirs hidden; words said, [B, T]."""
        frames = self.options.listening_frames
        made = [self.dialogues.monologue(frames + 1) for _ in range(self.options.listening)]
        inputs = np.stack([columns_of(d, self.config) for d in made])[:, :-1]
        inputs[..., AGENT][self.rng.random(inputs.shape[:2]) < 0.5] = NOTHING
        self._hide_users(inputs)
        return torch.from_numpy(inputs), torch.from_numpy(_user_words(made))

    def _hide_users(self, inputs: np.ndarray) -> None:
        """Hides some of the users' codebooks in inputs [B, T, 17], in place, each for a stretch."""
        frames, rows = inputs.shape[1], np.arange(inputs.shape[2])[USER]
        hidden = self.rng.random((len(inputs), len(rows))) < self.options.listening_hidden
        for user, row in np.argwhere(hidden):
            begin, end = np.sort(self.rng.integers(frames + 1, size=2))
            inputs[user, begin:end, rows[row]] = NOTHING

    def _text_weight(self, text: np.ndarray, made: list[Dialogue]) -> np.ndarray:
        content = np.stack([d.text_content[1:] for d in made])
        first = np.stack([d.text_first[1:] for d in made])
        held = np.stack([d.held[1:] for d in made])
        listening = np.stack([d.user_words[1:] for d in made]) >= 0
        silent = np.where(listening, self.options.listening_pad_weight, self.options.pad_weight)
        silent = np.where(held, self.options.held_pad_weight, silent)
        weight = np.where(text == PAD_ID, silent, 1.0)
        weight = np.where(first, self.options.text_first_weight, weight)
        return np.where(content & (text != END_OF_PADDING_ID), self.options.text_content_weight, weight)

    def _positions(self, start: np.ndarray, shape: tuple[int, ...], skip_share: float) -> np.ndarray:
        dialogues, frames = shape
        positions = np.repeat(np.arange(frames)[None], dialogues, 0)
        for index in np.flatnonzero(self.rng.random(dialogues) < skip_share):
            at = self.rng.integers(start[index, 0], frames)
            positions[index, at:] += self.rng.integers(self.options.skip_frames_max)
        return positions

    def _depth_frames(self, speaking: np.ndarray, talking: np.ndarray, most: int) -> np.ndarray:
        """Flat indices: the agent's speech first, and some of its silence."""
        heard = np.flatnonzero((speaking & talking).reshape(-1))
        quiet = np.flatnonzero((~speaking & talking).reshape(-1))
        self.rng.shuffle(heard)
        self.rng.shuffle(quiet)
        return np.concatenate([heard[: most - self.options.quiet_frames], quiet[: self.options.quiet_frames]])


def _user_words(made: list[Dialogue]) -> np.ndarray:
    """[B, T]: for each column fed, the word of the frame before, of which all codes are known by then."""
    words = np.stack([d.user_words for d in made])
    return np.concatenate([np.full((len(made), 1), -1), words[:, :-2]], 1)


def _batch(**arrays: np.ndarray) -> Batch:
    """NumPy arrays as tensors, floating ones as float32."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    return Batch(**{name: t.float() if t.is_floating_point() else t for name, t in tensors.items()})
