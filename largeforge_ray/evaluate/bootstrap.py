"""Percentile bootstrap intervals: Efron 1979; paired over items as in Koehn 2004."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from largeforge_ray.errors import DataError

RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its two-sided interval at ``confidence``, over ``n`` items."""

    mean: float
    low: float
    high: float
    confidence: float
    n: int


def score(quality: Mapping[str, float], *, confidence: float, seed: int = 0) -> Interval:
    """Mean quality over items (item hash -> 0..1), resampling items."""
    return _interval([quality[k] for k in sorted(quality)], confidence, seed)


def paired_gain(
    candidate: Mapping[str, float], baseline: Mapping[str, float], *, confidence: float, seed: int = 0
) -> Interval:
    """Mean quality difference on the same items. Raises ``DataError`` if the items differ."""
    if candidate.keys() != baseline.keys():
        lone = len(candidate.keys() ^ baseline.keys())
        raise DataError(
            f"{lone} items were answered by one expert only; a paired gain needs the same items for both"
        )
    return _interval([candidate[k] - baseline[k] for k in sorted(candidate)], confidence, seed)


def _interval(values: list[float], confidence: float, seed: int) -> Interval:
    import numpy as np

    if not values:
        raise DataError("no outcomes to average; evaluate at least one item")
    values_N: Any = np.asarray(values)
    rng = np.random.default_rng(seed)
    means = [values_N[rng.integers(0, len(values), len(values))].mean() for _ in range(RESAMPLES)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(values_N.mean()), float(low), float(high), confidence, len(values))
