"""Routing by outcomes: quality is predicted for every expert, measured, and weighed with price."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from largeforge_ray.config.routing import Blend, Factors, Knn, Logistic
from largeforge_ray.errors import ConfigError
from largeforge_ray.routing import Observation, parse_router
from largeforge_ray.routing.cascade import cheap_to_dear, confidence, escalates
from largeforge_ray.routing.encoder import unit
from largeforge_ray.routing.fitting import fit
from largeforge_ray.routing.learned import Column, Learned, LearnedScorer, load_learned, see
from largeforge_ray.routing.measure import HeldOut, calibration, measure
from largeforge_ray.routing.neural import Background, NeuralScorer
from largeforge_ray.routing.policy import Policy
from largeforge_ray.routing.traits import BUCKETS, MAX_CHARS, buckets, surface
from tests.unit.test_routing import ADAPTER, expert, router

EASY = ["name", "colour", "river", "city", "animal", "capital", "flag", "month"]
HARD = ["prove", "integral", "theorem", "lemma", "matrix", "tensor", "proof", "eigenvalue"]
METHODS = [Knn(), Logistic(), Factors(rank=4), Blend()]
PRICES = {"weak": 0.1, "strong": 1.0}


class Hashed:
    """An embedding of words by hash: texts with the same words lie near each other."""

    def embed(self, text: str):
        return self.embed_all([text])[0]

    def embed_all(self, texts: Sequence[str]):
        made = np.zeros((len(texts), 32), np.float32)
        for row, text in enumerate(texts):
            for word in text.split():
                made[row, zlib.crc32(word.encode()) % 32] += 1.0
        return unit(made)


def lessons(number: int, seed: int) -> tuple[list[str], np.ndarray]:
    """The strong expert answers nearly all, the weak one the easy ones."""
    rng = random.Random(seed)
    texts, quality = [], []
    for _ in range(number):
        hard = rng.random() < 0.5
        texts.append(" ".join(rng.choices(HARD if hard else EASY, k=5)))
        quality.append([float(rng.random() < (0.1 if hard else 0.9)), float(rng.random() < 0.95)])
    return texts, np.array(quality, np.float32)


def table(**policy):
    price = {n: {"price": {"per_1k_prompt": 0.0, "per_1k_completion": p}} for n, p in PRICES.items()}
    experts = expert("weak", **price["weak"]), expert("strong", ADAPTER, **price["strong"])
    return parse_router(
        router(*experts, kind="learned", fallback="weak", threshold=0.0) | {"policy": POLICY | policy}
    )


POLICY = {"kind": "learned", "fallback": "weak", "threshold": 0.0}
COLUMNS = Column("weak", None), Column("strong", ADAPTER[:16])


def learned(method, seed: int = 0) -> Learned:
    texts, quality = lessons(200, seed)
    return Learned(COLUMNS, fit(method, [see(text, Hashed()) for text in texts], quality))


def policy(model: Learned, routed) -> Policy:
    neural = NeuralScorer(routed.live, Hashed(), Background((), np.zeros((0, 32), np.float32)))
    return Policy(routed.policy, routed.live, LearnedScorer(routed.live, model, Hashed(), neural))


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_the_dear_expert_is_asked_for_what_the_cheap_one_gets_wrong(method, tmp_path) -> None:
    learned(method).save(tmp_path)
    routed = table(cost_weight=0.3)
    asked = policy(load_learned(tmp_path), routed)
    right = 0
    for text in lessons(60, seed=9)[0]:
        decision = asked.decide(Observation("r", (text,)))
        right += decision.chosen == ("strong" if text.split()[0] in HARD else "weak")
        assert 0.0 <= min(decision.scores.values()) <= max(decision.scores.values()) <= 1.0
    assert right >= 54


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_what_is_saved_predicts_the_same(method, tmp_path) -> None:
    model = learned(method)
    model.save(tmp_path)
    seen = see("prove the city", Hashed())
    np.testing.assert_allclose(load_learned(tmp_path).predict(seen), model.predict(seen), rtol=1e-6)
    assert load_learned(tmp_path).columns == COLUMNS


def test_logistic_predicts_the_mean_quality_on_average() -> None:
    """The bias is not penalised, so at the optimum the mean prediction is the mean quality."""
    texts, quality = lessons(200, seed=1)
    seen = [see(text, Hashed()) for text in texts]
    (linear,) = fit(Logistic(l2=1e-4), seen, quality)
    predicted = np.stack([linear.predict(one) for one in seen])
    np.testing.assert_allclose(predicted.mean(axis=0), quality.mean(axis=0), atol=1e-3)


def test_a_factorisation_of_rank_one_has_one_direction_for_all_experts() -> None:
    texts, quality = lessons(200, seed=1)
    (linear,) = fit(Factors(rank=1, l2=1e-4), [see(text, Hashed()) for text in texts], quality)
    assert np.linalg.matrix_rank(linear.meaning_DE, tol=1e-4) == 1


def test_neighbours_are_those_most_alike() -> None:
    texts, quality = ["river city", "lemma proof"] * 3, np.array([[1.0, 0.0], [0.0, 1.0]] * 3, np.float32)
    (neighbours,) = fit(Knn(neighbours=3), [see(text, Hashed()) for text in texts], quality)
    assert neighbours.predict(see("city", Hashed())).tolist() == [1.0, 0.0]
    assert neighbours.predict(see("proof", Hashed())).tolist() == [0.0, 1.0]


def test_an_expert_that_came_after_the_outcomes_is_scored_by_its_territory() -> None:
    prompts = [" ".join(random.Random(i).choices(EASY, k=5)) for i in range(12)]
    newer = expert("newer", "c" * 64) | {"territory": {"prompts": prompts, "keywords": {}}}
    again = expert("strong", "d" * 64)
    routed = parse_router(
        router(expert("weak"), again, newer, kind="learned", fallback="weak", threshold=0.0)
    )
    asked = policy(learned(Logistic()), routed)
    decision = asked.decide(Observation("r", ("river city flag month colour",)))
    assert decision.chosen == "newer"
    assert decision.reason.startswith("similarity")
    assert decision.scores["strong"] == 0.0, "outcomes of another adapter under the same name say nothing"
    assert asked.decide(Observation("r", ("lemma proof tensor",))).scores["newer"] < 0.5


def test_a_dearer_expert_has_less_the_more_price_weighs() -> None:
    texts, quality = lessons(80, seed=3)
    found = measure(
        policy(learned(Blend()), table()), table(), HeldOut(("weak", "strong"), tuple(texts), quality)
    )
    costs = [point["cost"] for point in found["curve"]]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] == pytest.approx(PRICES["weak"])
    assert found["oracle"]["quality"] == pytest.approx(quality.max(axis=1).mean())
    assert found["single"]["strong"] == {
        "cost": pytest.approx(1.0),
        "quality": pytest.approx(quality[:, 1].mean()),
    }
    assert found["random"]["quality"] == pytest.approx(quality.mean())
    best = max(point["quality"] for point in found["curve"])
    assert found["random"]["quality"] < best <= found["oracle"]["quality"]


def test_confusion_counts_every_prompt_by_who_was_best_and_who_was_chosen() -> None:
    texts = "river city flag month colour", "lemma proof tensor matrix prove", "animal name colour flag river"
    held_out = HeldOut(("weak", "strong"), texts, np.array([[1, 0], [0, 1], [1, 1]], np.float32))
    routed = table(cost_weight=0.3)
    found = measure(policy(learned(Logistic()), routed), routed, held_out)
    assert found["confusion"] == [[2, 0], [0, 1]]
    assert (found["accuracy"], found["quality"], found["held_out"]) == (1.0, 1.0, 3)


def test_calibration_is_the_mean_distance_of_confidence_from_quality() -> None:
    confident, right = np.array([0.95, 0.95, 0.15, 1.0]), np.array([1.0, 0.0, 0.0, 1.0])
    found = calibration(confident, right)
    assert [b["n"] for b in found["bins"]] == [1, 3]
    assert found["ece"] == pytest.approx(0.25 * 0.15 + 0.75 * abs(2.9 / 3 - 2 / 3))


@given(st.text(max_size=300))
def test_traits_of_any_text_are_finite_and_in_range(text: str) -> None:
    found = buckets(text)
    assert ((found >= 0) & (found < BUCKETS)).all()
    assert np.isfinite(surface(text)).all()


def test_traits_of_a_very_long_text_are_those_of_its_ends() -> None:
    text = "river " * MAX_CHARS + "middle " * MAX_CHARS + "proof " * MAX_CHARS
    found = set(buckets(text))
    assert {*buckets("river river"), *buckets("proof proof")} <= found
    assert not found & {*buckets("middle middle")}


def test_a_cascade_asks_the_cheap_first_and_the_alphabet_decides_between_equals() -> None:
    def priced(name: str, price: float):
        return expert(name) | {"price": {"per_1k_prompt": price, "per_1k_completion": price}}

    routed = parse_router(
        router(priced("dear", 2.0), priced("b", 0.5), priced("base", 0.0), priced("a", 0.5))
    )
    assert [one.name for one in cheap_to_dear(routed.live)] == ["base", "a", "b", "dear"]


@given(st.lists(st.floats(-30.0, 0.0), max_size=50))
def test_confidence_is_a_probability_and_no_surer_token_lowers_it(logprobs: list[float]) -> None:
    found = confidence(logprobs)
    assert 0.0 <= found <= 1.0
    if logprobs:
        surer = [*logprobs]
        surer[surer.index(min(surer))] = 0.0
        assert confidence(surer) >= found


def test_confidence_goes_by_the_least_likely_tenth() -> None:
    sure = [0.0] * 18
    assert confidence([*sure, -1.0, -3.0]) == pytest.approx(np.exp(-2.0))
    assert confidence([*sure * 10, -1.0, -3.0]) > confidence([*sure, -1.0, -3.0])
    assert confidence([-1.0]) == pytest.approx(np.exp(-1.0))
    assert confidence([]) == 0.0


def test_an_answer_below_the_least_confidence_escalates() -> None:
    assert [escalates(value, 0.5) for value in (0.49, 0.5, 0.51)] == [True, False, False]
    with pytest.raises(ConfigError, match=r"least confidence 1\.5 of a cascade is outside 0\.\.1; use 0\.5"):
        escalates(0.4, 1.5)


def test_replacing_the_config_leaves_the_scorer() -> None:
    asked = policy(learned(Knn()), table())
    dearer = Policy(replace(asked.config, cost_weight=10.0), table().live, asked.scorer)
    assert dearer.decide(Observation("r", ("lemma proof",))).chosen == "weak"
