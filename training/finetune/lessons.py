"""Training sequences from recordings: the text stream, the prompt before it, delays and weights.

Shapes: T columns, 17 rows; the 9 rows that are predicted are the agent's text and codes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from personaplex.config import AGENT, END_OF_PADDING_ID, TEXT, LMConfig, ModelConfig
from personaplex.engine.columns import FrameClock, FrameState, column_of
from personaplex.models.temporal import ZERO_TOKEN
from personaplex.session.prompt_frames import PromptBuilder
from personaplex.text.prompt import prepare_prompt
from personaplex.text.tokenizer import TextTokenizer
from training.finetune.codes import CodeBook
from training.finetune.config import LossOptions
from training.finetune.recordings import Recording, Word

PREDICTED = slice(TEXT.start, AGENT.stop)
"""Rows that the model predicts; the user's are inputs only."""


@dataclass(frozen=True)
class Lesson:
    """One sequence, prompt first.

    columns: [T, 17] int64, delayed; weights: [T, 9] float32, how much each predicted token counts.
    """

    columns: Tensor
    weights: Tensor
    prompt_frames: int


@dataclass(frozen=True)
class Batch:
    """Lessons of one length, the shorter ones filled up with columns that do not count.

    inputs: [B, T, 17] int64, as fed, maybe with hidden codes; targets: [B, T, 17] int64, the columns after
    them; weights: [B, T, 9] float32, of the targets.
    """

    inputs: Tensor
    targets: Tensor
    weights: Tensor

    def to(self, device: str) -> Batch:
        return Batch(*(tensor.to(device) for tensor in (self.inputs, self.targets, self.weights)))


def text_stream(
    words: Sequence[Word], frames: int, encode: Callable[[str], list[int]], padding_id: int, frame_rate: float
) -> Tensor:
    """One token per frame, [frames] int64.

    A word's tokens begin in the frame in which the word begins, or as soon as those of the word before are
    out; all else is padding, and the end-of-padding token stands in the frame before a word if that is free.
    """
    stream = torch.full((frames,), padding_id, dtype=torch.int64)
    free = 0
    for word in words:
        begin = max(free, int(word.start_sec * frame_rate))
        tokens = encode(word.text)[: max(0, frames - begin)]
        if not tokens:
            continue
        if begin > free:
            stream[begin - 1] = END_OF_PADDING_ID
        stream[begin : begin + len(tokens)] = torch.tensor(tokens)
        free = begin + len(tokens)
    return stream


def delayed(frames: Tensor, config: LMConfig) -> Tensor:
    """Frames [N, 17] int64 as the columns 0 … N − 1 of a stream, [N, 17], by the engine's own rules."""
    state = FrameState.empty(1, config, "cpu")
    return FrameClock(config).force(state, torch.cat([frames, frames[-1:]]))


def loss_weights(columns: Tensor, prompt_frames: int, config: LMConfig, options: LossOptions) -> Tensor:
    """[T, 9] float32 for columns [T, 17]: nothing for the prompt's frames and for initial tokens."""
    delays = torch.tensor(config.delays[PREDICTED])
    number = torch.arange(columns.shape[0])[:, None]
    learned = (number - delays >= prompt_frames) & (number > delays)
    weights = torch.tensor([1.0, options.semantic, *[options.acoustic] * (len(delays) - 2)]) * learned
    padded = columns[:, TEXT.start] == config.existing_text_padding_id
    weights[padded, TEXT.start] *= options.padding
    return weights


class LessonMaker:
    """Makes the lessons of one model's recordings."""

    def __init__(
        self, config: ModelConfig, tokenizer: TextTokenizer, codebook: CodeBook, loss: LossOptions, max_sec: float
    ) -> None:
        self.config, self._tokenizer, self._codebook, self._loss = config, tokenizer, codebook, loss
        self._max_frames = max(1, int(max_sec * config.mimi.frame_rate))
        self._prompts = PromptBuilder(config)

    def prompt(self, recording: Recording) -> Tensor:
        """The hybrid prompt as frames, [P, 17] int64: voice, silence, role, silence, as a session forces it."""
        limit = self.config.prompt.max_text_tokens
        role = self._prompts.role(prepare_prompt(recording.prompt_text, self._tokenizer, limit).tokens)
        if recording.voice is None:
            return role
        return torch.cat([self._prompts.voice(self._codebook.voice(recording.voice)), role])

    def frames(self, recording: Recording) -> Tensor:
        """The conversation itself, [F, 17] int64."""
        agent, user = self._codebook.conversation(recording)
        text = text_stream(
            recording.words, agent.shape[1], self._tokenizer.encode,
            self.config.lm.existing_text_padding_id, self.config.mimi.frame_rate,
        )  # fmt: skip
        return column_of(text, agent.t(), user.t())

    def lessons(self, recordings: Iterable[Recording]) -> Iterator[Lesson]:
        """Every recording, in pieces of at most ``max_sec``; each piece after the recording's prompt."""
        for recording in recordings:
            prompt = self.prompt(recording)
            for piece in self.frames(recording).split(self._max_frames):
                columns = delayed(torch.cat([prompt, piece]), self.config.lm)
                weights = loss_weights(columns, prompt.shape[0], self.config.lm, self._loss)
                yield Lesson(columns, weights, prompt.shape[0])


def batch_of(lessons: Sequence[Lesson], hidden_share: float = 0.0, generator: torch.Generator | None = None) -> Batch:
    """Put lessons side by side. Of each, a share drawn from 0 … ``hidden_share`` of the conversation's agent codes
    is hidden from the input: a model that reads its own recording back does not learn to listen.
    """
    length = max(lesson.columns.shape[0] for lesson in lessons)
    columns = torch.stack([_filled(lesson.columns, length) for lesson in lessons])
    weights = torch.stack([_filled(lesson.weights, length) for lesson in lessons])
    inputs = columns[:, :-1].clone()
    if hidden_share > 0:
        rate = torch.rand(len(lessons), 1, generator=generator) * hidden_share
        talking = torch.arange(length - 1)[None] >= torch.tensor([lesson.prompt_frames for lesson in lessons])[:, None]
        hidden = (torch.rand(len(lessons), length - 1, generator=generator) < rate) & talking
        inputs[..., AGENT][hidden] = ZERO_TOKEN
    return Batch(inputs, columns[:, 1:], weights[:, 1:])


def _filled(rows: Tensor, length: int) -> Tensor:
    """Zeros below rows [T, n], to [length, n]."""
    return torch.nn.functional.pad(rows, (0, 0, 0, length - rows.shape[0]))
