"""Cascades: ask the cheap expert first and a dearer one if its answer is not to be trusted.

FrugalGPT, Chen et al. 2023 (arXiv:2305.05176), with an answer's own log-probabilities in a judge's place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from largeforge_ray.errors import ConfigError
from largeforge_ray.routing.experts import Expert

LEAST_LIKELY = 0.1
"""Share of an answer's tokens that its confidence goes by."""


def cheap_to_dear(experts: Iterable[Expert]) -> tuple[Expert, ...]:
    """In the order they are asked; of equal prices the alphabet decides."""
    return tuple(sorted(experts, key=lambda expert: (expert.price.per_1k_tokens, expert.name)))


def confidence(logprobs: Sequence[float]) -> float:
    """0..1: the geometric mean probability of the least likely tenth of an answer's tokens, one at least.

    An answer is as good as its weakest part: a mean over all tokens is drowned by those that any model is
    sure of, while the minimum hangs on a single one and falls with length. Gupta et al. 2024
    (arXiv:2404.10136) find quantiles of the tokens' probabilities better than their mean. No tokens give 0.
    """
    if not logprobs:
        return 0.0
    kept = sorted(logprobs)[: max(1, round(LEAST_LIKELY * len(logprobs)))]
    return math.exp(min(0.0, math.fsum(kept) / len(kept)))


def escalates(confidence: float, least: float) -> bool:
    """Whether the next dearer expert is asked. Raises ``ConfigError`` for a ``least`` outside 0..1."""
    if not 0.0 <= least <= 1.0:
        raise ConfigError(f"least confidence {least} of a cascade is outside 0..1; use 0.5")
    return confidence < least
