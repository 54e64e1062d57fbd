"""Who spoke when: speech found by loudness, overlaps judged, and the picture of both."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from personaplex.audio.files import SAMPLE_RATE_HZ
from personaplex.text.transcript import Word

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HOP_SEC = 0.02
QUIET_DB = -50.0  # below this nothing is speech, however quiet the room
STEADY_DB = -40.0  # a sound without pauses is speech only above this: a fan is not
ABOVE_NOISE_DB = 9.0  # speech stands out from the room by this much
BELOW_SPEECH_DB = 30.0  # and is no further than this below the loudest
MAX_PAUSE_SEC = 0.3  # shorter gaps belong to the speech around them
MIN_SPEECH_SEC = 0.12  # shorter sounds are clicks
YIELD_SEC = 1.2  # who falls silent within this time of being spoken over has given way
BACKCHANNEL_SEC = 1.0  # "yeah", "mm-hm": said over the other without taking the turn

AGENT_NAME, USER_NAME = "Persona", "You"
AGENT_COLOUR, USER_COLOUR, OVERLAP_COLOUR = "#0d9488", "#d97706", "#dc2626"


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


# ---------------------------------------------------------------------------------- finding speech


def speech_spans(pcm: np.ndarray, sample_rate_hz: int = SAMPLE_RATE_HZ) -> tuple[Span, ...]:
    """Where a recording holds speech, judged by loudness alone: pcm [N] float32 → spans in order.

    A steady noise raises the bar; a click or a breath is too short.
    """
    hop = max(1, round(HOP_SEC * sample_rate_hz))
    count = len(pcm) // hop
    if not count:
        return ()
    blocks = np.asarray(pcm[: count * hop], np.float32).reshape(count, hop)
    level_db = 10 * np.log10(np.square(blocks, dtype=np.float64).mean(axis=1) + 1e-12)
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
    return tuple(span for span in joined if span.duration_sec >= MIN_SPEECH_SEC)


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


# ---------------------------------------------------------------------------------- the picture

ROW_SEC, MAX_ROWS = 30.0, 8
_AGENT_Y, _USER_Y, _LANE_HEIGHT = 0.62, 0.0, 0.44


def draw_timeline(timeline: Timeline, words: Sequence[Word] = (), *, colour: str = "#1f2937") -> Figure:
    """Two lanes over time, a row for every 30 s; ``colour`` is that of text and axes.

    Made without pyplot, which is not safe in threads. The background is left transparent.
    """
    from matplotlib.figure import Figure

    rows = _rows(timeline.duration_sec)
    figure = Figure(figsize=(7.6, 0.75 + 1.3 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for axis, row in zip(axes, rows, strict=True):
        _draw_row(axis, timeline, [w for w in words if row.start_sec <= w.start_sec < row.end_sec], row, colour)
    _draw_legend(figure, colour)
    return figure


def _rows(duration_sec: float) -> list[Span]:
    """Equal rows, so that a minute of talk stays legible."""
    count = min(max(1, int(np.ceil(duration_sec / ROW_SEC - 1e-6))), MAX_ROWS)
    length_sec = max(duration_sec / count, 1.0)
    return [Span(i * length_sec, (i + 1) * length_sec) for i in range(count)]


def _draw_row(axis: Axes, timeline: Timeline, words: Sequence[Word], row: Span, colour: str) -> None:
    from matplotlib.ticker import MaxNLocator

    for spans, lane_y, lane_colour in (
        (timeline.agent, _AGENT_Y, AGENT_COLOUR),
        (timeline.user, _USER_Y, USER_COLOUR),
    ):
        axis.axhspan(lane_y, lane_y + _LANE_HEIGHT, color=colour, alpha=0.06, linewidth=0)
        axis.broken_barh(_bars(spans, row), (lane_y, _LANE_HEIGHT), facecolor=lane_colour, linewidth=0)
    both = [overlap.span for overlap in timeline.overlaps]
    axis.broken_barh(
        _bars(both, row), (_USER_Y, _AGENT_Y + _LANE_HEIGHT), facecolor=OVERLAP_COLOUR, alpha=0.28, linewidth=0
    )
    for overlap in timeline.overlaps:
        if overlap.kind == "interruption" and row.start_sec <= overlap.span.start_sec < row.end_sec:
            top = _USER_Y if overlap.by == "user" else _AGENT_Y + _LANE_HEIGHT
            axis.plot(
                overlap.span.start_sec, top, marker="^" if overlap.by == "user" else "v", markersize=9,
                color=OVERLAP_COLOUR, markeredgecolor="white", markeredgewidth=0.8, clip_on=False, zorder=5,
            )  # fmt: skip
    _draw_words(axis, words, row, timeline.agent, colour)
    axis.set_xlim(row.start_sec, row.end_sec)
    axis.set_ylim(-0.08, _AGENT_Y + _LANE_HEIGHT + 0.08)
    centres = [_USER_Y + _LANE_HEIGHT / 2, _AGENT_Y + _LANE_HEIGHT / 2]
    axis.set_yticks(centres, [USER_NAME, AGENT_NAME], fontsize=10)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True))
    axis.xaxis.set_major_formatter(lambda seconds, _: f"{seconds // 60:.0f}:{seconds % 60:02.0f}")
    axis.tick_params(colors=colour, length=0, labelsize=9)
    axis.patch.set_alpha(0)
    for side in axis.spines.values():
        side.set_visible(False)


def _bars(spans: Sequence[Span], row: Span) -> list[tuple[float, float]]:
    """(start, length) of what of the spans lies in a row."""
    cut = [(max(span.start_sec, row.start_sec), min(span.end_sec, row.end_sec)) for span in spans]
    return [(start, end - start) for start, end in cut if end > start]


_LETTER_SEC_AT_30_SEC = 0.22  # how wide a letter of the words is in the picture
_WORD_HEIGHTS = (0.78, 0.5, 0.22)  # of the lane: words take turns, so that neighbours have room


def _draw_words(axis: Axes, words: Sequence[Word], row: Span, speech: Sequence[Span], colour: str) -> None:
    """The persona's words in its lane, as many as fit without running into each other."""
    letter_sec = _LETTER_SEC_AT_30_SEC * row.duration_sec / ROW_SEC
    free_from_sec = dict.fromkeys(_WORD_HEIGHTS, row.start_sec)
    for word in words:
        text = "".join(character for character in word.text if character.isprintable())
        needed_sec = letter_sec * (len(text) + 0.5)
        height = next((height for height, free in free_from_sec.items() if word.start_sec >= free), None)
        if height is not None and word.start_sec + needed_sec <= row.end_sec:
            on_bar = any(span.start_sec <= word.start_sec < span.end_sec for span in speech)
            axis.text(
                word.start_sec + 0.3 * letter_sec, _AGENT_Y + _LANE_HEIGHT * height, text, fontsize=6.5,
                color="white" if on_bar else colour, va="center", parse_math=False, zorder=4,
            )  # fmt: skip
            free_from_sec[height] = word.start_sec + needed_sec


