"""Is one expert better than another, beyond noise: paired differences over the same items.

N items, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from largeforge_ray.errors import DataError
from largeforge_ray.evaluate.bootstrap import interval
from largeforge_ray.evaluate.matrix import Matrix

FLIPS = 9_999
FLIPPED_AT_ONCE = 1 << 22
NOISE = "no difference beyond noise"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Quality of ``a`` minus that of ``b`` on the ``n`` items both answered, with its interval.

    Where they are of several tasks, every task weighs the same.
    ``p_corrected`` is ``p`` after Holm's correction for all comparisons that were made together.
    """

    a: str
    b: str
    n: int
    difference: float
    low: float
    high: float
    p: float
    p_corrected: float
    verdict: str


def compare_experts(
    matrix: Matrix, *, confidence: float, seed: int = 0, baseline: str | None = None
) -> list[Comparison]:
    """Every pair of experts, corrected together; ``baseline`` comes first and is always ``b``.

    Raises ``DataError`` for a pair that has no item in common.
    """
    names = sorted(matrix.experts, key=lambda name: name != baseline)
    made = [_compare(matrix, a, b, confidence, seed) for b, a in combinations(names, 2)]
    return _corrected(made, confidence)


def compare_slices(
    matrix: Matrix, a: str, b: str, *, confidence: float, seed: int = 0
) -> dict[str, Comparison]:
    """Two experts on each slice of the items (subject, category), corrected together."""
    slices = sorted({name for name in matrix.slices if name is not None})
    parts = [matrix.take(np.array([each == name for each in matrix.slices])) for name in slices]
    made = [_compare(part, a, b, confidence, seed) for part in parts]
    return dict(zip(slices, _corrected(made, confidence), strict=True))


def paired_p(difference_N: Any, *, seed: int = 0) -> float:
    """Two-sided p that differences on the same items have a mean of 0.

    Of 0/1 qualities McNemar's exact test (1947): the items that only one has right are tosses of a fair coin.
    Of others its generalisation, Fisher's randomisation of the differences' signs, drawn if there are many.
    """
    from scipy import stats

    difference_N = np.asarray(difference_N, np.float64)
    apart_N = difference_N[difference_N != 0]
    if not len(apart_N):
        return 1.0
    if (np.abs(apart_N) == 1).all():
        return float(stats.binomtest(int((apart_N > 0).sum()), len(apart_N)).pvalue)
    found = stats.permutation_test(
        (apart_N,),
        np.mean,
        permutation_type="samples",
        n_resamples=FLIPS,
        batch=max(1, FLIPPED_AT_ONCE // len(apart_N)),
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Each p as if its test had been the only one, at no more false alarms together: Holm 1979."""
    corrected, most = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        most = max(most, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = most
    return corrected


def _compare(matrix: Matrix, a: str, b: str, confidence: float, seed: int) -> Comparison:
    a_N, b_N = (matrix.quality_NE[:, matrix.expert(name)] for name in (a, b))
    both_N = np.isfinite(a_N) & np.isfinite(b_N)
    if not both_N.any():
        raise DataError(f"'{a}' and '{b}' have no item in common; evaluate them on the same items")
    _, task_N = np.unique(np.array(matrix.tasks)[both_N], return_inverse=True)
    sizes_T = np.bincount(task_N)
    gain_N = (a_N - b_N)[both_N]
    gain = interval(
        [gain_N[task_N == task] for task in range(len(sizes_T))], confidence=confidence, seed=seed
    )
    # Their mean is the mean over tasks; those of one task, or of tasks of one size, stay as they are.
    p = paired_p(gain_N * (len(gain_N) / (len(sizes_T) * sizes_T[task_N])), seed=seed)
    return Comparison(a, b, gain.n, gain.mean, gain.low, gain.high, p, p, NOISE)


def _corrected(made: Sequence[Comparison], confidence: float) -> list[Comparison]:
    adjusted = zip(made, holm([one.p for one in made]), strict=True)
    return [replace(one, p_corrected=p, verdict=_verdict(one, p, confidence)) for one, p in adjusted]


def _verdict(one: Comparison, p_corrected: float, confidence: float) -> str:
    # Both have to say so, as an interval is not corrected for the other pairs.
    if p_corrected > 1 - confidence or one.low <= 0 <= one.high:
        return NOISE
    better, sign = (one.a, 1) if one.difference > 0 else (one.b, -1)
    low, high = sorted((sign * one.low, sign * one.high))
    return f"{better} is better by {sign * one.difference:+.3f} [{low:.3f}, {high:.3f}]"
