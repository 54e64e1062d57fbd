"""The behaviour bench's measures against hand-made cases of Full-Duplex-Bench's definitions."""

import math

import numpy as np
import pytest

from benchmarks.duplex import metrics
from benchmarks.duplex.bootstrap import estimate
from benchmarks.duplex.layout import words_after, words_of
from personaplex.text.transcript import Word


def said(*times: tuple[float, float]) -> list[Word]:
    return [Word(f"word{number}", start, end) for number, (start, end) in enumerate(times)]


# ---------------------------------------------------------------------------------- takeover


@pytest.mark.parametrize(
    ("words", "taken"),
    [
        ([], False),
        (said((2.0, 2.3)), False),  # "yes"
        (said((2.0, 2.2), (2.3, 2.5), (2.6, 2.9)), False),  # three words within a second
        (said((2.0, 2.2), (2.25, 2.4), (2.45, 2.6), (2.65, 2.9)), True),  # four words within a second
        (said((2.0, 3.0)), True),  # one word of exactly a second
        (said((2.0, 2.999)), False),
        (said((0.5, 0.7), (6.0, 6.2)), True),  # two asides: the time from first to last counts
    ],
)
def test_a_turn_is_taken_by_a_second_of_speech_or_by_four_words(words, taken):
    assert metrics.takeover(words) is taken


def test_latency_runs_from_the_turns_end_to_the_first_word():
    assert metrics.latency_sec(said((3.36, 3.9), (4.5, 6.0)), 2.01) == pytest.approx(1.35)


def test_latency_of_an_early_answer_is_zero():
    assert metrics.latency_sec(said((1.5, 2.0), (2.1, 3.0)), 2.0) == 0.0


def test_without_a_takeover_there_is_no_latency():
    assert metrics.latency_sec(said((3.0, 3.4)), 2.0) is None
    assert metrics.latency_sec([], 2.0) is None


def test_words_of_a_transcript_whose_last_end_is_missing():
    words = words_of({"chunks": [{"text": "so", "timestamp": [1.0, 1.2]}, {"text": "what", "timestamp": [1.8, None]}]})
    assert not metrics.takeover(words)  # 0.8 s: from the first start to the last start
    assert words_of({"chunks": []}) == []


def test_after_an_interruption_only_what_is_heard_then_counts():
    words = said((1.0, 1.5), (4.8, 5.4), (6.0, 6.5))
    assert [(w.start_sec, w.end_sec) for w in words_after(words, 5.0)] == [(5.0, 5.4), (6.0, 6.5)]
    assert words_after(words, 7.0) == []


# ---------------------------------------------------------------------------------- backchannels

EVEN = [1 / 50] * 50  # ten seconds of 200 ms


def backchannels(speech, words=(), people=EVEN, duration_sec=10.0):
    return metrics.backchannels(speech, list(words), duration_sec, people)


def test_silence_has_no_backchannels_and_the_largest_distance():
    assert backchannels([]) == metrics.Backchannels(False, 0.0, 1.0)


def test_a_short_aside_of_two_words_is_no_takeover():
    found = backchannels([(2.0, 2.6)], said((2.0, 2.2), (2.3, 2.5)))
    assert not found.takeover and found.rate_hz == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("speech", "words"),
    [
        ([(2.0, 2.6)], said((2.0, 2.1), (2.2, 2.3), (2.4, 2.5))),  # short, but three words
        ([(2.0, 3.0)], said((2.0, 2.9))),  # one word, but a second
    ],
)
def test_a_short_stretch_that_is_a_takeover_still_counts_as_a_backchannel(speech, words):
    found = backchannels(speech, words)
    assert found.takeover and found.rate_hz == pytest.approx(0.1)


def test_more_than_three_seconds_is_speaking_and_ends_the_count():
    found = backchannels([(1.0, 1.5), (2.0, 5.1), (8.0, 8.5)], said((1.0, 1.2)))
    assert found.takeover and found.rate_hz == pytest.approx(0.1)


def test_three_seconds_exactly_is_not_yet_speaking():
    found = backchannels([(2.0, 5.0), (8.0, 8.5)])
    assert found.rate_hz == pytest.approx(0.2) and not found.takeover


def test_the_last_short_stretch_decides():
    """As the published script has it: its flag is set anew by every stretch."""
    assert not backchannels([(1.0, 2.5), (8.0, 8.4)]).takeover
    assert backchannels([(1.0, 1.4), (8.0, 9.5)]).takeover


