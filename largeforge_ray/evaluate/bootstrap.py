"""Percentile bootstrap intervals: Efron 1979; paired over items as in Koehn 2004.

N items, U distinct values, S resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from largeforge_ray.errors import DataError

RESAMPLES = 10_000
FEW_VALUES = 16
DRAWN_AT_ONCE = 1 << 22


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its two-sided interval at ``confidence``, over ``n`` items."""

    mean: float
    low: float
    high: float
    confidence: float
    n: int


def paired_gain(
    candidate: Mapping[str, float],
    baseline: Mapping[str, float],
    *,
    confidence: float,
    seed: int = 0,
    tasks: Mapping[str, str] | None = None,
) -> Interval:
    """Mean quality difference on the same items; ``tasks`` maps them to tasks, which weigh the same.

    Raises ``DataError`` if the items differ.
    """
    if candidate.keys() != baseline.keys():
        lone = len(candidate.keys() ^ baseline.keys())
        raise DataError(
            f"{lone} items were answered by one expert only; a paired gain needs the same items for both"
        )
    groups: dict[str, list[float]] = {}
    for item in sorted(candidate):
        groups.setdefault(tasks[item] if tasks else "", []).append(candidate[item] - baseline[item])
    return interval([*groups.values()], confidence=confidence, seed=seed)


def interval(groups: Sequence[Any], *, confidence: float, seed: int = 0) -> Interval:
    """The mean over ``groups`` of the mean of each one's values, resampling inside each group.

    One group is a plain mean; several are tasks that weigh the same whatever their sizes. Raises
    ``DataError`` for a group without values, and for none.
    """
    import numpy as np

    groups = [np.asarray(group, np.float64) for group in groups]
    if not groups or not all(len(group) for group in groups):
        raise DataError("no outcomes to average; evaluate at least one item")
    rng = np.random.default_rng(seed)
    means_S = np.mean([_resampled_means(group, rng) for group in groups], axis=0)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means_S, [tail, 1 - tail])
    mean = float(np.mean([group.mean() for group in groups]))
    return Interval(mean, float(low), float(high), confidence, sum(len(group) for group in groups))


def _resampled_means(values_N: Any, rng: Any) -> Any:
    import numpy as np

    number = len(values_N)
    distinct_U, count_U = np.unique(values_N, return_counts=True)
    if len(distinct_U) <= FEW_VALUES:
        # How often each value comes up is drawn at once, whatever the number of items.
        return rng.multinomial(number, count_U / number, RESAMPLES) @ distinct_U / number
    at_once = max(1, DRAWN_AT_ONCE // number)
    sizes = [min(at_once, RESAMPLES - start) for start in range(0, RESAMPLES, at_once)]
    return np.concatenate([values_N[rng.integers(0, number, (size, number))].mean(axis=1) for size in sizes])
