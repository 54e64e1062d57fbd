"""How late a sound comes back, as the benchmarks measure it."""

import numpy as np
import pytest

from benchmarks.rtc_client import round_trips_ms

RATE_HZ = 24_000


@pytest.mark.parametrize("late_sec", [0.08, 0.35, 1.6])
@pytest.mark.parametrize("piece_sec", [0.02, 0.08])
def test_every_stretch_of_an_echo_tells_how_late_it_is(late_sec, piece_sec):
    """A sound that repeats itself every 6 s, with silence in it, comes back late, in pieces."""
    once = np.random.default_rng(0).normal(size=6 * RATE_HZ).astype(np.float32)
    once[: 2 * RATE_HZ] = 0
    sent = np.tile(once, 5)
    pieces = list(sent[: 24 * RATE_HZ].reshape(-1, int(piece_sec * RATE_HZ)))
    came_sec = [late_sec + piece_sec * at for at in range(len(pieces))]
    trips = round_trips_ms(sent, pieces, came_sec, RATE_HZ)
    assert len(trips) == 4 and trips == pytest.approx([1000 * late_sec] * 4, abs=0.1)
