"""Full-Duplex-Bench's measures, one function each, on words and stretches of speech.

Definitions: github.com/DanielLin94144/Full-Duplex-Bench at d7336bd (2026-04-15), ``v1_v1.5/evaluation``; each
function names its script. Times are seconds from the start of ``output.wav``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.distance import jensenshannon

from personaplex.text.transcript import Word

Span = tuple[float, float]
"""Start and end of a stretch of speech, in seconds."""

MIN_TURN_SEC, MAX_ASIDE_WORDS = 1.0, 3
MAX_BACKCHANNEL_SEC, MAX_BACKCHANNEL_WORDS = 3.0, 2
WINDOW_SEC, EPSILON = 0.2, 1e-10
USER_MERGE_SEC, MODEL_MERGE_SEC = 0.6, 0.5
UTTERANCE_GAP_SEC = 1.0  # between words: they belong to two utterances
CUT_BY_END_SEC = 1.0  # an utterance that comes so near to the end of the file was not broken off
CAUSE_SEC = 1.5  # a user who spoke within this time before an utterance's end may have ended it
SENTENCE_ENDS = (".", "?", "!")


def takeover(words: Sequence[Word]) -> bool:
    """Whether the model took the turn: it said something that lasted 1 s or had more than 3 words.

    ``eval_pause_handling.py``, ``eval_smooth_turn_taking.py``, ``eval_user_interruption.py``: the duration runs
    from the first word's start to the last word's end.
    """
    if not words:
        return False
    duration_sec = words[-1].end_sec - words[0].start_sec
    return duration_sec >= MIN_TURN_SEC or len(words) > MAX_ASIDE_WORDS


def latency_sec(words: Sequence[Word], since_sec: float) -> float | None:
    """First word after a turn's or an interruption's end, floored at 0; None where no turn was taken.

    ``eval_smooth_turn_taking.py`` (since the start of the annotated gap), ``eval_user_interruption.py`` (since the
    interruption's end; the words are those heard from then on).
    """
    return max(0.0, words[0].start_sec - since_sec) if takeover(words) else None


# ---------------------------------------------------------------------------------- backchannels


@dataclass(frozen=True)
class Backchannels:
    """``eval_backchannel.py``'s three figures of one item."""

    takeover: bool
    rate_hz: float  # backchannels a second
    distance: float  # √ of the Jensen–Shannon divergence with natural logarithm, 0 … 0.8326; 1 where there are none


def backchannels(
    speech: Sequence[Span], words: Sequence[Word], duration_sec: float, people: Sequence[float]
) -> Backchannels:
    """Backchannels while the user goes on, or the turn taken.

    ``eval_backchannel.py``. ``speech``: Silero VAD's segments, to 0.1 s as that script asks for them;
    ``people``: share of people's backchannels per 200 ms. Kept as the script has it: a stretch over 3 s is a
    takeover and ends the count; every shorter one counts as a backchannel, and the last of them decides
    whether there was a takeover.
    """
    taken, asides = False, []
    for start_sec, end_sec in speech:
        if end_sec - start_sec > MAX_BACKCHANNEL_SEC:
            taken = True
            break
        taken = _takes_over(words, start_sec, end_sec)
        asides.append((start_sec, end_sec))
    return Backchannels(taken, len(asides) / duration_sec, _distance(asides, duration_sec, people))


def _takes_over(words: Sequence[Word], start_sec: float, end_sec: float) -> bool:
    """Whether a stretch is more than an aside."""
    return end_sec - start_sec >= MIN_TURN_SEC or _words_within(words, start_sec, end_sec) > MAX_BACKCHANNEL_WORDS


def _words_within(words: Sequence[Word], start_sec: float, end_sec: float) -> int:
    """Words that lie in a stretch, run out of it or into it."""
    return sum(
        (w.start_sec >= start_sec and w.end_sec <= end_sec)
        or (w.start_sec <= end_sec < w.end_sec)
        or (w.start_sec <= start_sec < w.end_sec)
        for w in words
    )


def _distance(asides: Sequence[Span], duration_sec: float, people: Sequence[float]) -> float:
    if not asides:
        return 1.0
    counts = np.zeros(int(duration_sec / WINDOW_SEC) + 1)
    for start_sec, end_sec in asides:
        counts[int(start_sec / WINDOW_SEC) : int(end_sec / WINDOW_SEC) + 1] += 1
    model = (counts + EPSILON) / (counts + EPSILON).sum()
    resized = np.interp(np.linspace(0, 1, len(model)), np.linspace(0, 1, len(people)), people)
    return float(jensenshannon(model, resized))


def any_takeover(speech: Sequence[Span], words: Sequence[Word]) -> bool:
    """`backchannels`' rule for the last stretch, held against every one; not one of the benchmark's measures."""
    return any(_takes_over(words, start_sec, end_sec) for start_sec, end_sec in speech)


# ---------------------------------------------------------------------------------- overlaps


def stop_sec(speech: Sequence[Span], interrupted_sec: float) -> float | None:
    """Time for which the agent went on after the user broke in; None where it was silent at that moment.

    The model card's interruption latency. Pauses up to 0.5 s do not count as silence, as in v1.5's
    ``get_timing.py``.
    """
    for start_sec, end_sec in merge(speech, MODEL_MERGE_SEC):
        if start_sec <= interrupted_sec < end_sec:
            return end_sec - interrupted_sec
    return None


def opening_end_sec(speech: Sequence[Span], user_sec: float) -> float | None:
    """When the agent ends what it began before the user's first word; None where it began nothing.

    Pauses up to 0.5 s do not count as silence. Not one of the benchmark's measures: its users speak at once.
    """
    begun = [end_sec for start_sec, end_sec in merge(speech, MODEL_MERGE_SEC) if start_sec < user_sec]
    return max(begun, default=None)


def ending_with(words: Sequence[Word], speech: Sequence[Span]) -> list[Word]:
    """Words of a text stream, which does not tell when they end, cut where the stretch that they are said in does."""
    ended = []
    for word in words:
        within = [end for start, end in speech if start <= word.end_sec and word.start_sec < end]
        ended.append(replace(word, end_sec=min(word.end_sec, within[0])) if within else word)
    return ended


def merge(spans: Sequence[Span], gap_sec: float) -> list[Span]:
    """Join stretches whose gap is at most ``gap_sec``."""
    merged: list[Span] = []
    for start_sec, end_sec in sorted(spans):
        if merged and start_sec - merged[-1][1] <= gap_sec:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end_sec))
        else:
            merged.append((start_sec, end_sec))
    return merged