def test_words_that_only_reach_into_a_stretch_belong_to_it():
    inside, out_of, into = (2.1, 2.3), (2.5, 3.4), (1.5, 2.2)
    assert backchannels([(2.0, 2.6)], said(inside, out_of, into)).takeover
    assert not backchannels([(2.0, 2.6)], said(inside, out_of, (1.0, 2.0))).takeover  # ends where the stretch starts


def test_distance_by_hand_where_model_and_people_share_no_window():
    """Two distributions apart: the divergence is ln 2, the distance its root."""
    people = [0.0] * 25 + [1 / 25] * 25
    found = backchannels([(1.0, 1.5)], people=people, duration_sec=9.8)  # 50 windows: nothing is resized
    assert found.distance == pytest.approx(math.sqrt(math.log(2)), abs=1e-4)


def test_distance_by_hand_where_they_are_alike():
    people = [0.0] * 50
    people[5:8] = [1 / 3] * 3
    found = backchannels([(1.1, 1.5)], people=people, duration_sec=9.8)  # windows 5, 6 and 7
    assert found.distance == pytest.approx(0.0, abs=1e-4)


def test_distance_by_hand_of_half_shared_windows():
    """p = (½, ½, 0), q = (0, ½, ½): m = (¼, ½, ¼), so JSD = ½ ln 2 and the distance is its root."""
    people = [0.0] * 50
    people[11:13] = [0.5] * 2
    found = backchannels([(2.1, 2.3)], people=people, duration_sec=9.8)  # windows 10 and 11
    assert found.distance == pytest.approx(math.sqrt(0.5 * math.log(2)), abs=1e-4)


def test_people_are_stretched_to_the_models_length():
    """50 even windows stay even over 20 s, and 0.25 is an even share of four windows."""
    found = backchannels([(0.0, 20.0 - 17.0)], people=EVEN, duration_sec=20.0)
    share = np.zeros(101) + 1e-10
    share[:16] += 1
    p, q = share / share.sum(), np.full(101, 1 / 101)
    m = (p + q) / 2
    by_hand = 0.5 * np.sum(p * np.log(p / m)) + 0.5 * np.sum(q * np.log(q / m))
    assert found.distance == pytest.approx(math.sqrt(by_hand), abs=1e-6)


def test_a_stretch_at_the_files_end_stays_within_it():
    assert backchannels([(9.7, 10.0)]).distance < 1


# ---------------------------------------------------------------------------------- overlaps


def test_the_agent_falls_silent_some_time_after_being_interrupted():
    assert metrics.stop_sec([(1.0, 3.4), (6.0, 8.0)], 3.0) == pytest.approx(0.4)


def test_a_breath_is_not_silence():
    assert metrics.stop_sec([(1.0, 3.2), (3.6, 4.5)], 3.0) == pytest.approx(1.5)
    assert metrics.stop_sec([(1.0, 3.2), (3.8, 4.5)], 3.0) == pytest.approx(0.2)


@pytest.mark.parametrize("speech", [[], [(1.0, 2.0)], [(3.1, 5.0)], [(1.0, 3.0)]])
def test_who_is_silent_cannot_be_interrupted(speech):
    assert metrics.stop_sec(speech, 3.0) is None


def test_merging_joins_what_is_close_and_sorts():
    assert metrics.merge([(5.0, 6.0), (1.0, 2.0), (2.5, 3.0), (2.6, 2.8)], 0.5) == [(1.0, 3.0), (5.0, 6.0)]
    assert metrics.merge([], 0.5) == []


def test_stop_latency_is_the_time_both_speak():
    assert metrics.stop_latencies([(3.0, 5.0)], [(1.0, 3.8), (6.0, 8.0)]) == [(3.0, 3.8)]
    assert metrics.stop_latencies([(3.0, 5.0)], [(5.0, 8.0)]) == []


def test_stop_latency_of_an_agent_that_never_stops_ends_with_the_user():
    assert metrics.stop_latencies([(3.0, 5.0), (7.0, 8.0)], [(1.0, 9.0)]) == [(3.0, 5.0), (7.0, 8.0)]


def test_response_latency_runs_to_the_next_start_from_the_later_of_two_turns():
    user, agent = [(1.0, 2.0), (3.0, 4.0), (8.0, 9.0)], [(0.2, 0.6), (4.5, 6.0)]
    assert metrics.response_latencies(user, agent) == [(4.0, 4.5)]


