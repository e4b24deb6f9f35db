"""What load, price, failures and a conversation's past do to a decision."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largeforge_ray.routing import Observation, build_policy, parse_router
from largeforge_ray.routing.breaker import FAILURES, LONGEST_S, SHORTEST_S, TRIAL_S, Breaker
from largeforge_ray.routing.load import Load, predicted_wait_s
from largeforge_ray.routing.policy import ExpertState
from largeforge_ray.types import Decision
from serve_apps.openai_errors import ReplyHead, expert_unavailable, queue_full
from tests.unit._front import EVENTS, ORDER, STREAM, ScriptedEngine, Wire, app, completion, in_loop
from tests.unit.test_routing import ADAPTER, expert, router

ORDERS = expert(
    "tuned", ADAPTER, {"order": 0.5, "json": 0.5}, price={"per_1k_prompt": 2.0, "per_1k_completion": 0.0}
)
MATCH = "an order as json"
DOWN = ExpertState(up=False)


def decide(*turns: str, states: dict[str, ExpertState] | None = None, **policy: Any) -> Decision:
    table = router(expert("base"), ORDERS)
    table["policy"] |= policy
    return build_policy(parse_router(table)).decide(Observation("r", turns), states)


def test_an_expert_that_is_down_is_passed_over_and_the_reason_says_so() -> None:
    decision = decide(MATCH, states={"tuned": DOWN})
    assert (decision.chosen, decision.fell_back, decision.runner_up) == ("base", True, "tuned")
    assert decision.reason == "2 of 2 keywords of 'tuned', which is down"


def test_the_general_expert_is_named_even_if_it_is_down_too() -> None:
    assert decide(MATCH, states={"tuned": DOWN, "base": DOWN}).chosen == "base"


@pytest.mark.parametrize(
    ("weights", "waits", "chosen"),
    [
        ({}, (100.0, 0.0), "tuned"),
        ({"wait_weight": 0.1}, (4.9, 0.0), "tuned"),
        ({"wait_weight": 0.1}, (5.1, 0.0), "base"),
        ({"wait_weight": 0.1}, (5.1, 0.3), "tuned"),
        ({"cost_weight": 0.2}, (0.0, 0.0), "tuned"),
        ({"cost_weight": 0.3}, (0.0, 0.0), "base"),
        ({"cost_weight": 0.2, "wait_weight": 0.1}, (1.1, 0.0), "base"),
    ],
)
def test_a_second_of_waiting_and_a_unit_of_price_cost_quality(
    weights: dict[str, float], waits: tuple[float, float], chosen: str
) -> None:
    """A full match is worth 1 and what the general expert does is worth the threshold, a half."""
    states = dict(zip(("tuned", "base"), (ExpertState(wait_s=w) for w in waits), strict=True))
    decision = decide(MATCH, states=states, **weights)
    assert decision.chosen == chosen
    assert decision.predicted_wait_s == states[chosen].wait_s
    assert ("dearer or busier" in decision.reason) is (chosen == "base")


def test_a_conversation_stays_with_the_expert_that_an_earlier_turn_found() -> None:
    talk = ("hello", MATCH, "thanks, and another one")
    decision = decide(*talk)
    assert (decision.chosen, decision.fell_back) == ("tuned", False)
    assert decision.reason == "2 of 2 keywords of 'tuned', in an earlier turn"
    assert decide(*talk, sticky=False).chosen == "base"
    assert decide(*talk, states={"tuned": DOWN}).chosen == "base"
    assert decide("hello", "how are you?").reason == "by keyword no expert scores above 0"


@given(st.lists(st.booleans(), max_size=30), st.lists(st.floats(0.0, 100.0), min_size=30, max_size=30))
def test_a_breaker_opens_after_failures_in_a_row_and_closes_on_a_success(
    failed: list[bool], passing: list[float]
) -> None:
    breaker, now, row = Breaker(), 0.0, 0
    for fails, wait in zip(failed, passing, strict=False):
        now += wait
        was_open, allowed = breaker.open_s > 0, breaker.allows(now)
        assert was_open or allowed
        if not allowed:
            assert now < breaker.until <= now + max(LONGEST_S, TRIAL_S)
            continue
        breaker = breaker.asked(now)
        assert breaker.allows(now) is not was_open, "of an open breaker one trial goes at a time"
        breaker = breaker.told(failed=fails, now=now)
        row = row + 1 if fails else 0
        assert (breaker.open_s > 0) == ((was_open and fails) or row >= FAILURES)
        if breaker.open_s:
            assert SHORTEST_S <= breaker.open_s <= LONGEST_S
            assert not breaker.allows(now)
            assert breaker.allows(now + breaker.open_s)
        else:
            assert not fails or row < FAILURES


def test_an_open_breaker_stays_open_twice_as_long_each_time() -> None:
    breaker, now, opened = Breaker(), 0.0, []
    for _ in range(FAILURES - 1):
        breaker = breaker.told(failed=True, now=now)
    for _ in range(7):
        breaker = breaker.asked(now).told(failed=True, now=now)
        opened.append(breaker.open_s)
        now = breaker.until
    assert opened == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_a_trial_that_nobody_tells_of_is_not_waited_for_for_ever() -> None:
    breaker = Breaker(FAILURES, until=0.0, open_s=1.0).asked(5.0)
    assert not breaker.allows(5.0 + TRIAL_S - 0.1)
    assert breaker.allows(5.0 + TRIAL_S)


@pytest.mark.parametrize(
    ("load", "seconds"),
    [
        (Load(given=0, slots=4, seconds=8.0), 0.0),
        (Load(given=3, slots=4, seconds=8.0), 0.0),
        (Load(given=4, slots=4, seconds=8.0), 2.0),
        (Load(given=11, slots=4, seconds=8.0), 16.0),
        (Load(given=0, slots=4, seconds=8.0, load_s=1.5), 1.5),
    ],
)
def test_a_wait_is_for_as_many_ends_as_stand_before(load: Load, seconds: float) -> None:
    assert predicted_wait_s(load) == seconds


@pytest.mark.parametrize(
    "script",
    [
        [expert_unavailable("tuned")],
        [queue_full(9, 8)],
        [ReplyHead(500), b"{}"],
        [STREAM, EVENTS[0], expert_unavailable("tuned")],
    ],
)
@in_loop
async def test_after_failures_in_a_row_others_get_the_requests_until_a_trial_succeeds(
    script: list[Any],
) -> None:
    engine = ScriptedEngine(*script)
    front, order = app(engine), ORDER | {"model": "auto"}

    async def chosen() -> str:
        await Wire(order).start(front)
        return engine.asked[-1][0]

    assert [await chosen() for _ in range(FAILURES)] == ["tuned"] * FAILURES
    engine.script = (ReplyHead(200), completion("hi"))
    assert [await chosen(), await chosen()] == ["base", "base"]
    await asyncio.sleep(SHORTEST_S)
    assert [await chosen(), await chosen()] == ["tuned", "tuned"]
