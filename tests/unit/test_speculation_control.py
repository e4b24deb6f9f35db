"""When speculation is on: a made-up engine whose drafts cost and are right as often as a test says."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from largeforge_ray.models.spec_control import (
    BASELINE_STEPS,
    MARGIN,
    TRIAL_STEPS,
    Controller,
    Pace,
    Speculating,
    decide,
    size_class,
)
from largeforge_ray.models.vllm_scheduler import Dropped

K = 4


@dataclass
class Machine:
    """Runs steps as the scheduler does. ``price`` is in plain steps, ``rate`` the share of right tokens."""

    price: float
    rate: float
    requests: int = 1
    watched: bool = True
    noise: float = 0.0
    control: Controller = field(default_factory=Controller)
    tokens: float = 0.0
    seconds: float = 0.0
    rng: random.Random = field(default_factory=lambda: random.Random(0))

    def run(self, steps: int) -> Machine:
        """Forget what was yielded and run; the controller remembers."""
        self.tokens = self.seconds = 0.0
        for _ in range(steps):
            on = self.control.speculates("")
            drafted = K * self.requests if on else 0
            slow = 1 + self.noise * self.rng.uniform(-1, 1)
            took = 0.02 * slow * (1 + self.price * drafted / self.requests)
            for _ in range(self.requests):
                accepted = sum(self.rng.random() < self.rate for _ in range(K))
                if on or self.watched:
                    self.control.see_draft("", K, accepted)
                self.tokens += 1 + (accepted if on else 0)
            self.control.see_step(self.requests, drafted, took)
            self.seconds += took
            self.control.settle(self.requests)
        return self

    @property
    def gain(self) -> float:
        """Tokens a second, over those without speculation."""
        return self.tokens / self.seconds / (self.requests / 0.02)


@pytest.mark.parametrize("watched", [True, False])
@pytest.mark.parametrize(("requests", "price"), [(1, 0.08), (4, 0.15), (16, 0.4)])
def test_drafts_that_are_right_are_verified_at_once_and_for_good(
    requests: int, price: float, watched: bool
) -> None:
    machine = Machine(price, 0.8, requests, watched).run(20)
    assert machine.control.speculates("")
    best = (1 + 0.8 * K) / (1 + price * K)
    assert machine.run(500).gain > 0.98 * best


@pytest.mark.parametrize("watched", [True, False])
@pytest.mark.parametrize(("requests", "price"), [(1, 0.3), (4, 0.5), (16, 1.0)])
@pytest.mark.parametrize("rate", [0.0, 0.05, 0.2])
def test_drafts_that_are_wrong_cost_less_than_a_fiftieth(
    requests: int, price: float, rate: float, watched: bool
) -> None:
    machine = Machine(price, rate, requests, watched, noise=0.1).run(100)
    assert machine.run(4000).gain > 0.98


@given(
    price=st.floats(0.0, 1.5),
    rate=st.floats(0.0, 1.0),
    requests=st.integers(1, 16),
    watched=st.booleans(),
)
@settings(max_examples=20, deadline=None)
def test_whatever_drafts_cost_and_yield_little_is_lost(
    price: float, rate: float, requests: int, watched: bool
) -> None:
    machine = Machine(price, rate, requests, watched, noise=0.05).run(200)
    assert machine.run(1500).gain > 0.97


@pytest.mark.parametrize(("watched", "steps"), [(True, 60), (False, 4000)])
def test_it_is_on_again_when_drafts_are_right_again(watched: bool, steps: int) -> None:
    machine = Machine(0.3, 0.0, watched=watched).run(200)
    assert not machine.control.speculates("")
    machine.rate = 0.9
    machine.run(steps)
    assert machine.control.speculates("")


def test_a_draft_that_was_never_right_gets_another_trial_and_that_one_counts() -> None:
    machine = Machine(0.6, 0.0, watched=False).run(100)
    machine.control.experts[""] = Speculating(accepted=1e-12, drafted=K / (1 - 0.97))
    machine.rate = 1.0
    machine.run(5000)
    assert machine.control.speculates("")


def test_each_batch_size_has_its_own_price() -> None:
    machine = Machine(0.1, 0.5, requests=1).run(50)
    assert machine.control.speculates("")
    machine.requests, machine.price = 16, 1.2
    machine.run(50)
    assert not machine.control.speculates("")
    machine.requests, machine.price = 1, 0.1
    machine.run(5)
    assert machine.control.speculates("")


def test_each_expert_has_its_own_rate() -> None:
    control = Controller()
    for _ in range(60):
        for expert, right in (("copies", K), ("writes", 0)):
            control.see_draft(expert, K, right)
        drafted = K * sum(control.speculates(e) for e in ("copies", "writes"))
        control.see_step(2, drafted, 0.02 * (1 + 0.3 * drafted / 2))
        control.settle(2)
    assert control.speculates("copies")
    assert not control.speculates("writes")


def test_nothing_is_verified_before_there_is_something_to_compare_with() -> None:
    pace = Pace()
    for _ in range(BASELINE_STEPS):
        assert pace.price == math.inf
        pace = pace.after(1, 0, 0.02)
    assert pace.price < 0.1
    assert pace.plain_s == pytest.approx(0.02)


def test_a_price_is_plain_steps_for_a_token_of_each_request() -> None:
    pace = Pace()
    for _ in range(8):
        pace = pace.after(4, 0, 0.02)
    for _ in range(40):
        pace = pace.after(4, 16, 0.05)
    assert pace.price == pytest.approx((0.05 / 0.02 - 1) * 4 / 16, rel=0.02)


def test_one_slow_plain_step_does_not_make_drafts_look_cheap() -> None:
    pace = Pace()
    for _ in range(8):
        pace = pace.after(1, 0, 0.02)
    assert pace.after(1, 0, 5.0).plain_s < 0.025


def test_one_slow_step_does_not_set_the_price() -> None:
    pace = Pace()
    for _ in range(8):
        pace = pace.after(1, 0, 0.02)
    for _ in range(20):
        pace = pace.after(1, 4, 0.024)
    assert pace.after(1, 4, 5.0).price < 0.6


@given(st.floats(0.0, 2.0), st.floats(0.0, 1.0), st.booleans())
def test_between_the_price_and_the_margin_nothing_is_switched(price: float, rate: float, on: bool) -> None:
    state = Speculating(on=on, accepted=8 * rate, drafted=8.0, steps=TRIAL_STEPS)
    switched = decide(state, price).on != on
    if price <= state.rate <= MARGIN * price:
        assert not switched
    elif state.rate < price:
        assert switched == on
    else:
        assert switched != on


def test_a_trial_lasts_some_steps_unless_there_is_no_price_at_all() -> None:
    state = Speculating(on=True, accepted=0.0, drafted=8.0)
    assert decide(state, 0.9).on
    assert not decide(state, math.inf).on


def test_switches_are_counted() -> None:
    state = Speculating()
    for price in (math.inf, 0.1, math.inf, 0.1):
        state = decide(state, price)
    assert (state.on, state.switches) == (True, 3)


@given(st.integers(2, 256))
def test_batch_sizes_of_one_class_are_close(requests: int) -> None:
    smallest = next(n for n in range(1, requests + 1) if size_class(n) == size_class(requests))
    assert requests <= max(smallest, 1.34 * smallest)


@pytest.mark.parametrize(
    ("said", "accepted"),
    [([[1], [2], [3]], 3), ([[1], [9]], 1), ([[9]], 0), ([[1, 2, 3, 4]], 3), ([[1, 2], [8]], 2)],
)
def test_a_dropped_draft_is_judged_by_what_the_model_says_next(said: list[list[int]], accepted: int) -> None:
    dropped = Dropped([1, 2, 3])
    assert [dropped.over(tokens) for tokens in said] == [False] * (len(said) - 1) + [True]
    assert dropped.said == accepted
