"""A figure with its confidence interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

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
    drawn = np.random.default_rng(seed).integers(0, len(sample), (RESAMPLES, len(sample)))
    replicates = statistic(sample[drawn], axis=1)
    low, high = np.quantile(replicates, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(float(statistic(sample, axis=0)), float(low), float(high), len(sample))
