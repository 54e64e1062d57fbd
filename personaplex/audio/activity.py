"""Speech activity: who spoke when, found by loudness, and what overlaps were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from personaplex.audio.frames import SAMPLE_RATE_HZ

HOP_SEC = 0.02
QUIET_DB = -50.0  # below this nothing is speech, however quiet the room
STEADY_DB = -40.0  # a sound without pauses is speech only above this: a fan is not
ABOVE_NOISE_DB = 9.0  # speech stands out from the room by this much
BELOW_SPEECH_DB = 30.0  # and is no further than this below the loudest
MAX_PAUSE_SEC = 0.3  # shorter gaps belong to the speech around them
MIN_SPAN_SEC = 0.12  # shorter sounds are clicks
YIELD_SEC = 1.2  # who falls silent within this time of being spoken over has given way
SPEECH_RMS = 10 ** (-45 / 20)
"""A frame louder than −45 dBFS counts as speech."""
BACKCHANNEL_SEC = 1.0  # "yeah", "mm-hm": said over the other without taking the turn


def is_loud(pcm: np.ndarray) -> bool:
    """Whether a frame counts as speech; pcm: [N] float32, N ≥ 1."""
    return float(np.sqrt(np.mean(np.square(pcm, dtype=np.float64)))) > SPEECH_RMS


@dataclass(frozen=True)
class Span:
    """A stretch of time, in seconds from the start."""

    start_sec: float
    end_sec: float

    @property
    def duration_sec(self) -> float:
        return self.end_sec - self.start_sec


@dataclass(frozen=True)
class Overlap:
    """Both spoke at once."""

    span: Span
    by: str  # who came in second: "agent" or "user"
    kind: str  # "interruption": the first fell silent; "backchannel": a short word aside; "overlap": neither


@dataclass(frozen=True)
class Timeline:
    """The speech of both sides of a conversation."""

    duration_sec: float
    agent: tuple[Span, ...]
    user: tuple[Span, ...]
    overlaps: tuple[Overlap, ...]

    @property
    def summary(self) -> str:
        """The picture in one sentence, for those who do not see it."""
        counts = {kind: sum(o.kind == kind for o in self.overlaps) for kind in ("interruption", "backchannel")}
        parts = [
            f"{_total_sec(self.agent):.0f} s of speech by the persona and {_total_sec(self.user):.0f} s by you "
            f"in {self.duration_sec:.0f} s",
            _counted(len(self.overlaps), "overlap"),
            _counted(counts["interruption"], "interruption"),
        ]
        if counts["backchannel"]:
            parts.append(_counted(counts["backchannel"], "short word aside", "short words aside"))
        return ", ".join(parts) + "."


def _total_sec(spans: Sequence[Span]) -> float:
    return sum(span.duration_sec for span in spans)


def _counted(count: int, one: str, many: str | None = None) -> str:
    return f"{count or 'no'} {one if count == 1 else many or one + 's'}"


def speech_spans(pcm: np.ndarray, sample_rate_hz: int = SAMPLE_RATE_HZ) -> tuple[Span, ...]:
    """Spans of speech in a recording, in order, by loudness alone: pcm [N] float32.

    A steady noise raises the bar; a click or a breath is too short.
    """
    hop = max(1, round(HOP_SEC * sample_rate_hz))
    count = len(pcm) // hop
    if not count:
        return ()
    blocks = np.asarray(pcm[: count * hop], np.float32).reshape(count, hop)
    level_db = 10 * np.log10(
        blocks.var(axis=1, dtype=np.float64) + 1e-12
    )  # the variance leaves out a constant offset, which is not audible
    loud_db = np.percentile(level_db, 98)
    quiet_db = np.percentile(level_db, 10)
    if quiet_db > loud_db - 2 * ABOVE_NOISE_DB:  # no pause to take the room's noise from
        bar_db = max(STEADY_DB, loud_db - ABOVE_NOISE_DB)
    else:
        bar_db = max(QUIET_DB, quiet_db + ABOVE_NOISE_DB, loud_db - BELOW_SPEECH_DB)
    return _join(_runs(level_db >= bar_db, hop / sample_rate_hz))


def _runs(speaking: np.ndarray, hop_sec: float) -> list[Span]:
    """Stretches of true: speaking [n] bool."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], speaking, [False]]).astype(np.int8)))
    return [Span(float(start * hop_sec), float(end * hop_sec)) for start, end in edges.reshape(-1, 2)]


def _join(runs: Sequence[Span]) -> tuple[Span, ...]:
    """Bridge short pauses, then drop what is too short to be speech."""
    joined: list[Span] = []
    for run in runs:
        if joined and run.start_sec - joined[-1].end_sec <= MAX_PAUSE_SEC:
            run = Span(joined.pop().start_sec, run.end_sec)
        joined.append(run)
    return tuple(span for span in joined if span.duration_sec >= MIN_SPAN_SEC)


def find_overlaps(agent: Sequence[Span], user: Sequence[Span]) -> tuple[Overlap, ...]:
    """Every time both speak at once, in order, with who came in and how it ended."""
    found = []
    for theirs in agent:
        for yours in user:
            span = Span(max(theirs.start_sec, yours.start_sec), min(theirs.end_sec, yours.end_sec))
            if span.duration_sec > 0:
                by = "user" if yours.start_sec >= theirs.start_sec else "agent"
                first, second = (theirs, yours) if by == "user" else (yours, theirs)
                found.append(Overlap(span, by, _kind(first, second)))
    return tuple(sorted(found, key=lambda overlap: overlap.span.start_sec))


def _kind(first: Span, second: Span) -> str:
    """``second`` came in while ``first`` was speaking."""
    if second.end_sec <= first.end_sec:
        return "backchannel" if second.duration_sec <= BACKCHANNEL_SEC else "overlap"
    return "interruption" if first.end_sec - second.start_sec <= YIELD_SEC else "overlap"


def timeline_of(agent: np.ndarray, user: np.ndarray, sample_rate_hz: int = SAMPLE_RATE_HZ) -> Timeline:
    """agent, user: [N], [M] float32, from the same moment on."""
    agent_spans, user_spans = (speech_spans(pcm, sample_rate_hz) for pcm in (agent, user))
    duration_sec = max(len(agent), len(user)) / sample_rate_hz
    return Timeline(duration_sec, agent_spans, user_spans, find_overlaps(agent_spans, user_spans))
