"""Comparisons against scipy, and what they say."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from largeforge_ray.errors import DataError
from largeforge_ray.evaluate.compare import NOISE, compare_experts, compare_slices, holm, paired_p
from largeforge_ray.evaluate.matrix import Matrix


def made(quality_NE, experts=("base", "tuned"), slices=None, tasks=None) -> Matrix:
    quality_NE = np.asarray(quality_NE, float)
    n, nothing = len(quality_NE), np.full(quality_NE.shape, np.nan)
    items = tuple(f"{i:04d}" for i in range(n))
    return Matrix(
        items, ("",) * n, tasks or ("t",) * n, slices or (None,) * n, experts, quality_NE, *[nothing] * 3
    )


def drawn(number: int, *shares: float) -> np.ndarray:
    return (np.random.default_rng(0).random((number, len(shares))) < shares).astype(float)


def test_of_right_and_wrong_p_is_mcnemars() -> None:
    a, b = drawn(300, 0.5, 0.6).T
    only_a, only_b = int((a > b).sum()), int((b > a).sum())
    # Two-sided by hand: twice the smaller tail of a fair coin.
    tail = stats.binom.cdf(min(only_a, only_b), only_a + only_b, 0.5)
    assert paired_p(a - b) == pytest.approx(min(1.0, 2 * tail))
    assert paired_p(a - a) == 1.0


def test_of_other_qualities_p_counts_all_signs() -> None:
    difference = np.array([0.3, 0.1, -0.05, 0.4, 0.2, 0.25, -0.1, 0.35])
    means = [abs(np.mean(np.array(signs) * difference)) for signs in itertools.product([-1, 1], repeat=8)]
    exact = np.mean(np.array(means) >= abs(difference.mean()) - 1e-12)
    assert paired_p(difference) == pytest.approx(exact)


def test_p_of_many_differences_is_drawn_and_near_that_of_a_t_test() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random(400), rng.random(400) + 0.03
    assert paired_p(a - b, seed=1) == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=0.02)


def test_holm_by_hand() -> None:
    # 3 * 0.01; 2 * 0.02; 0.03, which may not be less than the one before it.
    assert holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_the_order_lies_below_bonferroni_and_never_lowers(p_values) -> None:
    corrected = holm(p_values)
    for before, after in zip(p_values, corrected, strict=True):
        assert before <= after <= min(1.0, len(p_values) * before) + 1e-12
    ranked = sorted(range(len(p_values)), key=p_values.__getitem__)
    assert [corrected[i] for i in ranked] == sorted(corrected)


def test_tasks_weigh_the_same_whatever_their_sizes() -> None:
    """A large task that gains a little and a small one that loses much: together they lose."""
    large, small = np.tile([[0, 1], [0, 0], [0, 0], [0, 0]], (200, 1)), np.tile([[1, 0]], (40, 1))
    tasks = ("large",) * len(large) + ("small",) * len(small)
    (one,) = compare_experts(made(np.vstack([large, small]), tasks=tasks), confidence=0.95, baseline="base")
    assert one.n == 840
    assert one.difference == pytest.approx((0.25 - 1) / 2)
    assert one.low < one.difference < one.high < 0
    assert one.verdict.startswith("base is better by +0.375")
    even = np.vstack([large, small[:0].reshape(0, 2)])
    (split,) = compare_experts(
        made(even, tasks=("a",) * 400 + ("b",) * 400), confidence=0.95, baseline="base"
    )
    (whole,) = compare_experts(made(even), confidence=0.95, baseline="base")
    assert (split.difference, split.p) == (whole.difference, whole.p)


def test_a_clear_gain_is_said_in_words_whichever_comes_first() -> None:
    quality = drawn(400, 0.4, 0.7)
    (one,) = compare_experts(made(quality), confidence=0.95, baseline="base")
    (other,) = compare_experts(made(quality), confidence=0.95, baseline="tuned")
    assert (one.a, one.b, one.n) == ("tuned", "base", 400)
    assert (other.a, other.b) == ("base", "tuned")
    gain = np.mean(quality[:, 1] - quality[:, 0])
    assert one.difference == pytest.approx(gain)
    assert other.difference == pytest.approx(-gain)
    assert one.low < gain < one.high
    assert one.verdict.startswith(f"tuned is better by {gain:+.3f} [{one.low:.3f}, ")
    assert other.verdict.startswith(f"tuned is better by {gain:+.3f} [")


def test_noise_is_called_noise() -> None:
    quality = drawn(60, 0.5, 0.5)
    (one,) = compare_experts(made(quality), confidence=0.95)
    assert one.verdict == NOISE


def test_equal_experts_are_told_better_about_as_seldom_as_promised() -> None:
    rng = np.random.default_rng(3)
    alarms = 0
    for seed in range(30):
        quality = (rng.random((80, 4)) < 0.5).astype(float)
        found = compare_experts(made(quality, ("a", "b", "c", "d")), confidence=0.9, seed=seed)
        alarms += any(one.verdict != NOISE for one in found)
    # At most 10% of 30, and two standard errors.
    assert alarms <= 6


def test_pairs_are_corrected_together_and_the_baseline_comes_first() -> None:
    matrix = made(drawn(200, 0.3, 0.5, 0.6), ("a", "b", "c"))
    found = compare_experts(matrix, confidence=0.95, baseline="c")
    assert [(one.a, one.b) for one in found] == [("a", "c"), ("b", "c"), ("b", "a")]
    assert [one.p_corrected for one in found] == pytest.approx(holm([one.p for one in found]))


def test_only_items_that_both_answered_count() -> None:
    matrix = made([[1.0, np.nan], [0.0, 1.0], [np.nan, 0.0]])
    (one,) = compare_experts(matrix, confidence=0.95)
    assert (one.n, one.difference) == (1, 1.0)
    with pytest.raises(DataError, match="'tuned' and 'base' have no item in common"):
        compare_experts(made([[1.0, np.nan]]), confidence=0.95)


def test_slices_are_compared_each_by_itself() -> None:
    quality = np.vstack([drawn(100, 0.2, 0.8), drawn(100, 0.5, 0.5), drawn(10, 0.0, 1.0)])
    matrix = made(quality, slices=("hard",) * 100 + ("easy",) * 100 + (None,) * 10)
    found = compare_slices(matrix, "tuned", "base", confidence=0.95)
    assert list(found) == ["easy", "hard"]
    assert found["hard"].n == 100
    assert found["hard"].verdict.startswith("tuned is better")
    assert found["hard"].difference == pytest.approx(np.mean(quality[:100, 1] - quality[:100, 0]))
