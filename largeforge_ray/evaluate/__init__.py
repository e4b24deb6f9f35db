"""The outcome matrix: every candidate answers every item once.

from largeforge_ray.evaluate import outcome_work, outcome_row, paired_gain, score, write_outcomes

write_outcomes(folder, journal.rows(), items)
score(outcomes, "tuned", confidence=0.95)            # accuracy with its interval
paired_gain(outcomes, "tuned", "base", confidence=0.95)
"""

from __future__ import annotations

from largeforge_ray.evaluate.bootstrap import Interval, paired_gain, score
from largeforge_ray.evaluate.outcomes import (
    outcome_row,
    outcome_work,
    qualities,
    read_outcomes,
    write_outcomes,
)

__all__ = [
    "Interval",
    "outcome_row",
    "outcome_work",
    "paired_gain",
    "qualities",
    "read_outcomes",
    "score",
    "write_outcomes",
]
