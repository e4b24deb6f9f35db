"""The probe of an adapter in an engine that serves: which places it asks, and whom it lets through."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largeforge_ray.errors import GateError
from serve_apps.probing import PLACES, SEQUENCES, _places, probe
from tests.unit._front import in_loop


class Scripted:
    """An engine whose log-probabilities follow from the place; ``moved`` is what its adapter does."""

    def __init__(self, moved: float, refuses: bool = False) -> None:
        self.moved, self.refuses = moved, refuses
        self.asked: list[tuple[int, str | None]] = []

    async def log_probability(self, ids: list[int], token: int, adapter: str | None) -> float:
        if self.refuses:
            raise ValueError("the engine is not in the mood")
        self.asked.append((len(ids), adapter))
        return -len(ids) / 100 + (self.moved if adapter else 0.0)

    async def greedy(self, ids: list[int], adapter: str | None, tokens: int) -> str:
        return "an answer"


def trained(folder: Path, moved: float) -> Path:
    """A folder whose reference says that the adapter moves every log-probability by ``moved``."""
    ids = [list(range(40 + i)) for i in range(4)]
    base = [[-place / 100 for place in range(1, len(one))] for one in ids]
    adapted = [[value + moved for value in one] for one in base]
    (folder / "probe.json").write_text(json.dumps({"ids": ids, "base": base, "adapted": adapted}))
    return folder


@in_loop
async def test_an_engine_that_computes_what_was_trained_passes_with_numbers_and_an_answer(
    tmp_path: Path,
) -> None:
    engine = Scripted(0.5)
    found = await probe(engine, "orders", trained(tmp_path, 0.5))
    assert (found["sequences"], found["tokens"], found["answer"]) == (2, 6, "an answer")
    assert (round(found["effect"], 3), round(found["error"], 3), round(found["noise"], 3)) == (0.5, 0.0, 0.0)
    assert {adapter for _, adapter in engine.asked} == {None, "orders"}
    assert len(engine.asked) == 2 * SEQUENCES * PLACES


@in_loop
@pytest.mark.parametrize(
    ("moved", "why"), [(0.0, "changes none"), (0.9, "another adapter"), (-0.5, "another adapter")]
)
async def test_one_that_computes_nothing_or_something_else_is_refused(
    tmp_path: Path, moved: float, why: str
) -> None:
    with pytest.raises(GateError, match=why):
        await probe(Scripted(moved), "orders", trained(tmp_path, 0.5))


@in_loop
async def test_an_engine_that_refuses_is_a_reason_too(tmp_path: Path) -> None:
    with pytest.raises(GateError, match="not in the mood"):
        await probe(Scripted(0.5, refuses=True), "orders", trained(tmp_path, 0.5))


@given(st.integers(2, 300))
def test_places_lie_in_the_second_half_of_a_sequence_and_end_with_its_last(length: int) -> None:
    places = _places(length)
    assert 1 <= len(places) <= PLACES
    assert places[-1] == length - 1
    assert all(length // 2 <= place < length for place in places)
