"""The probe: an adapter that the engine loads but does not compute as PEFT does is a failure.

Measured with SmolLM2-135M in bfloat16 on a CPU, vLLM 0.29.0 against PEFT 0.21.2, in log-probability a
token. The base differs by 0.056. A right adapter differs by 0.8 to 1.1 times that, and by twice that if
it moves 2.5, which is a ruined model. Where it moves 0.72, one of another seed differs by 0.13, 1.25
times its alpha by 0.16, half of its alpha or layers by 0.30, double its alpha by 0.57. Where it moves
less than the base differs, only one that does nothing is told from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from largeforge_ray.errors import GateError

Logps = Sequence[Sequence[float]]
"""By sequence, the log-probability of every token after the first."""

NOISE_FACTOR, EFFECT_SHARE, LEAST_TOLERANCE = 2.0, 0.1, 0.02
"""The largest of them is tolerated: rounding grows with what the adapter moves."""
MOST_NOISE = 0.5
"""Nine times what rounding does; the same base held in 4 bits differs by 1.1."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What was compared, and means over its tokens of absolute differences in log-probability.

    ``effect`` is what the adapter changes in the engine, ``error`` how far the engine with it is from
    PEFT with it, ``noise`` how far the engine's base is from PEFT's.
    """

    sequences: int
    tokens: int
    effect: float
    error: float
    noise: float


def judge_logits(
    reference: Mapping[str, Logps],
    base: Logps,
    adapted: Logps,
    *,
    least_tolerance: float = LEAST_TOLERANCE,
) -> ProbeResult:
    """Compare what an engine computes with PEFT's ``base`` and ``adapted`` in ``reference``.

    Raises ``GateError`` if the adapter does nothing in PEFT or in the engine, if the engine's base is
    another one, or if the engine computes another adapter.
    """
    moved = _difference(reference["adapted"], reference["base"])
    result = ProbeResult(
        sequences=len(base),
        tokens=sum(map(len, base)),
        effect=_difference(adapted, base),
        error=_difference(adapted, reference["adapted"]),
        noise=_difference(base, reference["base"]),
    )
    if moved == 0.0:
        raise GateError(
            f"the adapter changes none of {result.tokens} log-probabilities in PEFT itself: it was not "
            "trained; raise learning_rate or epochs"
        )
    if result.effect == 0.0:
        raise GateError(
            f"the adapter changes none of {result.tokens} log-probabilities in the engine, and moves them by "
            f"{moved:.3f} a token in PEFT: the engine knows no layer by the names in "
            "adapter_model.safetensors; train it again on the model that is served"
        )
    if not result.noise <= MOST_NOISE:
        raise GateError(
            f"without the adapter the engine differs from PEFT by {result.noise:.3f} a token, more than "
            f"{MOST_NOISE:g}: it serves another base than the adapter was trained on; serve that one"
        )
    tolerated = max(NOISE_FACTOR * result.noise, EFFECT_SHARE * moved, least_tolerance)
    if not result.error <= tolerated:
        raise GateError(
            f"with the adapter the engine differs from PEFT by {result.error:.3f} a token, more than "
            f"{tolerated:.3f}, where the base differs by {result.noise:.3f} and the adapter moves "
            f"{moved:.3f}: the engine computes another adapter; compare r, lora_alpha and use_rslora in "
            "adapter_config.json and the layers in adapter_model.safetensors with what was trained"
        )
    return result


def _difference(one: Logps, other: Logps) -> float:
    """The mean over all tokens of the absolute difference."""
    pairs = [abs(a - b) for s, t in zip(one, other, strict=True) for a, b in zip(s, t, strict=True)]
    return sum(pairs) / len(pairs)
