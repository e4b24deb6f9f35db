"""Which answers a teacher's check keeps and why, what the teacher is shown, and the names of its rows."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from largeforge_ray.config.stages import Teacher
from largeforge_ray.data import row_hash
from largeforge_ray.teach import Work, teach_work, teacher_row, verify
from largeforge_ray.teach.prompts import row_key, show_teacher
from largeforge_ray.teach.rows import kept_chats
from largeforge_ray.teach.verify import CHECKS
from largeforge_ray.types import Generation, Sampling, Verdict


@pytest.mark.parametrize(
    ("check", "answer", "text", "reason"),
    [
        (None, None, "anything", "no check"),
        ("exact", "Paris", "Paris", "matches"),
        ("exact", "Paris ", "\n Paris\t", "matches"),
        ("exact", 7, "7", "matches"),
        ("exact", "Paris", "paris", "differs from the answer"),
        ("exact", "Paris", "Paris.", "differs from the answer"),
        ("contains", "paris", "It is PARIS, of course", "matches"),
        ("contains", "straße", "STRASSE 7", "matches"),
        ("contains", 12, "there are 12 of them", "matches"),
        ("contains", "Paris", "It is Rome", "answer not contained"),
        ("json", {"a": 1, "b": [1, 2]}, ' {"b": [1,2], "a":1}\n', "matches"),
        ("json", [], "[ ]", "matches"),
        ("json", "text", '"text"', "matches"),
        ("json", 0.5, "5e-1", "matches"),
        ("json", {"a": "é"}, '{"a": "\\u00e9"}', "matches"),
        ("json", {"a": 1}, 'Sure: {"a": 1}', "not JSON"),
        ("json", {"a": 1}, '```json\n{"a": 1}\n```', "not JSON"),
        ("json", {"a": 1}, '{"a": 1', "not JSON"),
        ("json", {"a": 1}, "[1]", "JSON of another type"),
        ("json", 1, "1.0", "JSON of another type"),
        ("json", 1, "true", "JSON of another type"),
        ("json", {"a": 1}, '{"a": 1, "b": 2}', "wrong keys"),
        ("json", {"a": 1}, "{}", "wrong keys"),
        ("json", {"a": 1}, '{"a": 2}', "wrong values"),
        ("json", {"a": 1}, '{"a": true}', "wrong values"),
        ("json", {"a": 1}, '{"a": "1"}', "wrong values"),
        ("json", [1, 2], "[2, 1]", "wrong values"),
        ("number", 72, "48 + 24 = 72", "matches"),
        ("number", 1234.5, "That makes 1,234.50.", "matches"),
        ("number", -3, "it is -3 degrees", "matches"),
        ("number", 0, "0", "matches"),
        ("number", 72, "72 is the answer to question 1", "wrong number"),
        ("number", 3, "-3", "wrong number"),
        ("number", 72, "seventy-two", "no number"),
    ],
)
def test_a_check_keeps_or_drops_an_answer_and_says_why(
    check: str | None, answer: Any, text: str, reason: str
) -> None:
    kept = reason in ("matches", "no check")
    assert verify(check, text, answer) == Verdict(kept, check or "none", reason)


@pytest.mark.parametrize("check", [None, *CHECKS])
@pytest.mark.parametrize("text", ["", " ", "\n\t\u2003"])
def test_an_empty_answer_is_dropped_by_every_check(check: str | None, text: str) -> None:
    assert verify(check, text, "") == Verdict(False, "length", "empty answer")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=4), inside, max_size=3),
    max_leaves=8,
)
ANY_TEXT = st.text(st.characters(codec=None), max_size=30) | st.text("0123456789,.-+eE٣²½ ", max_size=12)
DIGITS = st.sampled_from(["9" * 5000, "1," * 3000, "-" * 3000 + "1", "1." * 3000, "{" * 3000, '{"a":' * 3000])


# What breaks a program is the sandbox's to test.
@given(
    st.sampled_from([check for check in CHECKS if check != "code"]),
    ANY_TEXT | DIGITS | JSON.map(json.dumps),
    JSON,
)
@settings(deadline=None)
def test_no_text_breaks_a_check(check: str, text: str, answer: Any) -> None:
    if check == "number" and not isinstance(answer, int | float):
        answer = 7
    verdict = verify(check, text, answer)
    assert verdict.kept == (verdict.reason == "matches")
    assert verdict.by in (check, "length")


@pytest.mark.parametrize("closing", [True, False])
def test_no_depth_of_nesting_breaks_the_json_check(closing: bool) -> None:
    for depth in (10, 500, *range(930, 1010), 100_000):
        assert not verify("json", "[" * depth + "]" * (depth if closing else 0), []).kept


@given(JSON, JSON, st.sampled_from([None, 1, "\t"]))
@settings(deadline=None)
def test_the_json_check_keeps_the_same_value_in_any_spelling(answer: Any, other: Any, indent: Any) -> None:
    spelled = json.dumps(answer, indent=indent, ensure_ascii=indent is None)
    assert verify("json", spelled, answer).kept
    different = json.dumps(answer, sort_keys=True) != json.dumps(other, sort_keys=True)
    assert verify("json", json.dumps(other), answer).kept != different


@given(st.text(), st.text())
@settings(deadline=None)
def test_the_exact_check_ignores_space_around_and_nothing_else(text: str, answer: str) -> None:
    assert verify("exact", text, answer).kept == (text.strip() == answer.strip() != "")
    if answer.strip():
        assert verify("exact", f"\n {answer} ", answer).kept


@given(st.text("abc 1", max_size=8), st.integers(-(10**9), 10**9), st.text("abc .!", max_size=8))
@settings(deadline=None)
def test_the_number_check_finds_the_last_number_among_words(before: str, number: int, after: str) -> None:
    # A dot right after the number would begin its decimals if a digit followed; none does here.
    text = f"{before} {number:,}{after}"
    assert verify("number", text, number).kept
    assert not verify("number", text, number + 1).kept


# What the teacher is shown, and the keys.

TEACHER = Teacher(
    instructions="Answer in JSON.",
    examples=[{"role": "user", "content": "one?"}, {"role": "assistant", "content": "1"}],
)
SAMPLING = Sampling(temperature=0.7, max_tokens=40, seed=3)
ASKED = [{"role": "system", "content": "own brief"}, {"role": "user", "content": "two?"}]


def item(
    messages: Any = ASKED, answer: Any = 2, check: str | None = "json", name: str = "p1"
) -> dict[str, Any]:
    digest = row_hash(messages, answer)
    return {"item_id": name, "item_hash": digest, "messages": messages, "answer": answer, "check": check}


def keys(teacher: Teacher = TEACHER, key: str = "k", sampling: Sampling = SAMPLING, **what: Any) -> list[str]:
    samples = what.pop("samples", 2)
    work = teach_work(item(**what), teacher=teacher, teacher_key=key, sampling=sampling, samples=samples)
    return [one.row_key for one in work]


def test_the_teacher_sees_instructions_then_examples_then_the_prompt() -> None:
    shown = show_teacher(ASKED, TEACHER)
    assert [turn["content"] for turn in shown] == ["Answer in JSON.", "one?", "1", "two?"]
    assert [turn["role"] for turn in shown] == ["system", "user", "assistant", "user"]
    assert show_teacher(ASKED, Teacher()) == ASKED
    assert show_teacher(ASKED, Teacher(examples=TEACHER.examples)) == [ASKED[0], *TEACHER.examples, ASKED[1]]


def test_each_sample_is_a_request_of_its_own_that_can_be_made_again() -> None:
    made = teach_work(item(), teacher=TEACHER, teacher_key="k", sampling=SAMPLING, samples=5)
    assert len({one.row_key for one in made}) == len({one.request.sampling.seed for one in made}) == 5
    for index, one in enumerate(made):
        assert one.request.request_id == one.row_key
        assert one.request.messages == tuple(show_teacher(ASKED, TEACHER))
        assert replace(one.request.sampling, seed=3) == SAMPLING
        assert one.request.adapter is None
        assert one.item == item() | {"teacher": "k", "index": index}
    assert teach_work(item(), teacher=TEACHER, teacher_key="k", sampling=SAMPLING, samples=5) == made


def test_more_samples_keep_the_rows_that_were_made() -> None:
    assert keys(samples=8)[:2] == keys(samples=2)


@pytest.mark.parametrize(
    "change",
    [
        {"key": "another model"},
        {"teacher": Teacher(examples=TEACHER.examples)},
        {"teacher": Teacher(instructions=TEACHER.instructions)},
        {"sampling": replace(SAMPLING, temperature=0.8)},
        {"sampling": replace(SAMPLING, top_p=0.9)},
        {"sampling": replace(SAMPLING, max_tokens=41)},
        {"sampling": replace(SAMPLING, seed=4)},
        {"messages": [{"role": "user", "content": "three?"}]},
        {"answer": 3},
    ],
    ids=str,
)
def test_a_rows_key_changes_with_whatever_decides_the_row(change: dict[str, Any]) -> None:
    assert not set(keys(**change)) & set(keys())


def test_a_rows_key_does_not_change_with_its_name_or_its_check() -> None:
    assert keys(name="renamed") == keys()
    assert keys(check="contains") == keys()
    turned = [dict(reversed(turn.items())) for turn in ASKED]
    assert row_key(turned, "k", SAMPLING) == row_key(ASKED, "k", SAMPLING)


# From an answer to a row, and from rows to chats.


def row(
    text: str = "2", reason: str | None = "stop", error: str | None = None, **what: Any
) -> dict[str, Any]:
    made = teach_work(item(**what), teacher=TEACHER, teacher_key="k", sampling=SAMPLING, samples=1)[0]
    generation = Generation(made.row_key, text, reason, 11, 5, 0.25, error=error)
    return teacher_row(Work(made.row_key, made.request, made.item), generation)


def test_a_row_holds_the_answer_its_verdict_and_what_it_cost() -> None:
    made = row()
    assert made["verdict"] == {"kept": True, "by": "json", "reason": "matches"}
    assert (made["text"], made["finish_reason"], made["error"]) == ("2", "stop", None)
    assert (made["prompt_tokens"], made["completion_tokens"], made["seconds"]) == (11, 5, 0.25)
    assert (made["row_key"], made["prompt_id"], made["teacher"]) == (keys()[0], "p1", "k")
    assert made["messages"] == ASKED  # what only the teacher saw is not learned
    assert made["sampling"]["index"] == 0
    assert (made["sampling"]["temperature"], made["sampling"]["max_tokens"]) == (0.7, 40)


def test_a_right_answer_that_was_cut_off_is_dropped_for_its_length() -> None:
    cut = {"kept": False, "by": "length", "reason": "cut off at max_tokens"}
    assert row(reason="length")["verdict"] == cut
    assert row(reason="length", check=None)["verdict"] == cut
    assert row("3", reason="length")["verdict"]["reason"] == "wrong values"


def test_an_error_has_no_verdict_and_is_never_learned_from() -> None:
    failed = row("2", error="prompt of 900 tokens exceeds the context")
    assert failed["verdict"] is None
    assert failed["error"] == "prompt of 900 tokens exceeds the context"
    assert kept_chats([failed], "all") == kept_chats([failed], "verified") == []


def test_kept_rows_become_chats_of_the_prompt_and_its_answer() -> None:
    assert kept_chats([row(" 2\n"), row("3")], "verified") == [
        {
            "item_id": "p1",
            "item_hash": item()["item_hash"],
            "messages": [*ASKED, {"role": "assistant", "content": "2"}],
            "answer": None,
            "check": None,
        }
    ]


def test_all_keeps_what_the_check_drops() -> None:
    chats = kept_chats([row("3"), row("2", reason="length")], "all")
    assert [chat["messages"][-1]["content"] for chat in chats] == ["2", "3"]


def test_the_same_answer_to_one_prompt_is_learned_once_and_to_two_prompts_twice() -> None:
    other = [{"role": "user", "content": "1 + 1?"}]
    chats = kept_chats([row("2"), row("2 "), row(" 2"), row("2", messages=other)], "verified")
    assert len(chats) == 2
    assert len({chat["item_hash"] for chat in chats}) == 2


ROWS = st.lists(
    st.builds(
        row,
        st.sampled_from(["2", " 2", "3", "two"]),
        st.sampled_from(["stop", "length"]),
        st.sampled_from([None, "failed"]),
        messages=st.sampled_from([ASKED, ASKED[1:], [{"role": "user", "content": "1 + 1?"}]]),
    ),
    max_size=12,
)


@given(ROWS, st.sampled_from(["verified", "all"]), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=50)
def test_the_chats_do_not_depend_on_the_order_of_the_rows(
    rows: list[dict[str, Any]], keep: str, dice: random.Random
) -> None:
    chats = kept_chats(rows, keep)
    shuffled = list(rows)
    dice.shuffle(shuffled)
    assert kept_chats(iter(shuffled), keep) == chats
    wanted = {
        (one["item_hash"], one["text"].strip())
        for one in rows
        if one["error"] is None and (keep == "all" or one["verdict"]["kept"])
    }
    assert [(chat["item_hash"], chat["messages"][-1]["content"]) for chat in chats] == sorted(wanted)
