"""Supervised fine-tuning, Ouyang et al. 2022 (arXiv:2203.02155): cross-entropy on assistant tokens.

L = - sum_t log p(y_t | y_<t) / number of learned tokens in the step
"""

from __future__ import annotations

from typing import Any

from largeforge_ray.train.batch import Encoded, Scores
from largeforge_ray.train.objective import Known, LossSum, Objective, Render


class SftObjective(Objective):
    per_token = True
    trained = (0,)
    figures = ()

    def sequences(self, row: dict[str, Any], other: dict[str, Any], render: Render) -> list[Encoded | None]:
        return [render(row["messages"], 0)]

    def loss(self, output: Scores, known: Known) -> LossSum:
        return LossSum(-output.logps_N.sum())
