"""Which answers a teacher's check keeps and why, what the teacher is shown, and the names of its rows."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from largeforge_ray.teach import verify
from largeforge_ray.teach.verify import CHECKS
from largeforge_ray.types import Verdict


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
