"""Outcome rows and foreign files as one matrix."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from largeforge_ray.errors import DataError
from largeforge_ray.evaluate.matrix import build_matrix, read_columns, read_matrix_jsonl


def outcome(item: str, expert: str, quality: float, **more):
    row = {"item_id": f"sums/{item}", "item_hash": item, "task": "sums", "expert": expert, "sample": 0}
    numbers = {"confidence": 0.5, "prompt_tokens": 10, "completion_tokens": 4, "seconds": 2.0, "cost": 0.25}
    texts = {"slice": None, "group": None, "variant": None, "origin": item, "metric": "exact", "scores": None}
    return row | texts | numbers | {"answer": "4", "quality": quality, "error": None} | more


def write(path: Path, *items) -> Path:
    path.write_text("".join(f"{each if isinstance(each, str) else json.dumps(each)}\n" for each in items))
    return path


def line(**more):
    return {"id": "a", "task": "sums", "prompt": "1 + 1?", "correct": {"weak": False, "strong": True}} | more


def test_a_cell_is_the_mean_of_its_samples_and_a_missing_answer_is_no_number() -> None:
    rows = [
        outcome("a", "base", 1.0, sample=0, seconds=1.0, slice="easy"),
        outcome("a", "base", 0.0, sample=1, seconds=2.0, slice="easy", confidence=None),
        outcome("a", "tuned", 0.25, slice="easy"),
        outcome("b", "tuned", 1.0, task="words"),
    ]
    matrix = build_matrix(read_columns(rows), {"a": "1 + 1?"})
    assert (matrix.items, matrix.tasks, matrix.slices) == (("a", "b"), ("sums", "words"), ("easy", None))
    assert (matrix.prompts, matrix.experts) == (("1 + 1?", ""), ("base", "tuned"))
    np.testing.assert_equal(matrix.quality_NE, [[0.5, 0.25], [np.nan, 1.0]])
    np.testing.assert_equal(matrix.seconds_NE, [[1.5, 2.0], [np.nan, 2.0]])
    np.testing.assert_equal(matrix.confidence_NE, [[0.5, 0.5], [np.nan, 0.5]])
    assert matrix.complete().items == ("a",)


def test_variants_are_not_in_the_matrix() -> None:
    rows = [outcome("a", "base", 1.0), outcome("a2", "base", 0.0, origin="a", variant="typos")]
    matrix = build_matrix(read_columns(rows))
    assert matrix.items == ("a",)
    assert matrix.quality_NE.tolist() == [[1.0]]


def test_rows_of_before_there_were_variants_are_their_own_origins() -> None:
    row = outcome("a", "base", 1.0)
    for field in ("origin", "variant", "slice", "group"):
        del row[field]
    assert build_matrix(read_columns([row])).items == ("a",)


@given(st.integers(0, 1000))
def test_the_order_of_the_rows_does_not_matter(seed: int) -> None:
    rng = random.Random(seed)
    rows = [outcome(f"i{i}", e, rng.choice([0.0, 1.0])) for i in range(5) for e in ("x", "y", "z")]
    straight = build_matrix(read_columns(rows))
    rng.shuffle(rows)
    turned = build_matrix(read_columns(rows))
    assert (turned.items, turned.experts) == (straight.items, straight.experts)
    np.testing.assert_array_equal(turned.quality_NE, straight.quality_NE)


def test_items_are_taken_by_mask_and_experts_found_by_name() -> None:
    rows = [outcome(i, e, float(i == "b")) for i in ("a", "b", "c") for e in ("x", "y")]
    matrix = build_matrix(read_columns(rows))
    assert matrix.take(matrix.quality_NE[:, 0] == 1).items == ("b",)
    assert matrix.expert("y") == 1
    assert matrix.priced([1.0, 10.0]).cost_NE.tolist() == [[1.0, 10.0]] * 3
    with pytest.raises(DataError, match="expert 'w' has no outcomes; use one of: x, y"):
        matrix.expert("w")


def test_a_file_measured_elsewhere_is_a_matrix(tmp_path: Path) -> None:
    items = [line(), "", line(id="b", correct={"weak": 0.5}, cost={"weak": 0.002})]
    matrix = read_matrix_jsonl(write(tmp_path / "m.jsonl", *items))
    assert (matrix.items, matrix.experts) == (("a", "b"), ("strong", "weak"))
    assert matrix.prompts == ("1 + 1?", "1 + 1?")
    np.testing.assert_equal(matrix.quality_NE, [[1.0, 0.0], [np.nan, 0.5]])
    np.testing.assert_equal(matrix.cost_NE, [[np.nan, np.nan], [np.nan, 0.002]])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "is list; write one object a line"),
        (line(id=3), "id: 3 is no text"),
        ({"id": "b", "task": "sums"}, "prompt: None is no text"),
        (line(id="b", correct={}), "correct: names no expert"),
        (line(id="b", correct=["weak"]), r"correct: \['weak'\] is no object"),
        (line(id="b", correct={"weak": 2}), "correct.weak: 2 is not true, false or 0 to 1"),
        (line(id="b", correct={"weak": float("nan")}), "correct.weak: nan is not true"),
        (line(id="b", correct={"weak": "yes"}), "correct.weak: 'yes' is not true"),
        (line(id="b", cost={"weak": -1}), "cost.weak: -1 is not 0 or more"),
        (line(id="b", cost={"weak": float("inf")}), "cost.weak: inf is not 0 or more"),
        (line(id="b", cost={"other": 1}), "cost: 'other' has no entry in correct"),
        (line(), "id: 'a' is that of an earlier line"),
    ],
)
def test_an_error_names_the_file_the_line_and_the_field(tmp_path: Path, wrong, message: str) -> None:
    path = write(tmp_path / "m.jsonl", line(), wrong)
    with pytest.raises(DataError, match=rf"m\.jsonl:2: {message}"):
        read_matrix_jsonl(path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"m\.jsonl: has no items"):
        read_matrix_jsonl(write(tmp_path / "m.jsonl", ""))
