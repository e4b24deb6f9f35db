"""What a stage held is added up over whoever came and went, and priced."""

from __future__ import annotations

import pytest

from largeforge_ray.config.manifest import Prices
from largeforge_ray.flow.ledger import Ledger, spent


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_seconds_count_for_each_process_that_is_held() -> None:
    clock = Clock()
    ledger = Ledger(clock)
    ledger.hold(2)
    clock.now += 10
    with ledger.holding(3):
        clock.now += 4
    ledger.hold(-2)
    clock.now += 100
    assert ledger.take() == 2 * 10 + 5 * 4
    assert ledger.take() == 0.0


def test_what_goes_on_being_held_is_the_next_stages() -> None:
    clock = Clock()
    ledger = Ledger(clock)
    ledger.hold(1)
    clock.now += 5
    assert ledger.take() == 5
    clock.now += 7
    assert ledger.take() == 7


def test_a_failure_gives_back_what_was_held() -> None:
    clock = Clock()
    ledger = Ledger(clock)
    with pytest.raises(RuntimeError), ledger.holding(4):
        raise RuntimeError
    clock.now += 9
    assert ledger.take() == 0.0


def test_machines_and_endpoints_are_paid_together() -> None:
    prices = Prices(per_cpu_hour=0.05, per_gpu_hour=2.0)
    cost = spent(7200.0, 1, prices, {"tokens": 900, "usd": 0.25})
    assert cost == {"cpu_s": 7200.0, "gpu_s": 7200.0, "tokens": 900, "usd": pytest.approx(4.35)}


def test_without_a_price_nothing_is_said_of_money() -> None:
    assert spent(12.0, 0, None, {}) == {"cpu_s": 12.0, "gpu_s": 0.0}
    assert spent(12.0, 0, None, {"usd": 0.5})["usd"] == 0.5
