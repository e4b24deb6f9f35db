"""The gate: a pure decision on a measured gain."""

from __future__ import annotations

from dataclasses import dataclass

from largeforge_ray.evaluate.bootstrap import Interval


@dataclass(frozen=True, slots=True)
class GateDecision:
    """Whether a candidate may go live, with the numbers that decided."""

    passed: bool
    reason: str


def decide_gate(gain: Interval, *, min_gain: float) -> GateDecision:
    """Pass if the whole interval of the paired gain lies above ``min_gain``."""
    numbers = f"gain {gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}] on {gain.n} items"
    if gain.low > min_gain:
        return GateDecision(True, f"{numbers} lies above {min_gain:+.3f}")
    return GateDecision(
        False,
        f"{numbers} does not lie above min_gain {min_gain:+.3f}; train on more rows or lower gate.min_gain",
    )
