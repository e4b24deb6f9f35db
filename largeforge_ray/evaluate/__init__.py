"""The outcome matrix: every candidate answers every item once.

from largeforge_ray.evaluate import OutcomeRecipe, paired_gain, score, write_outcomes

run_farm(items, OutcomeRecipe(experts, task, sampling), ...)
write_outcomes(folder, journal.rows(), items)
score(outcomes, "tuned", confidence=0.95)            # accuracy with its interval
paired_gain(outcomes, "tuned", "base", confidence=0.95)
"""

from __future__ import annotations

from largeforge_ray.evaluate.bootstrap import Interval, paired_gain, score
from largeforge_ray.evaluate.outcomes import (
    OutcomeRecipe,
    qualities,
    read_outcomes,
    write_outcomes,
)

__all__ = [
    "Interval",
    "OutcomeRecipe",
    "paired_gain",
    "qualities",
    "read_outcomes",
    "score",
    "write_outcomes",
]