def stop_latencies(user: Sequence[Span], agent: Sequence[Span]) -> list[Span]:
    """v1.5's ``latency_stop_list``: where both speak, one stretch (the shortest) for each end.

    ``get_timing.py``: user speech merged over 0.6 s, agent speech over 0.5 s.
    """
    user, agent = merge(user, USER_MERGE_SEC), merge(agent, MODEL_MERGE_SEC)
    shortest: dict[int, Span] = {}
    for user_start, user_end in user:
        for agent_start, agent_end in agent:
            start, end = max(user_start, agent_start), min(user_end, agent_end)
            at_ms = round(end * 1000)
            if end > start and (at_ms not in shortest or end - start < shortest[at_ms][1] - shortest[at_ms][0]):
                shortest[at_ms] = (start, end)
    return sorted(shortest.values(), key=lambda span: span[1])


def response_latencies(user: Sequence[Span], agent: Sequence[Span]) -> list[Span]:
    """v1.5's ``latency_resp_list``: from the end of user speech to the next start of agent speech.

    ``get_timing.py``: where two user turns wait for the same answer, the later one counts.
    """
    user, agent = merge(user, USER_MERGE_SEC), merge(agent, MODEL_MERGE_SEC)
    latest: dict[float, float] = {}
    for _, user_end in user:
        start = next((start for start, _ in agent if start > user_end), None)
        if start is not None:
            latest[start] = max(user_end, latest.get(start, user_end))
    return sorted((end, start) for start, end in latest.items())


# ---------------------------------------------------------------------------------- speech that nobody asked for


def utterances(words: Sequence[Word]) -> list[list[Word]]:
    """Words of a text stream in pieces, cut where more than a second is silent. Not one of the benchmark's measures."""
    found: list[list[Word]] = []
    for word in words:
        if not found or word.start_sec - found[-1][-1].end_sec > UTTERANCE_GAP_SEC:
            found.append([])
        found[-1].append(word)
    return found


def is_whole(utterance: Sequence[Word], speech: Sequence[Span]) -> bool:
    """Whether an utterance ends as a sentence does, in the text and in the sound: its last word is spoken."""
    last = utterance[-1]
    return last.text.endswith(SENTENCE_ENDS) and any(
        start <= last.end_sec and last.start_sec < end for start, end in speech
    )


def broken_off(words: Sequence[Word], speech: Sequence[Span], user: Sequence[Word], duration_sec: float) -> int:
    """Utterances that end inside a sentence although the user was silent and the file goes on."""
    cut = [piece[-1] for piece in utterances(words) if not is_whole(piece, speech)]
    return sum(
        last.end_sec < duration_sec - CUT_BY_END_SEC
        and not any(w.start_sec < last.end_sec and w.end_sec > last.end_sec - CAUSE_SEC for w in user)
        for last in cut
    )
