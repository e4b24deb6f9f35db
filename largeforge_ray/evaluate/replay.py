"""A routed system replayed from one outcome matrix: what a policy would have got and paid.

A policy's choices are shares N x E: the part of each item that goes to each expert, all of it to one unless
the policy draws lots. N items, E experts, K steps of a budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from largeforge_ray.errors import DataError
from largeforge_ray.evaluate.bootstrap import Interval, interval
from largeforge_ray.evaluate.matrix import Floats, Matrix
from largeforge_ray.routing.cascade import escalates
from largeforge_ray.routing.policy import Observation, Policy

RESAMPLES = 1000
CASCADES = 9


@dataclass(frozen=True, slots=True)
class Replayed:
    """Means over items. ``calls`` is how many each expert answers of one item; a cascade makes several.

    Of what is lost, ``1 - quality``, ``misrouted`` is the regret: what each item's best expert would have
    saved. ``pool_gap`` is what no expert can. ``cost`` and ``seconds`` are None if an answer's is unknown.
    """

    quality: Interval
    cost: float | None
    seconds: float | None
    calls: dict[str, float]
    misrouted: float
    pool_gap: float


def replay(
    matrix: Matrix, shares_NE: Any, *, asked_NE: Any = None, confidence: float = 0.95, seed: int = 0
) -> Replayed:
    """What ``shares_NE`` comes to; ``asked_NE`` are the calls paid for, if not those of the answers kept.

    Raises ``DataError`` unless every expert answered every item.
    """
    missing = int(np.isnan(matrix.quality_NE).any(axis=1).sum())
    if missing:
        raise DataError(f"{missing} items lack the answer of an expert; replay Matrix.complete()")
    asked_NE = shares_NE if asked_NE is None else asked_NE
    quality_N = (shares_NE * matrix.quality_NE).sum(axis=1)
    best_N = matrix.quality_NE.max(axis=1)
    return Replayed(
        quality=interval([quality_N], confidence=confidence, seed=seed),
        cost=_paid(asked_NE, matrix.cost_NE),
        seconds=_paid(asked_NE, matrix.seconds_NE),
        calls=dict(zip(matrix.experts, asked_NE.mean(axis=0).tolist(), strict=True)),
        misrouted=float((best_N - quality_N).mean()),
        pool_gap=float(1 - best_N.mean()),
    )


def choose(matrix: Matrix, chosen_N: Any) -> Floats:
    """The shares of one chosen column for each item, or of one for all."""
    shares_NE: Floats = np.eye(len(matrix.experts))[np.broadcast_to(chosen_N, len(matrix.items))]
    return shares_NE


def decide_all(policy: Policy, matrix: Matrix) -> tuple[Any, Any]:
    """The column a policy chooses for each prompt, and how sure it is, N and N."""
    observed = (Observation(item, (p,)) for item, p in zip(matrix.items, matrix.prompts, strict=True))
    made = [policy.decide(each) for each in observed]
    return np.array([matrix.expert(d.chosen) for d in made]), np.array([d.confidence for d in made])


def oracle(matrix: Matrix) -> Floats:
    """The cheapest of the best experts for each item: what no router can beat."""
    return choose(matrix, _cheapest_best(matrix.quality_NE, matrix.cost_NE))


def baselines(matrix: Matrix, folds_N: Any) -> dict[str, Floats]:
    """Choices by name that need no router.

    ``random`` draws lots; ``best single`` and ``best by task`` choose in each fold the expert that is best in
    the other folds, over all or on the item's task (over all if it is in no other fold); and the ``oracle``.
    """
    single_N, by_task_N = np.zeros((2, len(matrix.items)), np.int64)
    task_N = np.unique(matrix.tasks, return_inverse=True)[1]
    for fold in np.unique(folds_N):
        here_N, others_N = folds_N == fold, folds_N != fold
        single_N[here_N] = _best_of(matrix, others_N if others_N.any() else here_N)
        for task in np.unique(task_N[here_N]):
            learnt_N = others_N & (task_N == task)
            placed_N = here_N & (task_N == task)
            by_task_N[placed_N] = _best_of(matrix, learnt_N) if learnt_N.any() else single_N[placed_N]
    return {
        "random": np.full(matrix.quality_NE.shape, 1 / len(matrix.experts)),
        "best single": choose(matrix, single_N),
        "best by task": choose(matrix, by_task_N),
        "oracle": oracle(matrix),
    }


def cascade(matrix: Matrix, least: float) -> tuple[Floats, Floats]:
    """Shares and calls, both N x E, of asking from cheap to dear until an answer is sure enough.

    An expert without a confidence is believed. Raises ``ConfigError`` for a ``least`` outside 0..1.
    """
    asked_NE, last_N = np.zeros(matrix.quality_NE.shape), np.zeros(len(matrix.items), np.int64)
    going_N = np.ones(len(matrix.items), bool)
    for expert in np.argsort(_mean_cost(matrix), kind="stable"):
        last_N[going_N] = expert
        asked_NE[going_N, expert] = 1.0
        going_N = going_N & escalates(_sure(matrix.confidence_NE[:, expert]), least)
    return choose(matrix, last_N), asked_NE


def undominated(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which (cost, quality) no other one beats in one and matches in the other."""
    return [
        not any(c <= cost and q >= quality and (c, q) != (cost, quality) for c, q in points)
        for cost, quality in points
    ]