def _draw_legend(figure: Figure, colour: str) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    marks = [
        Patch(color=AGENT_COLOUR, label=AGENT_NAME),
        Patch(color=USER_COLOUR, label=USER_NAME),
        Patch(color=OVERLAP_COLOUR, alpha=0.35, label="both at once"),
        Line2D([], [], marker="^", color=OVERLAP_COLOUR, linestyle="", label="interruption: the other falls silent"),
    ]
    figure.legend(
        handles=marks, loc="outside upper left", ncols=4, frameon=False, fontsize=8.5, labelcolor=colour,
        handlelength=1.2, columnspacing=1.2,
    )  # fmt: skip


def timeline_png(timeline: Timeline, words: Sequence[Word] = ()) -> bytes:
    """The picture on white, to be kept."""
    png = io.BytesIO()
    draw_timeline(timeline, words).savefig(png, format="png", dpi=180, facecolor="white")
    return png.getvalue()


_STAND_IN_COLOUR = "#010203"
_SVG_METADATA = ("Date", "Creator", "Format", "Type")  # left out


def timeline_svg(timeline: Timeline, words: Sequence[Word] = ()) -> str:
    """The picture for a page: an ``<svg>`` whose text takes the colour of the page around it."""
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "timeline", "font.family": "sans-serif"}):
        figure = draw_timeline(timeline, words, colour=_STAND_IN_COLOUR)
        figure.savefig(text, format="svg", transparent=True, metadata=dict.fromkeys(_SVG_METADATA))
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(_STAND_IN_COLOUR, "currentColor")
    return re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would apply to the whole page
