"""The probe: an adapter that loads but changes nothing is a failure."""

from __future__ import annotations

from collections.abc import Sequence

from largeforge_ray.errors import GateError
from largeforge_ray.types import Generation


def judge_probe(base: Sequence[Generation], expert: Sequence[Generation]) -> int:
    """Compare greedy answers to the same prompts; returns how many differ.

    Raises ``GateError`` if the expert failed on a prompt, or answers every one as the base does
    with the same log-probability.
    """
    for generation in expert:
        if generation.error:
            raise GateError(
                f"the expert failed on a probe prompt: {generation.error}; the adapter is not promoted"
            )
    same = [b.text == e.text and b.mean_logprob == e.mean_logprob for b, e in zip(base, expert, strict=True)]
    if all(same):
        raise GateError(
            f"the adapter changes nothing: {len(same)} of {len(same)} probe answers equal "
            "the base model's to the last "
            "log-probability; it was not loaded or not trained"
        )
    return same.count(False)
