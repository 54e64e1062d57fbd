"""Runs the training model frame by frame, by the rules of the published step: the check on any engine."""

from __future__ import annotations

import torch
from torch import Tensor

from personaplex.config import AGENT, USER
from training.lm.model import LanguageModel

UNKNOWN = -2  # a token the model decides


@torch.inference_mode()
def play_greedy(model: LanguageModel, known: Tensor) -> Tensor:
    """known: [T, 17] int64 frames, `UNKNOWN` where the model decides -> columns 0..T-1, [T, 17], whole."""
    config, frames = model.config, known.shape[0]
    columns = torch.full((frames, config.num_streams), UNKNOWN)
    for row, delay in enumerate(config.delays):
        columns[delay:, row] = known[: frames - delay, row]
        columns[: delay + 1, row] = config.text_card if row == 0 else config.card
    cache = None
    for t in range(1, frames):
        hidden, cache = model.hidden(columns[None, t - 1 : t], cache=cache)
        if columns[t, 0] == UNKNOWN:
            columns[t, 0] = model.text_linear(hidden)[0, -1].argmax()
        for step in range(config.dep_q):
            row = AGENT.start + step
            if columns[t, row] == UNKNOWN:
                codes = columns[t, AGENT.start : row][None]
                columns[t, row] = model.depth_logits(hidden[0], columns[t, :1], codes)[-1, 0].argmax()
    return columns


def live_frames(user_codes: Tensor) -> Tensor:
    """Frames of a conversation: user_codes [8, T] -> [T, 17] with the agent's rows open."""
    frames = torch.full((user_codes.shape[1], 17), UNKNOWN)
    frames[:, USER] = user_codes.T
    return frames
