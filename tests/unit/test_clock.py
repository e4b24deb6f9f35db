"""Shares of an engine's time."""

from __future__ import annotations

from contextlib import ExitStack, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largeforge_ray.models.clock import SharedClock


def test_a_moment_is_divided_among_those_under_way() -> None:
    now = [10.0]
    clock = SharedClock(lambda: now[0])
    first, second = ExitStack(), ExitStack()
    a = first.enter_context(clock.share())
    now[0] += 2
    b = second.enter_context(clock.share())
    now[0] += 4
    first.close()
    now[0] += 1
    second.close()
    now[0] += 100
    with clock.share() as c:
        now[0] += 3
    assert (a.seconds, b.seconds, c.seconds) == (4.0, 3.0, 3.0)


def test_a_request_that_fails_has_had_its_part() -> None:
    now = [0.0]
    clock = SharedClock(lambda: now[0])
    with suppress(ValueError), clock.share() as mine:
        now[0] = 5.0
        raise ValueError("no")
    assert mine.seconds == 5.0


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50)), min_size=1, max_size=30))
def test_the_parts_add_up_to_the_time_that_anything_was_under_way(spans: list[tuple[int, int]]) -> None:
    now = [0.0]
    clock = SharedClock(lambda: now[0])
    ends = [(begin, +1, i) for i, (begin, _) in enumerate(spans)]
    ends += [(begin + length, -1, i) for i, (begin, length) in enumerate(spans)]
    open_, shares = {}, {}
    for at, joins, i in sorted(ends):
        now[0] = float(at)
        if joins > 0:
            open_[i] = ExitStack()
            shares[i] = open_[i].enter_context(clock.share())
        else:
            open_[i].close()
    busy = {moment for begin, length in spans for moment in range(begin, begin + length)}
    assert sum(share.seconds for share in shares.values()) == pytest.approx(len(busy))