def frontier(matrix: Matrix, *, confidence: float, seed: int = 0) -> dict[str, Any]:
    """What the experts can come to together: each alone, the baselines, and cascades by their confidence.

    ``unit`` of the points' ``cost`` is seconds if nothing has a price. ``undominated`` leaves the oracle out.
    """
    unit = "cost" if np.nansum(matrix.cost_NE) > 0 else "seconds"
    if unit == "seconds":
        matrix = matrix.priced(matrix.seconds_NE)
    folds_N = np.random.default_rng(seed).permutation(len(matrix.items)) % 2
    made: list[tuple[str, str, Any, Any]] = [
        *(("expert", name, choose(matrix, e), None) for e, name in enumerate(matrix.experts)),
        *((_kind(name), name, shares_NE, None) for name, shares_NE in baselines(matrix, folds_N).items()),
        *(("cascade", f"{least:.3f}", *cascade(matrix, least)) for least in _leasts(matrix)),
    ]
    points = []
    for kind, name, shares_NE, asked_NE in made:
        found = asdict(replay(matrix, shares_NE, asked_NE=asked_NE, confidence=confidence, seed=seed))
        spread = found.pop("quality")
        scored = {"quality": spread["mean"], "low": spread["low"], "high": spread["high"]}
        points.append({"kind": kind, "name": name, **scored, **found, "undominated": False})
    real = [p for p in points if p["kind"] != "bound" and p["cost"] is not None]
    for point, flag in zip(real, undominated([(p["cost"], p["quality"]) for p in real]), strict=True):
        point["undominated"] = flag
    return {"unit": unit, "n": len(matrix.items), "experts": list(matrix.experts), "points": points}


def gains(score_N: Any, quality_N2: Any) -> Any:
    """Right answers gained when the first 0, 1, ... N prompts by score go to the strong expert."""
    difference = quality_N2[:, 1] - quality_N2[:, 0]
    return np.append(0.0, np.cumsum(difference[np.argsort(-score_N, kind="stable")]))


def apgr(splits: Sequence[tuple[Any, Any]]) -> float:
    """Of (score N, quality N x 2), the weak expert first: the mean, over the share of calls to the strong
    one, of how much of the gap between the two is closed. Ong et al. 2024 (arXiv:2406.18665).

    Area under the gains over the gaps of all splits, so that a split with a small gap weighs little.
    """
    curves = [gains(score, quality) for score, quality in splits]
    area = sum(np.trapezoid(curve, dx=1 / (len(curve) - 1)) for curve in curves)
    return float(area / sum(curve[-1] for curve in curves))


def calls_for(share: float, splits: Sequence[tuple[Any, Any]]) -> float:
    """Least share of calls to the strong expert that closes ``share`` of the gap, over all splits."""
    at = np.linspace(0, 1, 1001)
    curves = [gains(score, quality) for score, quality in splits]
    mean = np.sum([np.interp(at, np.linspace(0, 1, len(curve)), curve) for curve in curves], axis=0)
    return float(at[np.argmax(mean >= share * mean[-1])])


