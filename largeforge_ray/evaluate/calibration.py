"""Whether an expert, or a router, is right as often as it is sure."""

from __future__ import annotations

from typing import Any

import numpy as np

from largeforge_ray.routing.measure import calibration


def calibrate(confidence_N: Any, quality_N: Any) -> dict[str, Any]:
    """``ece`` and the ``bins`` of its reliability diagram (Naeini et al. 2015), and ``brier``.

    Brier 1950: the mean squared distance of confidence and quality, both 0..1, so a coin that says 0.5 has
    0.25. Answers without a confidence, NaN, are left out; of none both numbers are None.
    """
    known_N = np.isfinite(confidence_N) & np.isfinite(quality_N)
    confidence_N, quality_N = np.asarray(confidence_N)[known_N], np.asarray(quality_N)[known_N]
    if not len(quality_N):
        return {"ece": None, "brier": None, "bins": []}
    return {"brier": float(((confidence_N - quality_N) ** 2).mean()), **calibration(confidence_N, quality_N)}
