"""The hybrid prompt: a voice and a role as frames in which every token is known.

Order: voice, silence, text (one token per frame), silence. Meanwhile the user's side is a 440 Hz sine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from personaplex.config import PERSONA_WINDOW, PUBLISHED_WINDOW, ModelConfig
from personaplex.engine.columns import column_of
from personaplex.engine.telling import LEAST_LIVE_FRAMES
from personaplex.errors import PromptError
from personaplex.messages import Voice


@dataclass(frozen=True)
class PromptBuilder:
    """Makes forced frames [N, 17] int64 for one model."""

    config: ModelConfig

    @property
    def silence_frames(self) -> int:
        return int(self.config.prompt.silence_sec * self.config.mimi.frame_rate)

    def voice(self, codes: Tensor) -> Tensor:
        """The agent speaks the voice prompt: codes [T, 8] int64 → [T, 17]."""
        return self._frames(self._padding(codes.shape[0]), codes)

    def silence(self) -> Tensor:
        """The pause after the voice and after the text."""
        return self._frames(self._padding(self.silence_frames), self._silent(self.silence_frames))

    def text(self, tokens: Sequence[int]) -> Tensor:
        """One text token per frame, the agent silent: N tokens → [N, 17]."""
        return self._frames(torch.tensor(list(tokens), dtype=torch.int64), self._silent(len(tokens)))

    def role(self, tokens: Sequence[int]) -> Tensor:
        """Everything after the voice: silence, text, silence."""
        return torch.cat([self.silence(), self.text(tokens), self.silence()])

    def listened(self, voice: Voice | None) -> Voice | None:
        """The voice with as much of its recording as the model listens to."""
        if voice is None or voice.pcm is None:
            return voice
        return replace(voice, pcm=voice.pcm[: round(self.config.prompt.max_voice_sec * self.config.mimi.sample_rate)])

    def voice_frames(self, voice: Voice | None) -> int:
        """Frames of a voice that is a recording; 0 for any other, whose file has to be read."""
        return 0 if voice is None or voice.pcm is None else -(-len(voice.pcm) // self.config.mimi.frame_samples)

    def check_fits(self, frames: int, context: int, window: str) -> None:
        """Raise PromptError where a prompt of ``frames`` does not fit into a cache of ``context`` frames.

        A prompt that is kept must leave room for the conversation. In the published window the model would have
        forgotten the voice, or all of the persona, when the conversation begins; there its own context takes any
        prompt, as there is no longer one to choose.
        """
        own = self.config.lm.context
        if window == PERSONA_WINDOW and frames + LEAST_LIVE_FRAMES > context:
            least = frames + LEAST_LIVE_FRAMES
            possible = f"{own} is this model's own" if least <= own else f"and this model has {own}"
            raise PromptError(
                f"the voice and the role take {frames} frames, too many to be kept in a context of {context} beside a "
                f"conversation: the least that works is {least} ({possible}); or take a shorter voice or role, or the "
                "published window, which forgets them"
            )
        if window == PUBLISHED_WINDOW and context < own and frames >= context:
            raise PromptError(
                f"the voice and the role take {frames} frames, more than a context of {context} keeps: the least that "
                f"works is {min(frames + 1, own)} ({own} is this model's own); or take a shorter voice or role"
            )

    def check_told_fits(self, kept: int, frames: int, context: int) -> None:
        """Raise PromptError where ``frames`` of told text cannot be kept beside ``kept`` of a cache of ``context``."""
        most = context - LEAST_LIVE_FRAMES - kept
        if kept and frames > most:
            raise PromptError(
                f"the text to be told takes {frames} frames, and a context of {context} keeps {max(most, 0)} more at "
                f"most beside {kept} of the prompt and a conversation: shorten it, or start with a longer context "
                f"({self.config.lm.context} is this model's own), or in the published window, which forgets what it is "
                "told"
            )

    def _padding(self, count: int) -> Tensor:
        return torch.full((count,), self.config.lm.existing_text_padding_id, dtype=torch.int64)

    def _silent(self, count: int) -> Tensor:
        return torch.tensor(self.config.prompt.silence_codes, dtype=torch.int64).repeat(count, 1)

    def _frames(self, text: Tensor, agent: Tensor) -> Tensor:
        sine = torch.tensor(self.config.prompt.sine_codes, dtype=torch.int64).repeat(text.shape[0], 1)
        return column_of(text, agent, sine)
