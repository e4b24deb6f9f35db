"""What is asked of an expert, what an outcome says, and the files of an evaluation."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from largeforge_ray.data.rows import decode_row
from largeforge_ray.evaluate import OutcomeRecipe, read_outcomes, write_outcomes
from largeforge_ray.evaluate.items import item, items_path, write_items
from largeforge_ray.teach import Work
from largeforge_ray.types import ChoiceRequest, ChoiceScores, GenerateRequest, Generation, Sampling

BASE = OutcomeRecipe("base", "a" * 64, None, 0)
TUNED = OutcomeRecipe("tuned", "b" * 64, "/adapters/tuned", 0)


def asked(number: int, **more: Any) -> dict[str, Any]:
    """A question to answer in JSON."""
    given: dict[str, Any] = {
        "item_id": f"sums/{number}",
        "task": "sums",
        "kind": "generate",
        "check": "json",
        "messages": [{"role": "user", "content": f"{number} + 1?"}],
        "answer": {"sum": number + 1},
        "max_tokens": 40,
    }
    return item(**(given | more))


def chosen(number: int = 0) -> dict[str, Any]:
    """A question with choices."""
    return item(
        item_id=f"facts/{number}",
        task="facts",
        kind="choice",
        check="choice",
        context=f"Question {number}. Answer:",
        choices=[" yes", " no"],
        answer=1,
        rules={"metric": "acc", "delimiter": " "},
        slice="plain",
    )


def right(number: int) -> Generation:
    return Generation("x", json.dumps({"sum": number + 1}), "stop", 9, 6, 0.5, mean_logprob=-0.25)


def test_words_are_asked_for_greedily_with_the_experts_own_weights() -> None:
    (base,), (tuned,) = BASE.work(asked(3)), TUNED.work(asked(3))
    assert isinstance(base.request, GenerateRequest)
    assert (base.request.adapter, tuned.request.adapter) == (None, "/adapters/tuned")
    assert base.request.messages == tuned.request.messages == tuple(asked(3)["messages"])
    assert base.request.sampling == tuned.request.sampling == Sampling(0.0, max_tokens=40, seed=0)
    assert base.row_key == base.request.request_id != tuned.row_key


def test_a_text_without_a_template_stays_one_and_ends_where_its_task_says() -> None:
    (work,) = BASE.work(asked(1, messages=None, context="1 + 1 =", stop=["\n"]))
    assert isinstance(work.request, GenerateRequest)
    assert (work.request.context, work.request.messages, work.request.stop) == ("1 + 1 =", (), ("\n",))


def test_choices_are_scored_as_they_stand() -> None:
    (work,) = TUNED.work(chosen())
    assert work.request == ChoiceRequest(
        work.row_key, (" yes", " no"), context="Question 0. Answer:", messages=None, adapter="/adapters/tuned"
    )


def test_an_outcomes_key_follows_the_item_the_weights_and_the_sampling() -> None:
    def key(recipe: OutcomeRecipe, **more: Any) -> str:
        return recipe.work(asked(3, **more))[0].row_key

    known = key(BASE)
    # Neither what an expert is called nor where its folder lies, nor what its item is called.
    assert key(replace(BASE, expert="model", adapter="/elsewhere")) == known
    assert key(BASE, item_id="other/3") == known
    others = [key(TUNED), key(replace(BASE, seed=1)), key(BASE, max_tokens=9), key(BASE, answer={"sum": 5})]
    assert len({known, *others}) == 5


def test_a_task_that_is_drawn_several_times_has_a_seed_and_a_key_for_each() -> None:
    works = replace(BASE, drawn={"sums": (3, 0.8)}).work(asked(3))
    assert [w.request.sampling for w in works] == [
        Sampling(0.8, max_tokens=40, seed=seed) for seed in range(3)
    ]
    assert len({w.row_key for w in works}) == 3
    assert [BASE.row(w, [right(3)])["sample"] for w in works] == [0, 1, 2]


def test_an_answer_scores_by_its_check_and_an_error_scores_nothing() -> None:
    (work,) = BASE.work(asked(3))
    good = BASE.row(work, [right(3)])
    assert (good["quality"], good["metric"], good["error"]) == (1.0, "json", None)
    assert good["confidence"] == pytest.approx(math.exp(-0.25))
    assert (good["expert"], good["expert_key"], good["task"]) == ("base", "a" * 64, "sums")
    assert BASE.row(work, [right(4)])["quality"] == 0.0
    failed = BASE.row(work, [replace(right(3), error="prompt too long", mean_logprob=None)])
    assert (failed["quality"], failed["confidence"], failed["error"]) == (0.0, None, "prompt too long")


def test_the_likelier_choice_is_the_answer_and_its_share_the_confidence() -> None:
    (work,) = BASE.work(chosen())
    scores = ChoiceScores(work.row_key, (-3.0, -1.0), (False, True), 12, 2, 0.1)
    row = BASE.row(work, [scores])
    assert (row["answer"], row["quality"], row["metric"], row["slice"]) == ("no", 1.0, "acc", "plain")
    assert row["confidence"] == pytest.approx(1 / (1 + math.exp(-2.0)))
    assert json.loads(row["scores"])["acc_norm"] in (0.0, 1.0)
    failed = BASE.row(work, [ChoiceScores(work.row_key, error="too long")])
    assert (failed["quality"], failed["error"]) == (0.0, "too long")


def test_the_farm_finds_the_same_work_in_an_items_file(tmp_path: Path) -> None:
    """It reads the Parquet rows itself, and a row's key is all that ties its answer to its item."""
    made = [asked(0), asked(1), chosen(0)]
    write_items(tmp_path, made)
    for kind in ("choice", "generate"):
        rows = pq.read_table(items_path(tmp_path, kind)).to_pylist()
        found = [w for row in rows for w in BASE.work(decode_row(row))]
        meant = [w for each in made if each["kind"] == kind for w in BASE.work(each)]
        assert [(w.row_key, w.request) for w in found] == [(w.row_key, w.request) for w in meant]
        assert [BASE.row(w, [_answer(w)])["quality"] for w in found] == [1.0] * len(meant)


