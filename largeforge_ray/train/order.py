"""Which rows each step takes and how they share tensors: pure functions of seed, step and lengths.

The rows of a step do not depend on the number of workers, and how they are laid out does not change
their loss, so a run may stop on two workers and go on with three.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

Pass = list[int]
"""Rows that go through the model together."""


@dataclass(frozen=True, slots=True)
class Order:
    """A shuffled pass over ``rows`` per epoch, ``batch_size`` rows a step, the last one possibly short."""

    rows: int
    batch_size: int
    epochs: float
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.rows / self.batch_size)

    @property
    def steps(self) -> int:
        return max(1, math.ceil(self.epochs * self.steps_per_epoch))

    def step_rows(self, step: int) -> list[int]:
        """The rows of a step, counted from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = _permutation(self.rows, self.seed, epoch)
        return [int(i) for i in order[place * self.batch_size : (place + 1) * self.batch_size]]


@lru_cache(maxsize=2)
def _permutation(rows: int, seed: int, epoch: int) -> Any:
    import numpy as np

    return np.random.default_rng([seed, epoch]).permutation(rows)


def lay_out(
    rows: Sequence[int], lengths: Sequence[int], *, batching: str, tokens_per_pass: int, workers: int
) -> list[list[Pass]]:
    """``[worker][pass]`` -> rows. Every worker gets equally many passes, some perhaps empty.

    ``lengths`` are tokens by row. ``packed`` and ``bucketed`` deal the longest rows out first, each to
    the worker with the fewest tokens; ``padded`` keeps the order in which the rows were drawn.
    """
    if batching == "padded":
        shares = [list(rows[w::workers]) for w in range(workers)]
        dealt = [_consecutive(s, lengths, tokens_per_pass) for s in shares]
    else:
        shares = _deal(rows, lengths, workers)
        fill = _first_fit if batching == "packed" else _consecutive
        dealt = [fill(s, lengths, tokens_per_pass) for s in shares]
    most = max(map(len, dealt))
    return [passes + [[] for _ in range(most - len(passes))] for passes in dealt]


def _deal(rows: Sequence[int], lengths: Sequence[int], workers: int) -> list[list[int]]:
    shares: list[list[int]] = [[] for _ in range(workers)]
    loads = [0] * workers
    for row in sorted(rows, key=lambda r: (-lengths[r], r)):
        lightest = loads.index(min(loads))
        shares[lightest].append(row)
        loads[lightest] += lengths[row]
    return shares


def _first_fit(rows: Sequence[int], lengths: Sequence[int], limit: int) -> list[Pass]:
    """First-fit decreasing, Johnson 1973: at most 11/9 of the fewest possible bins, and one more."""
    bins: list[tuple[int, Pass]] = []
    for row in rows:
        for i, (used, held) in enumerate(bins):
            if used + lengths[row] <= limit:
                bins[i] = (used + lengths[row], [*held, row])
                break
        else:
            bins.append((lengths[row], [row]))
    return [held for _, held in bins]


def _consecutive(rows: Sequence[int], lengths: Sequence[int], limit: int) -> list[Pass]:
    """Neighbours together while the rectangle of the longest fits."""
    passes: list[Pass] = []
    longest = 0
    for row in rows:
        longest = max(longest, lengths[row])
        if passes and longest * (len(passes[-1]) + 1) <= limit:
            passes[-1].append(row)
        else:
            passes.append([row])
            longest = lengths[row]
    return passes


def learning_rate(step: int, steps: int, *, peak: float, warmup: float, schedule: str) -> float:
    """The rate of a step, counted from 0: a linear rise over ``warmup`` of the steps, then the schedule."""
    rising = math.ceil(warmup * steps)
    if step < rising:
        return peak * (step + 1) / rising
    if schedule == "constant":
        return peak
    progress = (step - rising) / max(1, steps - rising)
    return peak * (1 - progress if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress)))
