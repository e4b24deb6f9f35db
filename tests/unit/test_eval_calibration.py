"""Calibration against independent computations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from largeforge_ray.evaluate.calibration import calibrate


def test_brier_and_ece_agree_with_other_computations() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    confidence, right = rng.random(500), (rng.random(500) < 0.4).astype(float)
    found = calibrate(confidence, right)
    assert found["brier"] == pytest.approx(metrics.brier_score_loss(right, confidence))
    apart = 0.0
    for low in np.arange(10) / 10:
        inside = (confidence >= low) & (confidence < low + 0.1)
        apart += abs((confidence[inside] - right[inside]).sum()) / 500
    assert found["ece"] == pytest.approx(apart)
    assert sum(each["n"] for each in found["bins"]) == 500


def test_by_hand() -> None:
    found = calibrate([0.95, 0.95, 0.15, np.nan, 1.0], [1.0, 0.0, 0.0, 1.0, 1.0])
    assert found["brier"] == pytest.approx((0.05**2 + 0.95**2 + 0.15**2 + 0) / 4)
    assert found["ece"] == pytest.approx((abs(2.9 - 2.0) + 0.15) / 4)
    assert [each["n"] for each in found["bins"]] == [1, 3]


def test_without_confidences_there_is_nothing_to_say() -> None:
    assert calibrate([np.nan], [1.0]) == {"ece": None, "brier": None, "bins": []}


@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from([0.0, 1.0])), min_size=1))
def test_both_lie_between_0_and_1_and_ece_is_no_more_than_the_mean_distance(pairs) -> None:
    confidence, right = np.array(pairs).T
    found = calibrate(confidence, right)
    assert 0 <= found["ece"] <= np.abs(confidence - right).mean() + 1e-9
    assert 0 <= found["brier"] <= 1
