"""A figure with its confidence interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A statistic of ``count`` values and where 95 % of its bootstrap replicates lie; NaN without values."""

    value: float
    low: float
    high: float
    count: int


def estimate(values: Sequence[float], statistic: Callable[..., np.ndarray] = np.mean, seed: int = 0) -> Estimate:
    """Percentile bootstrap over items (Efron 1979): ``statistic`` is np.mean, np.median or takes ``axis``.

    With few values, or all alike, the interval is too narrow: read the count beside it.
    """
    sample = np.asarray(values, np.float64)
    if not len(sample):
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    value = float(statistic(sample, axis=0))
    if len(sample) == 1:  # every resample is the one value
        return Estimate(value, value, value, 1)
    found = stats.bootstrap(
        (sample,), statistic, n_resamples=RESAMPLES, confidence_level=CONFIDENCE, method="percentile", rng=seed
    ).confidence_interval
    return Estimate(value, float(found.low), float(found.high), len(sample))
