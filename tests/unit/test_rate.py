"""Rate limits, waits before retries, and the ledger under a cap: for any course of requests."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largeforge_ray.config.teaching import Price
from largeforge_ray.models.rate import RateLimit, asked_wait_s, retry_wait_s
from largeforge_ray.models.spend import Spend, cost_usd

LARGEST = 5000
LIMITS = st.integers(1, 100_000)
COURSES = st.lists(
    st.tuples(st.floats(0, 30), st.integers(1, LARGEST), st.floats(0, 1)), min_size=1, max_size=60
)


def admit(limit: RateLimit, now: float, tokens: int) -> float:
    """Ask, wait as told, ask again; returns when the request went."""
    for _ in range(3):
        wait = limit.wait_s(now, tokens)
        if wait == 0:
            return now
        # A clock's rounding may leave a little to wait for.
        now += max(wait, 1e-6)
    raise AssertionError("it was asked to wait again and again")


def most_in_a_minute(went: list[tuple[float, int]]) -> int:
    return max(sum(n for at, n in went if start <= at < start + 60) for start, _ in went)


@given(LIMITS, LIMITS, COURSES)
def test_no_minute_has_more_than_the_limit_and_what_was_saved_up(
    per_minute: int, tokens_per_minute: int, course: list[tuple[float, int, float]]
) -> None:
    limit, now, went = RateLimit(per_minute, tokens_per_minute), 0.0, []
    for pause, tokens, _ in course:
        now = admit(limit, now + pause, tokens)
        went.append((now, tokens))
    assert most_in_a_minute([(at, 1) for at, _ in went]) <= per_minute + max(1, per_minute / 60) + 1e-3
    # One request may be larger than all that is saved up.
    assert most_in_a_minute(went) <= tokens_per_minute + tokens_per_minute / 60 + LARGEST + 1


@given(LIMITS, COURSES)
def test_what_is_used_keeps_to_the_limit_however_wrong_the_estimates(
    tokens_per_minute: int, course: list[tuple[float, int, float]]
) -> None:
    limit, now, used = RateLimit(None, tokens_per_minute), 0.0, 0
    for pause, tokens, share in course:
        now = admit(limit, now + pause, tokens)
        used += int(tokens * share)
        limit.correct(tokens, int(tokens * share))
    assert used <= tokens_per_minute / 60 * (now + 1) + LARGEST + 1


@given(LIMITS, LIMITS, COURSES)
def test_nobody_waits_when_all_that_is_owed_is_paid_back(
    per_minute: int, tokens_per_minute: int, course: list[tuple[float, int, float]]
) -> None:
    limit, now = RateLimit(per_minute, tokens_per_minute), 0.0
    for pause, tokens, _ in course:
        now = admit(limit, now + pause, tokens)
    owed_s = LARGEST / (tokens_per_minute / 60) + 60
    assert limit.wait_s(now + owed_s + 1, LARGEST) == 0


@given(COURSES)
def test_without_limits_nobody_waits(course: list[tuple[float, int, float]]) -> None:
    limit = RateLimit(None, None)
    for now, tokens, share in course:
        assert limit.wait_s(now, tokens) == 0
        limit.correct(tokens, int(tokens * share))


def test_a_wait_is_as_long_as_the_limit_says() -> None:
    limit = RateLimit(60, None)
    assert limit.wait_s(10.0, 1) == 0
    assert limit.wait_s(10.25, 1) == pytest.approx(0.75)
    assert limit.wait_s(11.0, 1) == 0


def test_given_back_tokens_shorten_the_wait_at_once() -> None:
    limit = RateLimit(None, 600)
    assert limit.wait_s(0.0, 110) == 0
    assert limit.wait_s(0.0, 10) == pytest.approx(11.0)
    limit.correct(110, 10)
    assert limit.wait_s(0.0, 10) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, math.inf),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after-ms": "x", "retry-after": "9"}, 9.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 60.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:20 GMT"}, 0.0),
    ],
)
def test_what_a_server_asks_for_is_read(headers: dict[str, str], seconds: float | None) -> None:
    assert asked_wait_s(headers, now=40.0) == seconds


@given(st.text(max_size=40))
def test_no_header_is_too_strange_to_be_read(text: str) -> None:
    seconds = asked_wait_s({"retry-after": text, "retry-after-ms": text}, now=0.0)
    assert seconds is None or seconds >= 0


@given(st.integers(1, 2000), st.floats(0, 1))
def test_waits_grow_with_the_failures_and_have_an_end(failures: int, jitter: float) -> None:
    wait, longest = retry_wait_s(failures, None, jitter), min(60.0, 0.5 * 2.0 ** min(failures - 1, 20))
    assert longest / 2 <= wait <= longest


@given(st.integers(1, 20), st.floats(0, 1000), st.floats(0, 1))
def test_nobody_comes_back_before_the_time_that_was_asked_for(
    failures: int, asked_s: float, jitter: float
) -> None:
    assert asked_s <= retry_wait_s(failures, asked_s, jitter) <= asked_s * 1.25


def test_a_price_is_of_a_thousand_tokens() -> None:
    assert cost_usd(Price(per_1k_prompt=1.0, per_1k_completion=3.0), 2000, 500) == pytest.approx(3.5)
    assert cost_usd(None, 2000, 500) == 0.0


@given(
    st.floats(0, 10),
    st.lists(st.tuples(st.lists(st.floats(0, 3), min_size=1, max_size=4), st.floats(0, 1)), max_size=40),
)
def test_spent_and_held_never_exceed_the_cap(max_usd: float, steps: list[tuple[list[float], float]]) -> None:
    spend, held = Spend(max_usd, 0.0), []
    for amounts, share in steps:
        if spend.hold(amounts):
            held += amounts
        elif held:
            spend.settle(held[0], held.pop(0) * share)
        assert spend.spent_usd + math.fsum(held) <= max_usd * (1 + 1e-12)
        assert spend.is_pending == bool(held)


def test_a_ledger_without_a_cap_still_adds_up() -> None:
    spend = Spend(None, 1.0)
    assert spend.hold([1e9, 2.0])
    spend.settle(1e9, 0.25)
    assert (spend.spent_usd, spend.is_pending) == (1.25, True)
