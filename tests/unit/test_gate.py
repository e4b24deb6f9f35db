"""The gate: each rule decides by its number, and what cannot be evaluated does not pass."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from largeforge_ray.config.gate import Gate
from largeforge_ray.evaluate.bootstrap import Interval
from largeforge_ray.promote.gate import Change, GateDecision, GateEvidence, Side, decide_gate, gate_evidence


def gate(**rules: Any) -> Gate:
    return Gate.model_validate({"outcomes": "outcomes"} | rules)


def row(expert: str, item: int, quality: float, **more: Any) -> dict[str, Any]:
    """An outcome as it is read from an artifact."""
    made = {
        "item_hash": f"{item:064x}",
        "origin": f"{item:064x}",
        "task": "mmlu",
        "slice": None,
        "variant": None,
        "expert": expert,
        "quality": quality,
        "scores": json.dumps({"acc": quality}),
        "cost": 0.001,
        "contaminated": None,
        "error": None,
    }
    return made | more


def rows(tuned: list[float], base: list[float], **more: Any) -> list[dict[str, Any]]:
    return [
        row(expert, item, quality, **more)
        for expert, qualities in (("tuned", tuned), ("base", base))
        for item, quality in enumerate(qualities)
    ]


def decided(outcomes: list[dict[str, Any]], against: str = "base", **rules: Any) -> GateDecision:
    decision = decide_gate(asked := gate(**rules), gate_evidence(outcomes, "tuned", against, asked))
    json.dumps(dict(decision.numbers), allow_nan=False)  # an event holds them
    return decision


BETTER = rows([1.0] * 30 + [0.0] * 10, [0.0] * 30 + [0.0] * 10)


# The gain.


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1), st.floats(-1, 1), st.booleans())
@settings(deadline=None)
def test_it_passes_only_if_the_whole_interval_lies_above_the_bound(
    mean: float, below: float, above: float, bound: float, loss: bool
) -> None:
    gain = Interval(mean, mean - below, mean + above, 0.95, 40)
    evidence = GateEvidence("tuned", "base", (), gain, (Side(None, 0), Side(None, 0)))
    asked = gate(max_loss=abs(bound)) if loss else gate(min_gain=bound)
    least = -abs(bound) if loss else bound
    assert decide_gate(asked, evidence).passed == (least < mean - below)


def test_it_says_the_numbers_that_decided() -> None:
    gain = Interval(0.25, 0.1, 0.4, 0.95, 40)
    evidence = GateEvidence("tuned", "base", (), gain, (Side(None, 0), Side(None, 2)))
    passed, failed = (decide_gate(gate(min_gain=least), evidence) for least in (0.05, 0.1))
    assert passed.passed
    assert passed.reason == "gain +0.250 [+0.100, +0.400] on 40 items lies above +0.050"
    assert passed.numbers == {
        "candidate": "tuned", "against": "base", "metric": "quality", "contaminated": None,
        "gain": 0.25, "low": 0.1, "high": 0.4, "confidence": 0.95, "n": 40, "min_gain": 0.05,
        "errors": [0, 2], "cost": {"candidate": None, "against": None, "most": None}, "floors": {},
    }  # fmt: skip
    assert not failed.passed
    assert failed.reason == (
        "gain +0.250 [+0.100, +0.400] on 40 items does not lie above min_gain +0.100; train on more rows or "
        "lower gate.min_gain"
    )


def test_an_expert_that_is_no_better_passes_only_where_a_loss_is_allowed() -> None:
    same = rows([1.0, 0.0] * 20, [1.0, 0.0] * 20)
    assert not decided(same).passed
    assert decided(same, max_loss=0.02).passed
    worse = decided(rows([0.0] * 40, [1.0, 0.0] * 20), max_loss=0.02)
    assert not worse.passed
    assert "does not lie above -max_loss -0.020; evaluate on more items" in worse.reason


def test_the_metric_and_the_baseline_are_those_that_are_named() -> None:
    scored = [r | {"scores": json.dumps({"acc": 1.0 - r["quality"]})} for r in BETTER]
    assert decided(scored).passed
    assert not decided(scored, metric="acc").passed
    assert decided(scored, metric="acc", max_loss=1.0).numbers["gain"] == pytest.approx(-0.75)
    others = [r | {"expert": "old"} if r["expert"] == "base" else r for r in BETTER]
    assert decided(others, against="old").numbers["against"] == "old"


def test_samples_count_by_their_mean_variants_not_at_all_and_a_failed_answer_as_nothing() -> None:
    drawn = [row("tuned", 0, q, sample=s) for s, q in enumerate((1.0, 0.0, 0.0, 1.0))]
    drawn += [row("tuned", 1, 0.0, error="lost", scores="{}"), row("tuned", 2, 1.0)]
    drawn += [row("base", item, 0.0) for item in range(3)]
    drawn += [row("base", item, 1.0, variant="typos", item_hash="f" * 64) for item in range(3)]
    decision = decided(drawn, metric="acc", min_gain=-1.0)
    assert decision.numbers["gain"] == pytest.approx(0.5)
    assert (decision.numbers["n"], decision.numbers["errors"]) == (3, [1, 0])


@given(st.permutations(BETTER))
@settings(deadline=None, max_examples=10)
def test_the_order_of_the_rows_does_not_count(shuffled: list[dict[str, Any]]) -> None:
    assert decided(shuffled, slice_floor=0.1) == decided(BETTER, slice_floor=0.1)


# What cannot be evaluated.


@pytest.mark.parametrize(
    ("outcomes", "rules", "said"),
    [
        ([], {}, "'tuned' has no outcomes; add it to the evaluate stage's candidates; 'base' has"),
        (BETTER[:40], {}, "'base' has no outcomes; add it to"),
        (BETTER[:-3], {}, "3 items were answered by one of the two only; evaluate both on the same items"),
        (rows([0.0] * 5, [0.0] * 5, error="lost"), {}, "every answer of 'tuned' failed; run"),
        (BETTER, {"metric": "f1"}, "metric 'f1' is not in the scores of task 'mmlu', which has quality, acc"),
        ([r | {"scores": None} for r in BETTER], {"metric": "acc"}, "'mmlu', which has quality; "),
        ([r | {"contaminated": True} for r in BETTER], {}, "all 40 items are contaminated; evaluate on"),
        (BETTER, {"contamination": "refuse"}, "nobody compared items with what 'tuned' was trained on"),
    ],
)  # fmt: skip
def test_what_cannot_be_evaluated_does_not_pass(
    outcomes: list[dict[str, Any]], rules: dict[str, Any], said: str
) -> None:
    decision = decided(outcomes, min_gain=-1.0, **rules)
    assert not decision.passed
    assert decision.reason.startswith("it cannot be evaluated: ")
    assert said in decision.reason


def test_an_expert_is_not_compared_with_itself() -> None:
    decision = decided(BETTER, against="tuned", min_gain=-1.0)
    assert not decision.passed
    assert "'tuned' is compared with itself; name another" in decision.reason


# Cost.


@pytest.mark.parametrize(
    ("tuned", "base", "most", "passed", "said"),
    [
        (0.002, 0.001, 2.0, True, "lies above"),
        (0.0021, 0.001, 2.0, False, "an item costs 0.0021 USD, 2.10 times that of 'base', and matched_cost"),
        (0.0005, 0.001, 1.0, True, "lies above"),
        (None, 0.001, 1.0, False, "the cost of tuned is not known; give prices or leave out"),
        (0.0, 0.0, 1.0, False, "the cost of tuned and base is not known; give prices"),
        (0.001, 0.0, 9.0, False, "the cost of base is not known"),
    ],
)
def test_a_gain_counts_only_at_a_cost_that_is_matched(
    tuned: float | None, base: float | None, most: float, passed: bool, said: str
) -> None:
    priced = [r | {"cost": tuned if r["expert"] == "tuned" else base} for r in BETTER]
    decision = decided(priced, matched_cost=most)
    assert decision.passed == passed
    assert said in decision.reason
    assert decision.numbers["cost"] == {"candidate": tuned or None, "against": base or None, "most": most}
    assert decided(priced).passed


def test_the_cost_of_an_item_is_that_of_all_its_samples() -> None:
    twice = [*BETTER, *(r | {"sample": 1} for r in BETTER if r["expert"] == "tuned")]
    assert decided(twice).numbers["cost"]["candidate"] == pytest.approx(0.002)


# Floors.


def in_slices(changes: dict[str, tuple[int, int]]) -> list[dict[str, Any]]:
    """Slice -> (items, how many of them the candidate lost); and many others that it has won."""
    made, item = [], 0
    for name, (count, lost) in changes.items():
        for place in range(count):
            made += [
                row("tuned", item, float(place >= lost), slice=name),
                row("base", item, 1.0, slice=name),
            ]
            item += 1
    for place in range(item, item + 600):
        made += [row("tuned", place, 1.0, task="arc"), row("base", place, 0.0, task="arc")]
    return made


def test_no_slice_of_enough_items_may_lose_more_than_the_floor() -> None:
    outcomes = in_slices({"law": (100, 3), "physics": (100, 2), "tiny": (19, 19)})
    assert decided(outcomes).passed
    decision = decided(outcomes, slice_floor=0.02)
    assert not decision.passed
    assert decision.reason == (
        "'mmlu/law' changes by -0.030 on 100 items and may lose 0.020; train on more of its kind or raise "
        "its floor"
    )
    assert decision.numbers["floors"] == {
        "mmlu/law": {"change": -0.03, "n": 100, "max_lost": 0.02},
        "mmlu/physics": {"change": -0.02, "n": 100, "max_lost": 0.02},
    }
    assert decided(outcomes, slice_floor=0.02, floors={"mmlu/law": 0.05}).passed
    assert "'mmlu/tiny' changes by -1.000" in decided(outcomes, slice_floor=0.02, slice_min_items=19).reason


def test_a_floor_that_is_named_has_to_be_measured() -> None:
    outcomes = in_slices({"law": (100, 0), "tiny": (19, 0)})
    assert decided(outcomes, floors={"mmlu": 0.0, "mmlu/law": 0.0, "arc": 0.0}).passed
    small = decided(outcomes, floors={"mmlu/tiny": 0.5})
    assert not small.passed
    assert "'mmlu/tiny' has 19 items, and slice_min_items asks for 20; evaluate on more or" in small.reason
    typo, unknown = decided(outcomes, floors={"mmlu/lwa": 0.5}), decided(outcomes, floors={"zzz": 0.5})
    assert "floor 'mmlu/lwa' names no task or slice of the outcomes; did you mean 'mmlu/law'?" in typo.reason
    assert "floor 'zzz' names no task or slice of the outcomes; tasks are: arc, mmlu" in unknown.reason


def test_every_rule_that_fails_is_named() -> None:
    outcomes = in_slices({"law": (100, 50)})
    reason = decided(outcomes, min_gain=0.99, matched_cost=0.5, floors={"mmlu": 0.1, "mmlu/law": 0.1}).reason
    for said in ("min_gain +0.990", "matched_cost allows 0.50", "'mmlu' changes", "'mmlu/law' changes"):
        assert said in reason


# Contamination.


def marked(contaminated: int) -> list[dict[str, Any]]:
    """The candidate is right only on items that it was trained on, and the base on none."""
    seen = [float(item < contaminated) for item in range(40)]
    made = rows(seen, [0.0] * 40)
    return [
        r | {"contaminated": int(r["origin"], 16) < contaminated} if r["expert"] == "tuned" else r
        for r in made
    ]


def test_contaminated_items_do_not_decide_unless_they_are_allowed_to() -> None:
    outcomes = marked(20)
    assert decided(outcomes, contamination="allow").passed
    without = decided(outcomes)
    assert not without.passed
    assert (without.numbers["n"], without.numbers["gain"], without.numbers["contaminated"]) == (20, 0.0, 20)


def test_one_contaminated_item_is_refused_where_none_may_be() -> None:
    outcomes = [
        *marked(1),
        *(row(e, i, float(e == "tuned")) for i in range(40, 80) for e in ("tuned", "base")),
    ]
    refused = decided(outcomes, contamination="refuse")
    assert not refused.passed
    assert refused.reason == "1 items are contaminated; evaluate on others or exclude them"
    clean = [r | {"contaminated": False} for r in BETTER]
    assert decided(clean, contamination="refuse").passed
    assert decided(clean, contamination="refuse").numbers["contaminated"] == 0


def test_what_the_baseline_was_trained_on_does_not_count_either() -> None:
    outcomes = [r | {"contaminated": r["expert"] == "base" and int(r["origin"], 16) < 5} for r in BETTER]
    assert decided(outcomes).numbers["n"] == 35


# The schema.


def test_the_key_of_a_gate_is_what_it_decides_by() -> None:
    assert gate().settings() == {"min_gain": 0.0, "confidence": 0.95}
    assert gate(min_gain=0.1, confidence=0.9).settings() == {"min_gain": 0.1, "confidence": 0.9}
    assert gate(max_loss=0.02).settings() == gate(min_gain=-0.02).settings()
    assert gate(max_loss=0.0).settings() == gate().settings()
    assert gate(against="old", floors={"mmlu": 0.02}).settings() == {
        "min_gain": 0.0, "confidence": 0.95, "against": "old", "floors": {"mmlu": 0.02}
    }  # fmt: skip


def test_a_gate_bounds_the_gain_in_one_way_only() -> None:
    with pytest.raises(ValueError, match=r"min_gain 0\.0 and max_loss 0\.02 both bound the gain; give one"):
        gate(min_gain=0.0, max_loss=0.02)
    again = Gate.model_validate(gate(max_loss=0.02).model_dump(mode="json"))
    assert again == gate(max_loss=0.02)


def test_changes_are_means_over_items() -> None:
    evidence = gate_evidence(in_slices({"law": (4, 1)}), "tuned", "base", gate())
    assert evidence.slices == {"mmlu/law": Change(-0.25, 4)}
    assert evidence.tasks == {"arc": Change(1.0, 600), "mmlu": Change(-0.25, 4)}
