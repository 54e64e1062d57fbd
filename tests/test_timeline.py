"""Who spoke when: speech found by loudness, overlaps judged, pictures drawn."""

from __future__ import annotations

import numpy as np
import pytest

from personaplex.audio.activity import Overlap, Span, find_overlaps, speech_spans, timeline_of
from personaplex.text.transcript import Word
from personaplex.web.timeline_picture import MAX_ROWS, draw_timeline, timeline_png, timeline_svg

RATE_HZ = 8000


def sound(spans: list[tuple[float, float]], duration_sec: float, level: float = 0.1, noise: float = 1e-4) -> np.ndarray:
    """Noise bursts as speech, over a quiet room."""
    rng = np.random.default_rng(7)
    pcm = rng.normal(0, noise, round(duration_sec * RATE_HZ))
    for start, end in spans:
        cut = slice(round(start * RATE_HZ), round(end * RATE_HZ))
        pcm[cut] += rng.normal(0, level, cut.stop - cut.start)
    return pcm.astype(np.float32)


def rounded(spans) -> list[tuple[float, float]]:
    return [(round(span.start_sec, 1), round(span.end_sec, 1)) for span in spans]


# --- speech


def test_speech_is_found_where_it_is():
    assert rounded(speech_spans(sound([(1, 2.5), (4, 5)], 6), RATE_HZ)) == [(1.0, 2.5), (4.0, 5.0)]


@pytest.mark.parametrize("pcm", [np.zeros(0, np.float32), np.zeros(16, np.float32), np.zeros(RATE_HZ, np.float32)])
def test_silence_holds_no_speech(pcm):
    assert speech_spans(pcm, RATE_HZ) == ()


def test_steady_noise_is_no_speech_but_speech_above_it_is():
    assert rounded(speech_spans(sound([(2, 3)], 6, level=0.2, noise=0.01), RATE_HZ)) == [(2.0, 3.0)]


def test_speech_without_a_pause_is_speech():
    """The tenth percentile is then no noise floor: a floor taken from it hid nearly everything."""
    assert rounded(speech_spans(sound([(0, 4)], 4), RATE_HZ)) == [(0.0, 4.0)]


def test_a_fan_alone_is_no_speech():
    assert speech_spans(sound([], 4, noise=0.005), RATE_HZ) == ()


def test_a_short_pause_is_bridged_and_a_click_is_dropped():
    assert rounded(speech_spans(sound([(1, 2), (2.2, 3), (4.5, 4.56)], 6), RATE_HZ)) == [(1.0, 3.0)]


# --- overlaps


def kinds(agent: list[tuple[float, float]], user: list[tuple[float, float]]) -> list[tuple[str, str]]:
    overlaps = find_overlaps([Span(*span) for span in agent], [Span(*span) for span in user])
    return [(overlap.by, overlap.kind) for overlap in overlaps]


@pytest.mark.parametrize(
    ("agent", "user", "expected"),
    [
        ([(0, 5)], [(6, 8)], []),
        ([(0, 5)], [(5, 8)], []),  # they touch
        ([(0, 5)], [(4, 8)], [("user", "interruption")]),
        ([(0, 5)], [(2, 8)], [("user", "overlap")]),  # it went on for 3 s
        ([(0, 5)], [(2, 2.6)], [("user", "backchannel")]),
        ([(0, 5)], [(1, 4)], [("user", "overlap")]),
        ([(4, 8)], [(0, 5)], [("agent", "interruption")]),
        ([(0, 3), (4, 9)], [(2.5, 4.5)], [("user", "interruption"), ("agent", "interruption")]),
    ],
)
def test_overlaps_say_who_came_in_and_how_it_ended(agent, user, expected):
    assert kinds(agent, user) == expected


def test_an_overlap_lasts_as_long_as_both_speak():
    assert find_overlaps([Span(0, 5)], [Span(4, 8)]) == (Overlap(Span(4, 5), "user", "interruption"),)


def test_a_timeline_of_two_sounds():
    timeline = timeline_of(sound([(0.5, 3)], 4), sound([(2.5, 5)], 6), RATE_HZ)
    assert timeline.duration_sec == 6
    assert [overlap.kind for overlap in timeline.overlaps] == ["interruption"]
    assert timeline.summary == "2 s of speech by the persona and 2 s by you in 6 s, 1 overlap, 1 interruption."


def test_the_summary_of_nothing():
    quiet = np.zeros(RATE_HZ, np.float32)
    assert timeline_of(quiet, quiet, RATE_HZ).summary.endswith("in 1 s, no overlaps, no interruptions.")


# --- pictures


@pytest.fixture(scope="module")
def timeline():
    return timeline_of(sound([(1, 5), (31, 36)], 40), sound([(4.6, 9), (33, 33.5)], 40), RATE_HZ)


def test_a_row_for_every_half_minute(timeline):
    assert len(draw_timeline(timeline).axes) == 2
    hour = timeline_of(np.zeros(0, np.float32), np.zeros(3600 * 100, np.float32), 100)
    assert len(draw_timeline(hour).axes) == MAX_ROWS


def test_both_lanes_and_the_overlap_are_drawn(timeline):
    first = draw_timeline(timeline).axes[0]
    assert [label.get_text() for label in first.get_yticklabels()] == ["You", "Persona"]
    agent, user, both = first.collections
    widths = [round(sum(path.get_extents().width for path in bars.get_paths()), 1) for bars in (agent, user, both)]
    assert widths == [4.0, 4.4, 0.4]
    assert len(first.lines) == 1, "the interruption has a mark"


def test_words_are_drawn_without_running_into_each_other(timeline):
    words = [Word("antidisestablishmentarianism", 1 + 0.1 * i, 2) for i in range(9)]
    assert len(draw_timeline(timeline, words).axes[0].texts) == 3


def test_dollars_in_words_are_no_formulas(timeline):
    words = [Word("$5_{", 1.0, 1.2), Word("<b>&", 2.0, 2.2)]
    assert timeline_png(timeline, words).startswith(b"\x89PNG")
    svg = timeline_svg(timeline, words)
    assert "$5_{" in svg and "&lt;b&gt;&amp;" in svg and "<b>" not in svg


def test_the_svg_takes_the_pages_colour_and_brings_no_style(timeline):
    svg = timeline_svg(timeline)
    assert svg.startswith("<svg") and "currentColor" in svg
    assert "<style" not in svg and "#010203" not in svg and "<metadata" not in svg