def apgr_interval(
    splits: Sequence[tuple[Any, Any]], *, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """By resampling prompts within their splits."""
    rng = np.random.default_rng(seed)

    def resampled() -> list[tuple[Any, Any]]:
        picked = [rng.integers(0, len(score), len(score)) for score, _ in splits]
        return [(score[i], quality[i]) for (score, quality), i in zip(splits, picked, strict=True)]

    tail = (1 - confidence) / 2
    low, high = np.quantile([apgr(resampled()) for _ in range(RESAMPLES)], [tail, 1 - tail])
    return float(low), float(high)


def budget_curve(score_NE: Any, quality_NE: Any, price_E: Any) -> tuple[Any, Any]:
    """What is spent and got, K and K, means over items, as a budget grows from the cheapest expert for all.

    Each item climbs the upper hull of its (price, score), and the step of most score for its price comes
    first, wherever it is; the last are those that the scores advise against, and all end at the dearest
    expert. With the qualities as scores no order gets more for any budget.
    """
    every_N, dearest = np.arange(len(score_NE)), price_E.max()
    at_N = np.where(price_E == price_E.min(), score_NE, -np.inf).argmax(axis=1)
    start, steps = quality_NE[every_N, at_N].mean(), [np.zeros((3, 0))]
    slope_N = np.full(len(every_N), np.inf)
    while len(rows := np.flatnonzero(price_E[at_N] < dearest)):
        from_R = at_N[rows]
        dearer_RE = price_E - price_E[from_R, None]
        rise_RE = score_NE[rows] - score_NE[rows, from_R][:, None]
        slope_RE = np.where(dearer_RE > 0, rise_RE / np.where(dearer_RE > 0, dearer_RE, 1.0), -np.inf)
        slope_R = slope_RE.max(axis=1)
        # Of equally steep steps the longest, so that a hull has no corner on its straight parts.
        to_R = np.where(slope_RE == slope_R[:, None], price_E, -np.inf).argmax(axis=1)
        # Never steeper than the item's last step, or rounding would put it first.
        slope_N[rows] = np.minimum(slope_N[rows], slope_R)
        got_R = quality_NE[rows, to_R] - quality_NE[rows, from_R]
        steps.append(np.stack([slope_N[rows], price_E[to_R] - price_E[from_R], got_R]))
        at_N[rows] = to_R
    slope_K, price_K, got_K = np.concatenate(steps, axis=1)
    order_K = np.argsort(-slope_K, kind="stable")
    spent_K, sum_K = (np.append(0.0, np.cumsum(v[order_K]) / len(every_N)) for v in (price_K, got_K))
    return price_E.min() + spent_K, start + sum_K


def budget_gain(splits: Sequence[tuple[Any, Any]], price_E: Any) -> float | None:
    """Of (score N x E, quality N x E): how much of the gap between the cheapest expert and the best single
    one is closed, the mean over budgets between the prices of the two. For two experts this is ``apgr``.

    Lots between the two close half. None if the cheapest expert is the best.
    """
    price_E = np.asarray(price_E, np.float64)
    sums_E = np.sum([quality_NE.sum(axis=0) for _, quality_NE in splits], axis=0)
    best = int(_cheapest_best(sums_E[None], price_E[None])[0])
    width = price_E[best] - price_E.min()
    if width == 0:
        return None
    area = gap = 0.0
    for score_NE, quality_NE in splits:
        spent_K, got_K = budget_curve(score_NE, quality_NE, price_E)
        at_K = (spent_K - price_E.min()) / width
        inside_K = np.append(at_K[at_K < 1], 1.0)
        gained_K = np.interp(inside_K, at_K, got_K) - got_K[0]
        area += len(quality_NE) * float(np.trapezoid(gained_K, inside_K))
        gap += len(quality_NE) * float(quality_NE[:, best].mean() - got_K[0])
    return area / gap if gap > 0 else None


def _kind(name: str) -> str:
    return "bound" if name == "oracle" else "baseline"


def _paid(asked_NE: Any, cost_NE: Any) -> float | None:
    paid = float(np.where(asked_NE > 0, asked_NE * cost_NE, 0.0).sum(axis=1).mean())
    return paid if np.isfinite(paid) else None


def _cheapest_best(quality_NE: Any, cost_NE: Any) -> Any:
    cost_NE = np.nan_to_num(cost_NE)
    return np.where(quality_NE == quality_NE.max(axis=1, keepdims=True), cost_NE, np.inf).argmin(axis=1)


def _best_of(matrix: Matrix, where_N: Any) -> int:
    quality_E = matrix.quality_NE[where_N].mean(axis=0)
    return int(_cheapest_best(quality_E[None], _mean_cost(matrix)[None])[0])


def _mean_cost(matrix: Matrix) -> Any:
    return np.nan_to_num(matrix.cost_NE).mean(axis=0)


def _sure(confidence_N: Any) -> Any:
    return np.where(np.isnan(confidence_N), 1.0, confidence_N)


def _leasts(matrix: Matrix) -> list[float]:
    """Where to cut: evenly over the answers' own confidences, as each kind of item has its scale."""
    known = matrix.confidence_NE[np.isfinite(matrix.confidence_NE)]
    if not len(known) or len(matrix.experts) < 2:
        return []
    return [float(x) for x in np.unique(np.quantile(known, np.arange(1, CASCADES + 1) / (CASCADES + 1)))]
