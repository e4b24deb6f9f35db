"""Judging: the same numbers as lm-eval's, code in the sandbox, and the user's own score."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from largeforge_ray.config.tasks import LibraryTask, OwnTask
from largeforge_ray.errors import DataError
from largeforge_ray.evaluate.items import item
from largeforge_ray.evaluate.scoring import cut, judge, pass_at_k
from largeforge_ray.evaluate.tasks import build
from largeforge_ray.teach.sandbox import available
from largeforge_ray.types import ChoiceScores, Generation
from tests.unit._eval_docs import HUMANEVAL, items_of, jsonl, lm_eval_task, write_documents

CHOICES = ("mmlu", "hellaswag", "arc_easy", "arc_challenge", "truthfulqa_mc1", "truthfulqa_mc2")
needs_sandbox = pytest.mark.skipif(available() is not None, reason=str(available()))


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("documents")
    write_documents(folder)
    return {name: items_of(name, folder) for name in (*CHOICES, "truthfulqa_gen", "gsm8k", "humaneval")}


@pytest.fixture(scope="module")
def oracles(items: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    return {
        name: lm_eval_task(
            name,
            {
                "validation" if name in ("hellaswag", "truthfulqa_mc1", "truthfulqa_mc2") else "test": [
                    made[0]["doc"]
                ]
            },
            process_docs=None,
        )
        for name, made in items.items()
        if name in CHOICES
    }


@pytest.mark.parametrize("name", CHOICES)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_choices_are_judged_as_by_lm_eval(
    name: str, items: dict[str, list[dict[str, Any]]], oracles: dict[str, Any], data: st.DataObject
) -> None:
    made = data.draw(st.sampled_from(items[name]))
    count = len(made["choices"])
    # Few values, so that there are ties.
    logp = st.sampled_from([-1.0, -2.5, -30.0]) | st.floats(-60.0, -0.01)
    logprobs = tuple(data.draw(st.lists(logp, min_size=count, max_size=count)))
    judged = judge(made, ChoiceScores("r", logprobs, (False,) * count))
    expected = oracles[name].process_results(made["doc"], [(logp, False) for logp in logprobs])
    if name == "truthfulqa_mc2":
        expected = {"mc2": expected["acc"]}
    assert {metric: judged.scores[metric] for metric in expected} == pytest.approx(expected, abs=1e-12)
    assert judged.quality == judged.scores[judged.metric]
    weights = [math.exp(logp) for logp in logprobs]
    chosen = [choice.removeprefix(" ") for choice in made["choices"]].index(judged.answer)
    assert judged.confidence == pytest.approx(weights[chosen] / sum(weights))


def test_the_primary_metric_is_the_usual_one(items: dict[str, list[dict[str, Any]]]) -> None:
    assert {name: made[0]["rules"]["metric"] for name, made in items.items()} == {
        "mmlu": "acc",
        "hellaswag": "acc_norm",
        "arc_easy": "acc_norm",
        "arc_challenge": "acc_norm",
        "truthfulqa_mc1": "acc",
        "truthfulqa_mc2": "mc2",
        "truthfulqa_gen": "bleu_acc",
        "gsm8k": "exact_match,flexible-extract",
        "humaneval": "pass@1",
    }


def test_a_long_choice_wins_by_character_and_not_by_sum() -> None:
    made = item(
        item_id="t/0",
        task="t",
        kind="choice",
        check="choice",
        context="Q",
        choices=[" ab", " abcdefgh"],
        answer=1,
        rules={"metric": "acc_norm", "delimiter": " "},
    )
    judged = judge(made, ChoiceScores("r", (-2.0, -4.0), (False, False)))
    assert judged.scores == {"acc": 0.0, "acc_norm": 1.0}
    assert (judged.answer, judged.quality, judged.metric) == ("abcdefgh", 1.0, "acc_norm")
    assert judged.confidence == pytest.approx(math.exp(-4) / (math.exp(-2) + math.exp(-4)))


def test_likelihoods_too_small_for_a_float_still_have_shares(items: dict[str, list[dict[str, Any]]]) -> None:
    (first, *_) = items["truthfulqa_mc2"]
    judged = judge(first, ChoiceScores("r", (-2000.0, -2000.0, -2000.0, -2000.0, -2000.0), (False,) * 5))
    assert judged.quality == pytest.approx(3 / 5)


def test_metrics_that_are_not_ours_are_lm_evals(items: dict[str, list[dict[str, Any]]]) -> None:
    first = items["arc_easy"][0]
    other = first | {"check": "harness", "rules": {"metric": "acc_norm", "config": "arc/arc_easy.yaml"}}
    answer = ChoiceScores("r", (-3.0, -1.0, -2.0, -2.5), (False, True, False, False))
    assert judge(other, answer).scores == judge(first, answer).scores


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("He has 0 + 1000.\n#### 1,000", 1.0, 1.0),
        ("So it is $1,000.", 0.0, 1.0),
        ("#### 1000\nQuestion: What is 3?", 1.0, 1.0),
        ("#### 12", 0.0, 0.0),
        ("#### 1000 and 7 more", 1.0, 0.0),
        ("I do not know", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_gsm8k_answers_go_through_both_filters(
    items: dict[str, list[dict[str, Any]]], text: str, strict: float, flexible: float
) -> None:
    judged = judge(items["gsm8k"][0], Generation("r", text, mean_logprob=-0.5))
    assert judged.scores == {"exact_match,strict-match": strict, "exact_match,flexible-extract": flexible}
    assert (judged.quality, judged.metric) == (flexible, "exact_match,flexible-extract")
    assert judged.confidence == pytest.approx(math.exp(-0.5))


def test_truthful_answers_are_compared_with_true_and_false_ones(
    items: dict[str, list[dict[str, Any]]],
) -> None:
    first = items["truthfulqa_gen"][0]
    true = judge(first, Generation("r", "Because of how light penetrates, mostly.\n\nQ: Next?"))
    assert (true.quality, true.metric, true.confidence) == (1.0, "bleu_acc", None)
    assert true.scores["bleu_max"] == pytest.approx(100.0)
    assert {"rougeL_diff", "rouge1_acc", "bleu_diff"} <= set(true.scores)
    assert judge(first, Generation("r", "The blood is blue.")).quality == 0.0


@needs_sandbox
@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("    return sum(numbers)\n", True),
        ("    return sum(numbers)\n\ndef other():\n    return (", True),
        ("    return 3\n", False),
        ("    raise SystemExit(0)\n", False),
        ("", False),
    ],
)
def test_a_completion_is_the_rest_of_the_program(
    items: dict[str, list[dict[str, Any]]], text: str, right: bool
) -> None:
    judged = judge(items["humaneval"][0], Generation("r", text))
    assert (judged.quality, judged.scores) == (float(right), {"pass@1": float(right)})


@needs_sandbox
@pytest.mark.parametrize(
    "text",
    [
        "Here it is:\n```python\ndef total(numbers: List[int]) -> int:\n    return sum(numbers)\n```\nSo.",
        "```python\n    return sum(numbers)\n```",
        HUMANEVAL[0]["prompt"] + HUMANEVAL[0]["canonical_solution"],
    ],
)
def test_a_chats_reply_may_be_the_whole_function_or_its_rest(tmp_path: Path, text: str) -> None:
    jsonl(tmp_path / "test.jsonl", HUMANEVAL)
    entry = LibraryTask(name="humaneval", source="test.jsonl", chat=True)
    (made,) = build(entry, tmp_path).items
    assert judge(made, Generation("r", text)).quality == 1.0
    assert judge(made, Generation("r", text.replace("sum", "len"))).quality == 0.0


def words(check: str, answer: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": "?"}]
    return item(
        item_id="t/0",
        task="t",
        kind="generate",
        check=check,
        messages=turns,
        answer=answer,
        max_tokens=9,
        stop=["\n"],
    )


@pytest.mark.parametrize(
    ("check", "answer", "text", "quality"),
    [
        ("exact", "four", " four\nfive", 1.0),
        ("exact", "four", "five", 0.0),
        ("number", 4, "It is 4", 1.0),
        ("contains", "Four", "it is four.", 1.0),
        ("json", {"a": 1}, '{"a": 1}', 1.0),
        ("json", {"a": 1}, '{"a": true}', 0.0),
        ("exact", "", "", 0.0),
    ],
)
def test_words_are_judged_by_their_check_up_to_the_first_stop(
    check: str, answer: Any, text: str, quality: float
) -> None:
    judged = judge(words(check, answer), Generation("r", text))
    assert (judged.quality, judged.metric, judged.scores) == (quality, check, {check: quality})
    assert "\n" not in judged.answer


def test_an_error_is_quality_zero(items: dict[str, list[dict[str, Any]]]) -> None:
    choice = judge(items["hellaswag"][0], ChoiceScores("r", error="out of memory"))
    assert (choice.quality, choice.metric, choice.scores) == (0.0, "acc_norm", {"acc_norm": 0.0})
    assert choice.confidence is None
    assert judge(words("exact", "a"), Generation("r", "a", error="lost")).quality == 0.0


def test_the_users_own_score_sees_answer_and_row(tmp_path: Path) -> None:
    jsonl(tmp_path / "rows.jsonl", [{"q": "2 + 2?", "note": "four"}])
    file = tmp_path / "own.py"
    file.write_text(
        "def item(row):\n    return {'prompt': row['q']}\n\n"
        "def score(answer_text, row):\n    return {'four': 1, '': 2.0}.get(answer_text, 0.25)\n"
    )
    (made,) = build(OwnTask(name="own", source="rows.jsonl", function="own.py"), tmp_path).items
    assert judge(made, Generation("r", "four")).quality == 1.0
    judged = judge(made, Generation("r", "for"))
    assert (judged.quality, judged.metric) == (0.25, "score")
    with pytest.raises(DataError, match=r"own\.py' gave 2.0; it is a number from 0 to 1"):
        judge(made, Generation("r", ""))
    with pytest.raises(DataError, match="has changed since the items were made"):
        judge(made | {"rules": made["rules"] | {"sha256": "0"}}, Generation("r", "four"))


@given(st.text(max_size=12), st.lists(st.text(min_size=1, max_size=2), max_size=3))
def test_what_is_left_holds_no_stop(text: str, stop: list[str]) -> None:
    left = cut(text, stop)
    assert text.startswith(left)
    assert not any(each in left for each in stop)
    assert left == text or any(text[len(left) :].startswith(each) for each in stop)


@given(st.integers(1, 7), st.data())
def test_pass_at_k_is_the_share_of_draws_with_a_right_answer(n: int, data: st.DataObject) -> None:
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_needs_k_answers() -> None:
    with pytest.raises(ValueError, match="draw at least k answers"):
        pass_at_k(3, 1, 4)
