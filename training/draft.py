"""A dialogue as token rows, and the draft in which they are written frame by frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from personaplex.config import END_OF_PADDING_ID
from training.lm.clips import ECHO_TAIL_FRAMES, AgentClip, ClipBank, UserClip, UserSession

PAD_ID = 3
PROMPT_SILENCE_FRAMES = 6
STOPPED_FRAMES = 6  # of its silence then, those that its sound is taught like speech


@dataclass(eq=False)
class Dialogue:
    """`text`: [T]; `agent`, `user`: [8, T]; int64. The conversation starts at `prompt_frames`.

    `speaking`: [T] bool, the agent's speech; `stopped`: [T] bool, where it has just been interrupted;
    `content`: [T] bool, what fills its slots;
    `text_content`: [T] bool, their text tokens; `text_first`: [T] bool, the tokens a sentence begins with.
    `held`: [T] bool, where the agent keeps a silence in which it might have spoken: interrupted, or told a story.
    `told`: [T] bool, where the agent is told something in mid-conversation, which it does not say.
    `user_words`: [T] int64, the number of the word the user is saying, or -1.
    """

    text: np.ndarray
    agent: np.ndarray
    user: np.ndarray
    prompt_frames: int
    speaking: np.ndarray
    stopped: np.ndarray
    content: np.ndarray
    text_content: np.ndarray
    text_first: np.ndarray
    held: np.ndarray
    told: np.ndarray
    user_words: np.ndarray


class Draft:
    """The token rows of a dialogue while it is being written."""

    def __init__(self, frames: int, bank: ClipBank, session: UserSession, marks: frozenset[int]) -> None:
        """`marks`: the tokens that are punctuation."""
        self.frames, self.bank, self.session, self.marks = frames, bank, session, marks
        self.text = np.full(frames, PAD_ID)
        self.agent = np.repeat(bank.silence[:, None], frames, 1)
        self.user = np.repeat(bank.sine[:, None], frames, 1)
        self.speaking, self.stopped, self.content = np.zeros((3, frames), bool)
        self.text_content, self.text_first, self.held, self.told = np.zeros((4, frames), bool)
        self.user_words = np.full(frames, -1)
        self.user_speaks = np.zeros(frames, bool)
        self.echoes = False  # whether the agent is heard again by the user's microphone
        self.start = 0

    def prompt(self, voice: np.ndarray, text: list[int]) -> None:
        at = voice.shape[1]
        self.agent[:, :at] = voice
        at += PROMPT_SILENCE_FRAMES
        self.text[at : at + len(text)] = text
        self.start = at + len(text) + PROMPT_SILENCE_FRAMES

    def hush(self, offset: int) -> None:
        """Fills the user's rows of the conversation with background noise, from frame `offset` of it on."""
        count, background = self.frames - self.start, self.session.background
        rows = background[:, (np.arange(count) + offset) % background.shape[1]]
        opening = self.session.opening
        if opening is not None:
            head = min(count, opening.shape[1])
            rows[:, :head] = opening[:, :head]
        self.user[:, self.start :] = rows

    def tell(self, text: list[int], at: int) -> int:
        """Writes what the agent is told from frame `at`, which nobody else uses; returns the frame after it.

        As in a prompt: one token a frame, the agent silent, the user's side a sine.
        """
        rows = slice(at, at + len(text))
        self.text[rows], self.told[rows] = text, True
        self.agent[:, rows], self.user[:, rows] = self.bank.silence[:, None], self.bank.sine[:, None]
        self.held[rows] = self.stopped[rows] = False
        return at + len(text)

    def user_says(self, clip: UserClip, at: int) -> int:
        """Writes the clip from frame `at`; returns the frame after its last sound."""
        end = max(at, min(self.frames, at + clip.codes.shape[1]))
        self.user[:, at:end] = clip.codes[:, : end - at]
        quiet = max(0, min(self.frames - end, clip.quiet.shape[1]))
        self.user[:, end : end + quiet] = clip.quiet[:, :quiet]
        self.user_words[at:end] = clip.words[: end - at]
        ended = at + clip.codes.shape[1] - clip.tail
        self.user_speaks[at:ended] = True
        return ended

    def agent_says(self, clip: AgentClip, at: int, until: tuple[int, int] | None = None) -> int:
        """Writes the clip from frame `at`; returns the frame after its last sound.

        `until`: the frames from which on no word begins, and nothing sounds.
        """
        self.held[at:] = False  # what was kept silent before ends here
        whole = min(self.frames, at + clip.codes.shape[1])
        last_word, end = (min(whole, cut) for cut in until) if until else (whole, whole)
        if end <= at:
            return at
        self.held[last_word:whole] = True
        self.agent[:, at:end] = clip.codes[:, : end - at]
        if self.echoes and clip.echo is not None:
            self._echo(clip.echo[:, : end - at + ECHO_TAIL_FRAMES], at)
        self.speaking[at:end] = True
        self.stopped[end : min(whole, end + STOPPED_FRAMES)] = True
        content = clip.content_words()
        for first, last in clip.content_frames():
            self.content[at + first : min(end, at + last)] = True
        cursor = at
        for index, (frame, tokens) in enumerate(clip.words):
            begin = max(cursor, at + frame)
            if begin >= last_word:
                break
            if begin - 1 >= cursor:
                self.text[begin - 1] = END_OF_PADDING_ID
            for cursor, token in enumerate(tokens, begin):
                if cursor < end:
                    self.text[cursor] = token
            if index in content:
                told = sum(token not in self.marks for token in tokens)
                self.text_content[begin : min(end, begin + told)] = True
            self.text_first[begin] = index == 0
            cursor += 1
        return end

    def _echo(self, codes: np.ndarray, at: int) -> None:
        """Writes an echo [8, n] from frame `at`; where the user speaks, they are louder."""
        frames = np.arange(at, min(self.frames, at + codes.shape[1]))
        frames = frames[~self.user_speaks[frames]]
        self.user[:, frames] = codes[:, frames - at]

    def finished(self) -> Dialogue:
        heard = (self.speaking, self.stopped, self.content)
        written = (self.text_content, self.text_first, self.held, self.told)
        return Dialogue(self.text, self.agent, self.user, self.start, *heard, *written, self.user_words)
