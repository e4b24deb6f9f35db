"""How good a policy's choices are on prompts it has not seen, and what they cost.

N prompts, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from largeforge_ray.routing.experts import Router
from largeforge_ray.routing.policy import Observation, Policy

BINS = 10
CURVE_POINTS = 21


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Prompts, and the quality 0..1 of each expert's answer; of labelled prompts 1 for the expert named."""

    experts: tuple[str, ...]
    texts: tuple[str, ...]
    quality_NE: Any


def measure(policy: Policy, router: Router, held_out: HeldOut) -> dict[str, Any]:
    """Accuracy, confusion, calibration and the cost-quality curve of a policy.

    ``accuracy`` is the share of prompts given to an expert that no other one outdoes; ``confusion`` counts
    prompts by the best expert, the cheapest of several, and by the one chosen.
    """
    scorer = _Remembered(policy, held_out.texts)
    chosen_N, confidence_N = _decide(policy, scorer, router, held_out)
    prices_E = _prices(router, held_out.experts)
    every_N, best_N = np.arange(len(chosen_N)), _cheapest_best(held_out.quality_NE, prices_E)
    quality_N = held_out.quality_NE[every_N, chosen_N]
    confusion_EE = np.zeros((len(held_out.experts), len(held_out.experts)), int)
    np.add.at(confusion_EE, (best_N, chosen_N), 1)
    return {
        "held_out": len(chosen_N),
        "experts": list(held_out.experts),
        "accuracy": float((quality_N == held_out.quality_NE.max(axis=1)).mean()),
        "quality": float(quality_N.mean()),
        "confusion": confusion_EE.tolist(),
        "calibration": calibration(confidence_N, quality_N),
        "curve": _curve(scorer, router, held_out, prices_E),
        **_bounds(held_out.quality_NE, prices_E, held_out.experts, best_N),
    }


def calibration(confidence_N: Any, quality_N: Any) -> dict[str, Any]:
    """ECE, Naeini et al. 2015: how far confidence and quality lie apart, by ten bins of equal width."""
    bins_N = np.minimum((np.asarray(confidence_N) * BINS).astype(int), BINS - 1)
    bins, apart = [], 0.0
    for place in range(BINS):
        inside = bins_N == place
        if inside.any():
            confidence, quality = float(confidence_N[inside].mean()), float(quality_N[inside].mean())
            apart += inside.mean() * abs(confidence - quality)
            bins.append({"n": int(inside.sum()), "confidence": confidence, "quality": quality})
    return {"ece": float(apart), "bins": bins}


def _curve(scorer: _Remembered, router: Router, held_out: HeldOut, prices_E: Any) -> list[dict[str, float]]:
    """From what is best whatever it costs to what is cheapest; one point if all prices are equal."""
    steps = np.diff(np.unique(prices_E))
    # At this weight the least difference in price outweighs any difference in quality.
    most = 1.0 / steps.min() if len(steps) else 0.0
    points: list[dict[str, float]] = []
    for weight in np.unique(most * np.linspace(0, 1, CURVE_POINTS) ** 2):
        config = replace(router.policy, cost_weight=float(weight))
        chosen_N, _ = _decide(Policy(config, router.live, scorer), scorer, router, held_out)
        point = _point(held_out.quality_NE, prices_E, chosen_N)
        points.append({"cost_weight": float(weight)} | point)
    return points


def _bounds(quality_NE: Any, prices_E: Any, experts: Sequence[str], best_N: Any) -> dict[str, Any]:
    """What needs no policy: each expert for everything, one by lot, and the best for each prompt."""
    alone = {name: _point(quality_NE, prices_E, np.full(len(best_N), e)) for e, name in enumerate(experts)}
    by_lot = {"cost": float(prices_E.mean()), "quality": float(quality_NE.mean())}
    return {"single": alone, "random": by_lot, "oracle": _point(quality_NE, prices_E, best_N)}


def _point(quality_NE: Any, prices_E: Any, chosen_N: Any) -> dict[str, float]:
    quality_N = quality_NE[np.arange(len(chosen_N)), chosen_N]
    return {"cost": float(prices_E[chosen_N].mean()), "quality": float(quality_N.mean())}


def _cheapest_best(quality_NE: Any, prices_E: Any) -> Any:
    cheap_first_E = np.argsort(prices_E, kind="stable")
    return cheap_first_E[quality_NE[:, cheap_first_E].argmax(axis=1)]


def _prices(router: Router, experts: Sequence[str]) -> Any:
    by_name = {expert.name: expert.price.per_1k_tokens for expert in router.live}
    return np.array([by_name[name] for name in experts])


def _decide(policy: Policy, scorer: _Remembered, router: Router, held_out: HeldOut) -> tuple[Any, Any]:
    decide = Policy(policy.config, router.live, scorer).decide
    made = [decide(Observation(str(i), (text,))) for i, text in enumerate(held_out.texts)]
    places = {name: e for e, name in enumerate(held_out.experts)}
    return np.array([places[d.chosen] for d in made]), np.array([d.confidence for d in made])


class _Remembered:
    """A scorer that was asked once for every text: only the rule above it differs along the curve."""

    def __init__(self, policy: Policy, texts: Sequence[str]) -> None:
        self.name = policy.scorer.name
        self._scores = {text: policy.scorer.score(text) for text in texts}

    def score(self, text: str) -> tuple[dict[str, float], Callable[[str], str]]:
        return self._scores[text]