def test_a_users_short_pause_is_within_the_turn():
    assert metrics.response_latencies([(1.0, 2.0), (2.5, 3.0)], [(2.3, 2.4), (4.0, 5.0)]) == [(3.0, 4.0)]


# ---------------------------------------------------------------------------------- intervals


def test_an_interval_holds_the_mean_and_narrows_with_more_values():
    few, many = (estimate([0.0, 1.0] * count) for count in (10, 1000))
    assert few.value == many.value == 0.5 and few.count == 20
    assert few.low < 0.5 < few.high and many.high - many.low < few.high - few.low
    # of 2000 coin flips the mean's standard deviation is 0.0112
    assert many.high - many.low == pytest.approx(2 * 1.96 * 0.0112, rel=0.1)


def test_an_interval_is_repeatable_and_has_its_own_statistic():
    values = [0.1, 0.2, 0.3, 9.0]
    assert estimate(values, np.median) == estimate(values, np.median)
    assert estimate(values, np.median).value == pytest.approx(0.25)


def test_one_value_is_its_own_interval():
    found = estimate([0.7])
    assert (found.low, found.value, found.high, found.count) == (0.7, 0.7, 0.7, 1)


def test_of_nothing_there_is_no_figure():
    found = estimate([])
    assert found.count == 0 and math.isnan(found.value)


# ---------------------------------------------------------------------------------- measures of our own


def test_a_whole_sentence_before_a_nod_is_a_takeover_of_some_stretch():
    speech, words = [(1.0, 2.5), (8.0, 8.4)], said((1.0, 1.6), (1.6, 2.5), (8.0, 8.4))
    assert metrics.any_takeover(speech, words) and not backchannels(speech, words).takeover
    assert not metrics.any_takeover([(8.0, 8.4)], words)


def test_what_was_begun_before_the_user_spoke_ends_with_its_last_pause():
    speech = [(1.0, 2.0), (2.4, 3.8), (5.0, 6.0)]
    assert metrics.opening_end_sec(speech, 3.3) == 3.8
    assert metrics.opening_end_sec(speech, 0.5) is None
    assert metrics.opening_end_sec(speech, 5.5) == 6.0
    assert metrics.opening_end_sec([], 3.0) is None


def test_a_word_ends_where_its_stretch_of_speech_does():
    words = said((0.8, 1.2), (1.2, 2.4), (5.0, 5.5))
    ended = metrics.ending_with(words, [(1.0, 1.8)])
    assert [word.end_sec for word in ended] == [1.2, 1.8, 5.5]


# ---------------------------------------------------------------------------------- speech that nobody asked for


def spoken(text, start_sec=0.0):
    """A word every half second."""
    return [Word(w, start_sec + 0.5 * n, start_sec + 0.5 * n + 0.4) for n, w in enumerate(text.split())]


GREETING = spoken("Hello, this is Ann. How can I help you?")


def test_an_utterance_ends_before_more_than_a_second_of_silence():
    again = spoken("Are you there?", GREETING[-1].end_sec + 1.5)
    assert metrics.utterances([*GREETING, *again]) == [GREETING, again]
    assert metrics.utterances([]) == []


def test_a_whole_utterance_ends_as_a_sentence_and_is_spoken_to_its_end():
    end_sec = GREETING[-1].end_sec
    assert metrics.is_whole(GREETING, [(0.0, end_sec)])
    assert not metrics.is_whole(GREETING[:-1], [(0.0, end_sec)])
    assert not metrics.is_whole(GREETING, [(0.0, end_sec - 1.0)])


@pytest.mark.parametrize(
    ("words", "user", "duration_sec", "broken"),
    [
        (GREETING, [], 10.0, 0),
        (GREETING[:2], [], 10.0, 1),
        (GREETING[:2], [Word("hey", 0.2, 0.5)], 10.0, 0),  # the user ended it
        (GREETING[:2], [Word("hey", 3.0, 3.5)], 10.0, 1),  # and here came later
        (GREETING[:2], [], 1.5, 0),  # the file ended it
        ([*GREETING[:2], *spoken("Are you", 5.0)], [], 10.0, 2),
    ],
)
def test_speech_broken_off_without_anybody(words, user, duration_sec, broken):
    assert metrics.broken_off(words, [(0.0, 20.0)], user, duration_sec) == broken
