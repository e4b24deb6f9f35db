"""What evaluation.json says of outcome rows, by hand."""

from __future__ import annotations

import json
import random

import pytest

from largeforge_ray.errors import DataError
from largeforge_ray.evaluate.summary import WORST_ITEMS, summarise
from tests.unit.test_eval_matrix import outcome


def summary(rows, **more):
    return summarise(rows, confidence=0.95, **more)


def answered(number: int, **right) -> list[dict]:
    """Items 0..number; an expert is right on those its test says."""
    return [
        outcome(f"i{i:03d}", expert, float(test(i))) for i in range(number) for expert, test in right.items()
    ]


def test_a_task_by_hand() -> None:
    rows = [
        outcome("a", "base", 1.0, scores=json.dumps({"exact": 1.0, "f1": 0.5}), slice="easy", group="x"),
        outcome("b", "base", 0.0, scores=json.dumps({"exact": 0.0, "f1": 1.0}), slice="hard", group="y"),
        outcome("c", "base", 1.0, scores=json.dumps({"exact": 1.0, "f1": 0.0}), slice="easy", group="x"),
        outcome("d", "base", 0.0, error="timed out", confidence=None, group="x"),
    ]
    made = summary(rows)
    cell = made["tasks"]["sums"]["base"]
    assert (cell["metric"], cell["n"], cell["accuracy"], cell["errors"]) == ("exact", 4, 0.5, 1)
    assert cell["low"] < 0.5 < cell["high"]
    assert cell["scores"] == {"exact": pytest.approx(2 / 3), "f1": 0.5}
    assert (cell["prompt_tokens"], cell["completion_tokens"], cell["seconds"]) == (40, 16, 8.0)
    assert (cell["cost"], cell["tokens_per_s"]) == (1.0, 2.0)
    assert cell["brier"] == 0.25
    assert cell["ece"] == pytest.approx(1 / 6)
    assert {name: one["accuracy"] for name, one in cell["slices"].items()} == {"easy": 1.0, "hard": 0.0}
    assert {name: (one["n"], one["accuracy"]) for name, one in cell["groups"].items()} == {
        "x": (3, pytest.approx(2 / 3)),
        "y": (1, 0.0),
    }
    assert (cell["variants"], cell["worst_case"], cell["pass_at"]) == ({}, None, {})
    assert (made["comparisons"], made["frontier"], made["contamination"]) == ([], None, None)


def test_a_perturbation_has_its_drop_and_items_their_worst_form() -> None:
    rows = [
        *(outcome(i, "base", 1.0) for i in "abcd"),
        *(
            outcome(f"{i}1", "base", q, origin=i, variant="typos")
            for i, q in zip("abc", (1.0, 0.0, 1.0), strict=True)
        ),
        *(
            outcome(f"{i}2", "base", q, origin=i, variant="order")
            for i, q in zip("ab", (0.0, 1.0), strict=True)
        ),
    ]
    cell = summary(rows)["tasks"]["sums"]["base"]
    assert cell["accuracy"] == 1.0
    assert cell["n"] == 4
    assert {name: (v["n"], v["accuracy"], v["drop"]) for name, v in cell["variants"].items()} == {
        "order": (2, 0.5, 0.5),
        "typos": (3, pytest.approx(2 / 3), pytest.approx(1 / 3)),
    }
    # a fails in another order, b with typos, c never; d has no other form.
    assert cell["worst_case"] == pytest.approx(1 / 3)


def test_an_expert_that_answered_variants_only_is_refused() -> None:
    with pytest.raises(DataError, match="no outcomes to average"):
        summary([outcome("a1", "base", 1.0, origin="a", variant="typos")])


def test_several_samples_are_one_item_and_give_pass_at_k() -> None:
    rows = [outcome("a", "base", float(s < 2), sample=s) for s in range(4)]
    rows += [outcome("b", "base", 0.0, sample=s) for s in range(4)]
    cell = summary(rows)["tasks"]["sums"]["base"]
    assert (cell["n"], cell["accuracy"]) == (2, 0.25)
    assert cell["pass_at"] == {"1": pytest.approx(0.25), "4": pytest.approx(0.5)}


def test_every_task_weighs_the_same_over_all() -> None:
    rows = [outcome(f"s{i}", "base", 1.0) for i in range(9)]
    rows += [outcome("w0", "base", 0.0, task="words")]
    overall = summary(rows)["overall"]["base"]
    assert (overall["accuracy"], overall["n"]) == (0.5, 10)
    assert (overall["cost"], overall["seconds"]) == (2.5, 20.0)


def test_comparisons_are_by_task_and_over_all() -> None:
    rows = answered(80, base=lambda i: i % 4 == 0, tuned=lambda i: i % 4 != 1)
    found = summary(rows, baseline="base")["comparisons"]
    assert [(one["task"], one["a"], one["b"], one["n"]) for one in found] == [
        ("sums", "tuned", "base", 80),
        ("all", "tuned", "base", 80),
    ]
    assert found[0]["verdict"].startswith("tuned is better by +0.500 [")


def test_the_items_shown_are_those_of_dispute_and_those_of_failure() -> None:
    rows = answered(100, base=lambda i: i < 40, tuned=lambda i: i < 70)
    made = summary(rows, prompts={"i099": "hard?"})["worst_items"]
    assert len(made) == WORST_ITEMS
    qualities = [{e: one["quality"] for e, one in each["answers"].items()} for each in made]
    assert qualities == [{"base": 0.0, "tuned": 1.0}] * 10 + [{"base": 0.0, "tuned": 0.0}] * 10
    assert made[0]["item_id"] == "sums/i040"
    assert made[0]["answers"]["base"]["answer"] == "4"
    few = summary(answered(3, base=lambda i: i < 2, tuned=lambda i: i < 1), prompts={"i002": "hard?"})
    assert [each["item_id"] for each in few["worst_items"]] == ["sums/i001", "sums/i002"]
    assert [each.get("prompt") for each in few["worst_items"]] == [None, "hard?"]


def test_it_is_json_and_the_same_for_rows_in_any_order_and_for_a_stream() -> None:
    rng = random.Random(0)
    rows = answered(30, base=lambda i: i % 3 == 0, tuned=lambda i: i % 2 == 0, best=lambda i: True)
    made = summary(rows, baseline="base", seed=4)
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    assert made["experts"] == ["base", "best", "tuned"]
    assert {p["name"] for p in made["frontier"]["points"]} > {"base", "best", "tuned", "oracle"}
    rng.shuffle(rows)
    turned = summary(iter(rows), baseline="base", seed=4)
    assert json.dumps(turned, sort_keys=True) == json.dumps(made, sort_keys=True)
