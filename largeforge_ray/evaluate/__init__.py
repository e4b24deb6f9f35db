"""The outcome matrix: every candidate answers every item once.

from largeforge_ray.evaluate import OutcomeRecipe, write_items, write_outcomes

write_items(folder, task_items(entries, folder))      # published tasks, and the user's own
recipe = OutcomeRecipe("tuned", key, adapter, seed=0)
run_farm(folder / "choice.parquet", recipe, engines=scorers, journal=journal, ...)
rows = write_outcomes(folder, journal.rows(), items)
summarise(rows, confidence=0.95)                      # what report, gate and frontier read
"""

from __future__ import annotations

from largeforge_ray.evaluate.bootstrap import Interval, interval, paired_gain
from largeforge_ray.evaluate.items import read_items, write_items
from largeforge_ray.evaluate.outcomes import OutcomeRecipe, read_outcomes, write_outcomes

__all__ = [
    "Interval",
    "OutcomeRecipe",
    "interval",
    "paired_gain",
    "read_items",
    "read_outcomes",
    "write_items",
    "write_outcomes",
]
