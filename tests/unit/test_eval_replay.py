"""A routed system replayed: what it gets, pays and loses, and what bounds it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from largeforge_ray.errors import ConfigError, DataError
from largeforge_ray.evaluate import bootstrap
from largeforge_ray.evaluate.matrix import Matrix
from largeforge_ray.evaluate.replay import (
    apgr,
    baselines,
    budget_curve,
    budget_gain,
    calls_for,
    cascade,
    choose,
    decide_all,
    frontier,
    oracle,
    replay,
    undominated,
)
from largeforge_ray.routing.experts import EngineOptions, Expert, PolicyConfig, Price, Territory
from largeforge_ray.routing.keyword import KeywordScorer
from largeforge_ray.routing.policy import Policy


@pytest.fixture(autouse=True, scope="module")
def few_resamples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap, "RESAMPLES", 200)
        yield


def made(quality, cost=None, confidence=None, tasks=None, prompts=None) -> Matrix:
    quality = np.asarray(quality, float)
    n, e = quality.shape
    nothing = np.full((n, e), np.nan)
    cost = nothing if cost is None else np.broadcast_to(np.asarray(cost, float), (n, e))
    confidence = nothing if confidence is None else np.asarray(confidence, float)
    names, items = tuple(f"e{i}" for i in range(e)), tuple(f"{i:04d}" for i in range(n))
    tasks, prompts = tuple(("t",) * n if tasks is None else tasks), tuple(prompts or ("",) * n)
    return Matrix(items, prompts, tasks, (None,) * n, names, quality, cost, confidence, np.ones((n, e)))


@st.composite
def matrices(draw, least_experts=2):
    n, e = draw(st.integers(2, 12)), draw(st.integers(least_experts, 4))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    quality = rng.integers(0, 2, (n, e)) if draw(st.booleans()) else rng.random((n, e))
    cost = rng.permutation(e) + 1.0
    return made(quality, cost, rng.random((n, e)), rng.choice(["s", "t"], n).tolist()), rng


QUALITY = [[1, 1], [0, 1], [1, 0], [0, 0]]


def test_by_hand() -> None:
    matrix = made(QUALITY, [1.0, 10.0])
    found = replay(matrix, choose(matrix, [0, 1, 1, 1]), confidence=0.9)
    assert found.quality.mean == 0.5
    assert found.cost == pytest.approx(31 / 4)
    assert found.seconds == 1.0
    assert found.calls == {"e0": 0.25, "e1": 0.75}
    assert (found.misrouted, found.pool_gap) == (0.25, 0.25)


def test_what_has_no_price_has_no_cost() -> None:
    matrix = made(QUALITY, [np.nan, 1.0])
    assert replay(matrix, choose(matrix, 0)).cost is None
    assert replay(matrix, choose(matrix, 1)).cost == 1.0


def test_an_answer_that_is_missing_cannot_be_replayed() -> None:
    matrix = made([[1, np.nan], [1, 0]])
    with pytest.raises(DataError, match=r"1 items lack the answer of an expert; replay Matrix.complete\(\)"):
        replay(matrix, choose(matrix, 0))
    assert replay(matrix.complete(), choose(matrix.complete(), 0)).quality.mean == 1.0


@given(matrices(), st.data())
def test_nothing_beats_the_oracle_and_the_parts_of_a_loss_add_up(drawn, data) -> None:
    matrix, _ = drawn
    n, e = matrix.quality_NE.shape
    shares = choose(matrix, np.array(data.draw(st.lists(st.integers(0, e - 1), min_size=n, max_size=n))))
    best = replay(matrix, oracle(matrix))
    for one in (replay(matrix, shares), replay(matrix, np.full((n, e), 1 / e))):
        assert best.quality.mean >= one.quality.mean - 1e-12
        assert one.quality.mean + one.misrouted + one.pool_gap == pytest.approx(1.0)
        assert one.pool_gap == pytest.approx(1 - best.quality.mean)
        assert one.misrouted >= -1e-12
        assert sum(one.calls.values()) == pytest.approx(1.0)
    assert best.misrouted == pytest.approx(0.0)


@given(matrices())
def test_the_oracle_is_the_cheapest_of_the_best(drawn) -> None:
    matrix, _ = drawn
    for n, chosen in enumerate(oracle(matrix).argmax(axis=1)):
        best = matrix.quality_NE[n] == matrix.quality_NE[n].max()
        assert best[chosen]
        assert matrix.cost_NE[n, chosen] == matrix.cost_NE[n][best].min()


def test_baselines_choose_by_what_other_folds_showed() -> None:
    # e1 is best on s and e0 on t; in fold 1 alone e0 would look best on s.
    quality = [[0, 1]] * 6 + [[1, 0]] * 4 + [[1, 0], [0, 1]]
    tasks, folds = ["s"] * 6 + ["t"] * 4 + ["s", "t"], np.array([0] * 10 + [1] * 2)
    found = baselines(made(quality, [1.0, 2.0], tasks=tasks), folds)
    assert found["best by task"][-2:].tolist() == [[0, 1], [1, 0]]
    assert found["best single"][-2:].tolist() == [[0, 1], [0, 1]]
    assert found["random"].tolist() == [[0.5, 0.5]] * 12
    # A tie goes to the cheaper one, a task of no other fold to the best over all.
    assert found["best single"][:10].tolist() == [[1, 0]] * 10
    alone = baselines(made([[1, 0], [1, 0], [0, 1]], tasks=["s", "s", "t"]), np.array([0, 0, 1]))
    assert alone["best by task"][2].tolist() == [1, 0]


def test_a_cascade_pays_for_every_answer_it_asks_for() -> None:
    matrix = made([[1, 1], [0, 1], [0, 1]], [1.0, 10.0], [[0.9, 0.1], [0.2, 0.1], [np.nan, 0.1]])
    shares, asked = cascade(matrix, 0.5)
    assert asked.tolist() == [[1, 0], [1, 1], [1, 0]]
    found = replay(matrix, shares, asked_NE=asked)
    assert found.cost == pytest.approx((1 + 11 + 1) / 3)
    assert found.quality.mean == pytest.approx(2 / 3)
    with pytest.raises(ConfigError, match="is outside"):
        cascade(matrix, 1.5)


@given(matrices())
def test_a_stricter_cascade_asks_more(drawn) -> None:
    matrix, _ = drawn
    asked = [cascade(matrix, least)[1] for least in (0.0, 0.3, 0.7, 1.0)]
    assert (asked[0].sum(axis=1) == 1).all()
    for fewer, more in pairwise(asked):
        assert (more >= fewer).all()


def test_policies_decide_by_prompt() -> None:
    experts = tuple(
        Expert(
            name, "live", "m" * 16, EngineOptions(64), price=Price(0.0, price), territory=Territory((), words)
        )
        for name, price, words in (("e0", 1.0, {}), ("e1", 2.0, {"integral": 1.0}))
    )
    policy = Policy(PolicyConfig("keyword", "e0"), experts, KeywordScorer(experts))
    matrix = made([[1, 0], [0, 1]], prompts=("a colour", "an integral"))
    chosen, confidence = decide_all(policy, matrix)
    assert chosen.tolist() == [0, 1]
    assert ((confidence >= 0) & (confidence <= 1)).all()
    assert replay(matrix, choose(matrix, chosen)).quality.mean == 1.0


def test_undominated_by_hand() -> None:
    points = [(1.0, 0.5), (2.0, 0.5), (2.0, 0.7), (3.0, 0.6), (1.0, 0.5)]
    assert undominated(points) == [True, False, True, False, True]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_the_cheapest_best_point_is_undominated_and_kept_ones_rise(points) -> None:
    kept = sorted({p for p, flag in zip(points, undominated(points), strict=True) if flag})
    assert kept
    assert all(a[1] < b[1] for a, b in pairwise(kept))


@settings(deadline=None, max_examples=30)
@given(matrices())
def test_the_frontier_holds_every_expert_and_only_the_oracle_is_above_it(drawn) -> None:
    matrix, _ = drawn
    found = frontier(matrix, confidence=0.95)
    points = {p["name"]: p for p in found["points"]}
    assert {*matrix.experts, "random", "best single", "best by task", "oracle"} <= points.keys()
    assert points["oracle"]["quality"] >= max(p["quality"] for p in found["points"]) - 1e-12
    assert any(p["undominated"] for p in found["points"])
    assert not points["oracle"]["undominated"]
    assert all(
        p["low"] - 1e-9 <= p["quality"] <= p["high"] + 1e-9 for p in found["points"] if p["low"] == p["high"]
    )


def test_free_experts_are_compared_by_their_seconds() -> None:
    found = frontier(made(QUALITY, [0.0, 0.0]), confidence=0.95)
    assert found["unit"] == "seconds"
    assert {p["cost"] for p in found["points"]} == {1.0}


def test_apgr_by_hand_and_its_marks() -> None:
    quality = np.array([[0, 1], [0, 1], [1, 1], [1, 1]], float)
    # The two that gain come first: 0, .5, 1, 1, 1 of the gap at 0, 1/4 ... 1.
    first, last = np.array([4.0, 3.0, 2.0, 1.0]), np.array([1.0, 2.0, 3.0, 4.0])
    assert apgr([(first, quality)]) == pytest.approx(np.trapezoid([0, 0.5, 1, 1, 1], dx=0.25))
    assert apgr([(last, quality)]) == pytest.approx(np.trapezoid([0, 0, 0, 0.5, 1], dx=0.25))
    assert calls_for(0.5, [(first, quality)]) == pytest.approx(0.25)
    assert calls_for(1.0, [(last, quality)]) == pytest.approx(1.0)


def test_random_scores_close_half_of_the_gap() -> None:
    rng = np.random.default_rng(0)
    quality = (rng.random((20_000, 2)) < [0.5, 0.8]).astype(float)
    assert apgr([(rng.random(20_000), quality)]) == pytest.approx(0.5, abs=0.03)


@given(matrices())
def test_no_order_beats_that_of_the_true_differences(drawn) -> None:
    matrix, rng = drawn
    quality = matrix.quality_NE[:, :2][:, np.argsort(matrix.quality_NE[:, :2].mean(axis=0))]
    if quality[:, 1].sum() > quality[:, 0].sum():
        best = apgr([(quality[:, 1] - quality[:, 0], quality)])
        assert best >= apgr([(rng.random(len(quality)), quality)]) - 1e-9
        assert best >= 0.5 - 1e-9


@given(st.integers(0, 10_000), st.sampled_from([(1.0, 10.0), (0.5, 0.7), (0.0, 3.0)]))
def test_for_two_experts_the_budgets_gain_is_apgr(seed: int, prices) -> None:
    rng = np.random.default_rng(seed)
    splits = [(rng.random((n, 2)), (rng.random((n, 2)) < [0.3, 0.9]).astype(float)) for n in (40, 25)]
    pair = [(score[:, 1] - score[:, 0], quality) for score, quality in splits]
    assert budget_gain(splits, prices) == pytest.approx(apgr(pair))


@given(matrices())
def test_for_no_budget_do_other_scores_get_more_than_the_true_qualities(drawn) -> None:
    matrix, rng = drawn
    quality, price = matrix.quality_NE, matrix.cost_NE[0]
    budgets = np.linspace(price.min(), price.max(), 20)
    best = np.interp(budgets, *budget_curve(quality, quality, price))
    other = np.interp(budgets, *budget_curve(rng.random(quality.shape), quality, price))
    assert (best >= other - 1e-9).all()


@given(matrices())
def test_a_budget_runs_from_the_cheapest_expert_for_all_to_the_dearest(drawn) -> None:
    matrix, rng = drawn
    quality, price = matrix.quality_NE, matrix.cost_NE[0]
    spent, got = budget_curve(rng.random(quality.shape), quality, price)
    assert (np.diff(spent) > 0).all()
    assert (spent[0], spent[-1]) == pytest.approx((price.min(), price.max()))
    assert got[0] == pytest.approx(quality[:, price.argmin()].mean())
    assert got[-1] == pytest.approx(quality[:, price.argmax()].mean())


@given(matrices(least_experts=3))
def test_true_qualities_close_at_least_half_of_a_gap_between_many(drawn) -> None:
    matrix, _ = drawn
    gain = budget_gain([(matrix.quality_NE, matrix.quality_NE)], matrix.cost_NE[0])
    quality, price = matrix.quality_NE.mean(axis=0), matrix.cost_NE[0]
    if quality.argmax() != price.argmin() and quality.max() > quality[price.argmin()]:
        assert gain is not None
        assert gain >= 0.5 - 1e-9


def test_there_is_no_gap_where_the_cheapest_is_the_best() -> None:
    quality = np.array([[1, 0], [1, 1]], float)
    assert budget_gain([(quality, quality)], [1.0, 2.0]) is None
    assert budget_gain([(quality, quality)], [1.0, 1.0]) is None