def _answer(work: Work) -> Any:
    if isinstance(work.request, ChoiceRequest):
        return ChoiceScores(work.row_key, (-3.0, -1.0), (False, True))
    return Generation("x", json.dumps(work.item["answer"]))


def test_outcomes_survive_their_file_in_an_order_of_their_own(tmp_path: Path) -> None:
    items = [asked(number) for number in range(3)]
    rows = []
    for number, each in enumerate(items):
        rows.append(TUNED.row(TUNED.work(each)[0], [right(number)]) | {"contaminated": number == 1})
        rows.append(BASE.row(BASE.work(each)[0], [right(9) if number else Generation("x", error="lost")]))
    written = write_outcomes(tmp_path, iter(rows), items)
    read = read_outcomes(tmp_path)
    assert read == written
    assert [row["expert"] for row in read] == ["base", "tuned"] * 3
    assert [row["quality"] for row in read] == [0.0, 1.0] * 3
    marks = {(r["item_id"], r["expert"]): r["contaminated"] for r in read}
    assert (marks["sums/1", "tuned"], marks["sums/0", "tuned"], marks["sums/1", "base"]) == (
        True,
        False,
        None,
    )
    again = tmp_path / "again"
    again.mkdir()
    write_outcomes(again, reversed(rows), items)
    assert read_outcomes(again) == read


def test_outcomes_of_a_store_from_before_a_field_was_there_are_read(tmp_path: Path) -> None:
    work = BASE.work(asked(3))[0]
    write_outcomes(tmp_path, [BASE.row(work, [right(3)])], [asked(3)])
    file = tmp_path / "outcomes.parquet"
    newer = ["slice", "group", "variant", "origin", "scores", "contaminated"]
    pq.write_table(pq.read_table(file).drop(newer), file)
    (row,) = read_outcomes(tmp_path)
    assert (row["quality"], row["expert"], row["variant"], row["origin"]) == (1.0, "base", None, None)


def test_the_items_lie_beside_their_outcomes(tmp_path: Path) -> None:
    each = asked(3)
    write_outcomes(tmp_path, [BASE.row(BASE.work(each)[0], [right(3)])], [each])
    assert pq.read_table(tmp_path / "items.parquet").to_pylist() == [
        {"item_id": "sums/3", "item_hash": each["item_hash"], "prompt": "3 + 1?", "answer": '{"sum": 4}'}
    ]
