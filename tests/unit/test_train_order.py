"""Which rows a step takes, how they are laid out, and the rate it learns with."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largeforge_ray.train.order import Order, lay_out, learning_rate

LENGTHS = st.lists(st.integers(1, 100), min_size=1, max_size=40)


@given(st.integers(1, 50), st.integers(1, 12), st.integers(0, 3))
def test_an_epoch_takes_every_row_once(rows: int, batch: int, epoch: int) -> None:
    order = Order(rows, batch, epoch + 1, seed=7)
    per_epoch = order.steps_per_epoch
    taken = [r for s in range(epoch * per_epoch, (epoch + 1) * per_epoch) for r in order.step_rows(s)]
    assert sorted(taken) == list(range(rows))


def test_epochs_and_seeds_shuffle_differently() -> None:
    order = Order(100, 100, 2, seed=0)
    assert order.step_rows(0) != order.step_rows(1) != Order(100, 100, 2, seed=1).step_rows(1)
    assert order.step_rows(0) == Order(100, 100, 2, seed=0).step_rows(0)


@pytest.mark.parametrize(("epochs", "steps"), [(1.0, 4), (0.5, 2), (0.3, 2), (2.5, 10), (0.01, 1)])
def test_a_part_of_an_epoch_is_a_part_of_its_steps(epochs: float, steps: int) -> None:
    assert Order(25, 8, epochs, seed=0).steps == steps


@given(LENGTHS, st.sampled_from(["packed", "bucketed", "padded"]), st.integers(1, 300), st.integers(1, 4))
def test_every_row_is_laid_out_once_within_the_limit(
    lengths: list[int], batching: str, limit: int, workers: int
) -> None:
    rows = list(range(len(lengths)))
    dealt = lay_out(rows, lengths, batching=batching, tokens_per_pass=limit, workers=workers)
    assert len(dealt) == workers
    assert len({len(passes) for passes in dealt}) == 1, "a collective would wait for ever"
    assert sorted(r for passes in dealt for part in passes for r in part) == rows
    for part in (part for passes in dealt for part in passes if len(part) > 1):
        held = [lengths[r] for r in part]
        used = sum(held) if batching == "packed" else max(held) * len(held)
        assert used <= limit


@given(LENGTHS, st.integers(1, 4))
def test_workers_carry_about_the_same(lengths: list[int], workers: int) -> None:
    dealt = lay_out(range(len(lengths)), lengths, batching="packed", tokens_per_pass=10_000, workers=workers)
    loads = [sum(lengths[r] for part in passes for r in part) for passes in dealt]
    assert max(loads) - min(loads) <= max(lengths)


def test_the_rate_rises_then_falls_to_nothing() -> None:
    def rate(step: int, schedule: str) -> float:
        return learning_rate(step, 100, peak=1.0, warmup=0.1, schedule=schedule)

    assert [rate(s, "linear") for s in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert rate(55, "linear") == rate(55, "cosine") == pytest.approx(0.5)
    assert rate(99, "cosine") < rate(99, "linear") < 0.02
    assert rate(99, "constant") == 1.0
    assert learning_rate(0, 10, peak=1.0, warmup=0.0, schedule="cosine") == 1.0
