"""The picture of a conversation: both speakers over time, with the words."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from personaplex.audio.activity import Span, Timeline
from personaplex.text.dialogue import AGENT as AGENT_NAME
from personaplex.text.dialogue import USER as USER_NAME
from personaplex.text.transcript import Word

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


AGENT_COLOUR, USER_COLOUR, OVERLAP_COLOUR = "#0d9488", "#d97706", "#dc2626"
ROW_SEC, MAX_ROWS = 30.0, 8
_AGENT_Y, _USER_Y, _LANE_HEIGHT = 0.62, 0.0, 0.44


def draw_timeline(
    timeline: Timeline, words: Sequence[Word] = (), user_words: Sequence[Word] = (), *, colour: str = "#1f2937"
) -> Figure:
    """Two lanes over time, a row for every 30 s; ``colour`` is for text and axes, the background is transparent.

    Uses no pyplot, which is not thread-safe.
    """
    from matplotlib.figure import Figure

    rows = _rows(timeline.duration_sec)
    figure = Figure(figsize=(7.6, 0.75 + 1.3 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for axis, row in zip(axes, rows, strict=True):
        within = [[w for w in side if row.start_sec <= w.start_sec < row.end_sec] for side in (words, user_words)]
        _draw_row(axis, timeline, within[0], within[1], row, colour)
    _draw_legend(figure, colour)
    return figure


def _rows(duration_sec: float) -> list[Span]:
    """Equal rows, so that a minute of talk stays legible."""
    count = min(max(1, int(np.ceil(duration_sec / ROW_SEC - 1e-6))), MAX_ROWS)
    length_sec = max(duration_sec / count, 1.0)
    return [Span(i * length_sec, (i + 1) * length_sec) for i in range(count)]


def _draw_row(
    axis: Axes, timeline: Timeline, words: Sequence[Word], user_words: Sequence[Word], row: Span, colour: str
) -> None:
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
    _draw_words(axis, words, row, timeline.agent, _AGENT_Y, colour)
    _draw_words(axis, user_words, row, timeline.user, _USER_Y, colour)
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
    """The parts of the spans that lie in a row, as (start, length)."""
    cut = [(max(span.start_sec, row.start_sec), min(span.end_sec, row.end_sec)) for span in spans]
    return [(start, end - start) for start, end in cut if end > start]


_LETTER_SEC_AT_30_SEC = 0.22  # width of a letter in a row of 30 s
_WORD_HEIGHTS = (0.78, 0.5, 0.22)  # of the lane: words take turns, so that neighbours have room


def _draw_words(
    axis: Axes, words: Sequence[Word], row: Span, speech: Sequence[Span], lane_y: float, colour: str
) -> None:
    """One side's words in its lane, as many as fit without running into each other."""
    letter_sec = _LETTER_SEC_AT_30_SEC * row.duration_sec / ROW_SEC
    free_from_sec = dict.fromkeys(_WORD_HEIGHTS, row.start_sec)
    for word in words:
        text = "".join(character for character in word.text if character.isprintable())
        needed_sec = letter_sec * (len(text) + 0.5)
        height = next((height for height, free in free_from_sec.items() if word.start_sec >= free), None)
        if height is not None and word.start_sec + needed_sec <= row.end_sec:
            on_bar = any(span.start_sec <= word.start_sec < span.end_sec for span in speech)
            axis.text(
                word.start_sec + 0.3 * letter_sec, lane_y + _LANE_HEIGHT * height, text, fontsize=6.5,
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


def timeline_png(timeline: Timeline, words: Sequence[Word] = (), user_words: Sequence[Word] = ()) -> bytes:
    """The picture as a PNG on white, for download."""
    png = io.BytesIO()
    draw_timeline(timeline, words, user_words).savefig(png, format="png", dpi=180, facecolor="white")
    return png.getvalue()


_STAND_IN_COLOUR = "#010203"
_SVG_METADATA = ("Date", "Creator", "Format", "Type")  # left out


def timeline_svg(timeline: Timeline, words: Sequence[Word] = (), user_words: Sequence[Word] = ()) -> str:
    """The picture as an ``<svg>`` whose text takes the page's own colour."""
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "timeline", "font.family": "sans-serif"}):
        figure = draw_timeline(timeline, words, user_words, colour=_STAND_IN_COLOUR)
        figure.savefig(text, format="svg", transparent=True, metadata=dict.fromkeys(_SVG_METADATA))
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(_STAND_IN_COLOUR, "currentColor")
    return re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would apply to the whole page
