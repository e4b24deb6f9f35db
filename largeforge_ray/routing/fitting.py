"""Learning to predict each expert's quality from an outcome matrix; settings are chosen by cross-validation.

N prompts, E experts, F features: B buckets of words, then X dense ones, which are D dimensions of the
embedding and S signs of the surface.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from largeforge_ray.config.routing import Blend, Factors, Knn, Learner, Logistic
from largeforge_ray.routing.encoder import Floats, unit
from largeforge_ray.routing.learned import EMBEDDING_SCALE, SURFACE_SCALE, Linear, Neighbours, Seen
from largeforge_ray.routing.traits import BUCKETS

FOLDS = 3
PENALTIES = (1e-4, 3e-4, 1e-3, 3e-3)
COUNTS = (10, 30, 100, 200)
STEPS = 100
"""Of L-BFGS; what comes after them only fits noise."""

Predictor = Linear | Neighbours


def fit(
    learner: Learner, seen: Sequence[Seen], quality_NE: Floats, *, seed: int = 0
) -> tuple[Predictor, ...]:
    """The predictors of a learner, whose mean is its prediction."""
    if isinstance(learner, Blend):
        parts = (Logistic(), Knn())
        return tuple(one for part in parts for one in fit(part, seen, quality_NE, seed=seed))
    if isinstance(learner, Knn):
        counts = (learner.neighbours,) if learner.neighbours else COUNTS
        return (_best(counts, seen, quality_NE, _fit_neighbours, seed),)
    penalties = (learner.l2,) if learner.l2 else PENALTIES
    if isinstance(learner, Factors):
        by_rank = partial(_fit_factors, rank=learner.rank, seed=seed)
        return (_best(penalties, seen, quality_NE, by_rank, seed),)
    # Whether more than words helps depends on the prompts: few words say little, and meaning alone says more.
    settings = list(product(penalties, (True, False)))
    return (_best(settings, seen, quality_NE, _fit_logistic, seed),)


def _best(
    settings: Sequence[Any],
    seen: Sequence[Seen],
    quality_NE: Floats,
    fit_one: Callable[[Sequence[Seen], Floats, Any], Predictor],
    seed: int,
) -> Predictor:
    """Fitted to all with the setting that errs least on folds it was not fitted to.

    What counts is the differences between experts: how hard a prompt is for all of them decides nothing.
    """
    folds = np.array_split(np.random.default_rng(seed).permutation(len(seen)), FOLDS)
    errors = dict.fromkeys(settings, 0.0)
    for fold in folds if len(settings) > 1 else ():
        rest = np.setdiff1d(np.arange(len(seen)), fold)
        for setting in settings:
            predictor = fit_one([seen[i] for i in rest], quality_NE[rest], setting)
            error_NE = np.stack([predictor.predict(seen[i]) for i in fold]) - quality_NE[fold]
            errors[setting] += float(((error_NE - error_NE.mean(axis=1, keepdims=True)) ** 2).sum())
    return fit_one(seen, quality_NE, min(settings, key=errors.__getitem__))


def _fit_neighbours(seen: Sequence[Seen], quality_NE: Floats, count: int) -> Neighbours:
    scales = _scales(seen)
    rows_NX = unit(_dense_rows(seen, scales)).astype(np.float16)
    centre, spread = scales.surface_centre_S, scales.surface_spread_S
    return Neighbours(
        rows_NX, quality_NE.astype(np.float32), scales.centre_D, centre, spread, np.array([count])
    )


@dataclass(frozen=True, slots=True)
class _Scales:
    """What the features of the prompts learnt from are set to scale by."""

    rarity_B: Floats
    centre_D: Floats
    surface_centre_S: Floats
    surface_spread_S: Floats

    def linear(self, words_BE: Any, dense_XE: Any, bias_E: Any) -> Linear:
        dimensions = len(self.centre_D)
        return Linear(
            rarity_B=self.rarity_B,
            words_BE=words_BE.astype(np.float32),
            centre_D=self.centre_D,
            meaning_DE=dense_XE[:dimensions].astype(np.float32),
            surface_centre_S=self.surface_centre_S,
            surface_spread_S=self.surface_spread_S,
            surface_SE=dense_XE[dimensions:].astype(np.float32),
            bias_E=bias_E.astype(np.float32),
        )


def _scales(seen: Sequence[Seen]) -> _Scales:
    found = np.bincount(np.concatenate([one.buckets for one in seen]), minlength=BUCKETS)
    rarity_B = np.log((1 + len(seen)) / (1 + found)) + 1
    surface_NS = np.stack([one.surface_S for one in seen])
    centre_D = np.stack([one.vector_D for one in seen]).mean(axis=0)
    spread_S = surface_NS.std(axis=0) + 1e-6
    return _Scales(rarity_B.astype(np.float32), centre_D, surface_NS.mean(axis=0), spread_S)


def _dense_rows(seen: Sequence[Seen], scales: _Scales) -> Any:
    meaning = (np.stack([one.vector_D for one in seen]) - scales.centre_D) * EMBEDDING_SCALE
    surface = np.stack([one.surface_S for one in seen]) - scales.surface_centre_S
    return np.hstack([meaning, surface / scales.surface_spread_S * SURFACE_SCALE])


def _word_rows(seen: Sequence[Seen], scales: _Scales) -> Any:
    import scipy.sparse as sparse

    ends = np.cumsum([0, *(len(one.buckets) for one in seen)])
    places = np.concatenate([one.buckets for one in seen])
    weights = [scales.rarity_B[one.buckets] for one in seen]
    values = np.concatenate([w / (np.linalg.norm(w) or 1.0) for w in weights])
    return sparse.csr_matrix((values, places, ends), shape=(len(seen), BUCKETS))


def _fit_logistic(seen: Sequence[Seen], quality_NE: Floats, setting: tuple[float, bool]) -> Linear:
    import scipy.sparse as sparse

    (l2, all_traits), scales = setting, _scales(seen)
    dense_NX = _dense_rows(seen, scales) * all_traits
    rows_NF = sparse.hstack([_word_rows(seen, scales), sparse.csr_matrix(dense_NX)]).tocsr()
    made = [_descend_logistic(rows_NF, quality_N, l2) for quality_N in quality_NE.T]
    weights_FE, bias_E = np.stack([w for w, _ in made], axis=1), np.array([b for _, b in made])
    return scales.linear(weights_FE[:BUCKETS], weights_FE[BUCKETS:], bias_E)


def _descend_logistic(rows_NF: Any, quality_N: Any, l2: float) -> tuple[Any, float]:
    from scipy.optimize import minimize

    features = rows_NF.shape[1]
    # The penalty keeps the weight of what no prompt has at nothing, and most buckets are empty.
    used_U = np.unique(rows_NF.indices)
    rows_NF = rows_NF[:, used_U]
    columns_FN = rows_NF.T.tocsr()

    def loss(at: Any) -> tuple[float, Any]:
        weights_F, logits_N = at[:-1], rows_NF @ at[:-1] + at[-1]
        entropy = np.logaddexp(0, logits_N) - quality_N * logits_N
        error_N = (1 / (1 + np.exp(-logits_N)) - quality_N) / len(quality_N)
        slope = np.append(columns_FN @ error_N + l2 * weights_F, error_N.sum())
        return float(entropy.mean() + l2 / 2 * weights_F @ weights_F), slope

    start = np.zeros(rows_NF.shape[1] + 1)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": STEPS}).x
    weights_F = np.zeros(features)
    weights_F[used_U] = found[:-1]
    return weights_F, float(found[-1])


def _fit_factors(seen: Sequence[Seen], quality_NE: Floats, l2: float, *, rank: int, seed: int) -> Linear:
    """Experts E x R and features F x R; what is kept is their product, as both are fixed from then on."""
    from scipy.optimize import minimize

    scales = _scales(seen)
    rows_NF = _dense_rows(seen, scales)
    features, experts = rows_NF.shape[1], quality_NE.shape[1]
    split = features * rank

    def loss(at: Any) -> tuple[float, Any]:
        factors_FR, experts_ER = at[:split].reshape(features, rank), at[split:-experts].reshape(experts, rank)
        projected_NR = rows_NF @ factors_FR
        logits_NE = projected_NR @ experts_ER.T + at[-experts:]
        error_NE = (1 / (1 + np.exp(-logits_NE)) - quality_NE) / quality_NE.size
        entropy = (np.logaddexp(0, logits_NE) - quality_NE * logits_NE).mean()
        slopes = (
            rows_NF.T @ (error_NE @ experts_ER) + l2 * factors_FR,
            error_NE.T @ projected_NR + l2 * experts_ER,
            error_NE.sum(axis=0),
        )
        weights = at[:-experts]
        return float(entropy + l2 / 2 * weights @ weights), np.concatenate([s.ravel() for s in slopes])

    # Zeros are a saddle: neither factor moves while the other is nothing.
    start = np.random.default_rng(seed).normal(0, 0.1, split + experts * rank + experts)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": STEPS}).x
    factors_FR, experts_ER = (
        found[:split].reshape(features, rank),
        found[split:-experts].reshape(experts, rank),
    )
    return scales.linear(np.zeros((BUCKETS, experts)), factors_FR @ experts_ER.T, found[-experts:])
