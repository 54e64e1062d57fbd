"""Training batches: dialogues as columns of 17 tokens, with agent inputs hidden at random."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from personaplex.config import AGENT, END_OF_PADDING_ID, TEXT, LMConfig
from training.dialogues import PAD_ID, Dialogue, DialogueMaker
from training.lm.model import Batch

NOTHING = -1  # embeds to zero


@dataclass(frozen=True)
class BatchOptions:
    dialogues: int = 8
    frames: int = 256
    long_share: float = 0.15  # of the batches: half as many dialogues, twice as long
    hidden_share_max: float = 0.7  # agent frames hidden from the input, drawn per dialogue
    depth_hidden: float = 0.5  # the depth inputs are hidden this much as often
    skip_share: float = 0.3  # of the dialogues: positions jump once, so long conversations are no news
    skip_frames_max: int = 1100
    depth_frames_max: int = 900  # frames the depth transformer is trained on
    quiet_frames: int = 120  # at least, of these, with a silent agent
    pad_weight: float = 0.3
    content_weight: float = 2.0  # of names and places, in text and in sound


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
        options = self.options
        stretch = 2 if self.rng.random() < options.long_share else 1
        frames = options.frames * stretch
        made = [self.dialogues.make(frames + 1) for _ in range(max(1, options.dialogues // stretch))]
        columns = np.stack([columns_of(d, self.config) for d in made])
        inputs, targets = columns[:, :-1].copy(), columns[:, 1:]
        start = np.array([d.prompt_frames for d in made])[:, None]
        column = np.arange(1, frames + 1)[None]  # of the targets
        talking = column >= start
        rate = self.rng.uniform(0, options.hidden_share_max, (len(made), 1))
        hidden = (self.rng.random(talking.shape) < rate) & (column - 1 >= start)
        inputs[..., AGENT][hidden] = NOTHING
        depth_frames = self._depth_frames(np.stack([d.speaking[1:] for d in made]), column > start)
        content = np.stack([d.content[1:] for d in made]).reshape(-1)[depth_frames]
        depth_codes = targets.reshape(-1, self.config.num_streams)[depth_frames][:, AGENT][:, :-1].copy()
        row_rate = np.broadcast_to(rate, talking.shape).reshape(-1)[depth_frames]
        depth_codes[self.rng.random(len(depth_codes)) < row_rate * options.depth_hidden] = NOTHING
        arrays = Batch(
            inputs=inputs,
            targets=targets,
            positions=self._positions(start, *talking.shape),
            text_weight=self._text_weight(targets[..., 0], made) * talking,
            depth_frames=depth_frames,
            depth_codes=depth_codes,
            depth_weight=np.where(content, options.content_weight, 1.0).astype(np.float32),
        )
        return Batch(**{name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in vars(arrays).items()})

    def _text_weight(self, text: np.ndarray, made: list[Dialogue]) -> np.ndarray:
        content = np.stack([d.text_content[1:] for d in made])
        weight = np.where(text == PAD_ID, self.options.pad_weight, 1.0)
        return np.where(content & (text != END_OF_PADDING_ID), self.options.content_weight, weight).astype(np.float32)

    def _positions(self, start: np.ndarray, dialogues: int, frames: int) -> np.ndarray:
        positions = np.repeat(np.arange(frames)[None], dialogues, 0)
        for index in np.flatnonzero(self.rng.random(dialogues) < self.options.skip_share):
            at = self.rng.integers(start[index, 0], frames)
            positions[index, at:] += self.rng.integers(self.options.skip_frames_max)
        return positions

    def _depth_frames(self, speaking: np.ndarray, talking: np.ndarray) -> np.ndarray:
        """Flat indices: the agent's speech first, and some of its silence."""
        heard = np.flatnonzero((speaking & talking).reshape(-1))
        quiet = np.flatnonzero((~speaking & talking).reshape(-1))
        self.rng.shuffle(heard)
        self.rng.shuffle(quiet)
        heard = heard[: self.options.depth_frames_max - self.options.quiet_frames]
        return np.concatenate([heard, quiet[: self.options.quiet_frames]])
