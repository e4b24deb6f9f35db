"""What an asker journals, and when; engines are asked through a stand-in for an actor's handle."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import ActorDiedError

from largeforge_ray.errors import ModelError
from largeforge_ray.store import RowJournal, open_store
from largeforge_ray.teach import Recipe, Work
from largeforge_ray.teach.asking import CALLS, WANTED, Asker, Made
from largeforge_ray.teach.pipeline import SPARE, batch_rows, batches_under_way
from largeforge_ray.types import GenerateRequest, Generation, Sampling

Answer = Callable[[GenerateRequest], Awaitable[Generation]]


class Twice(Recipe):
    """Two rows an item, each of two answers."""

    def work(self, item: dict[str, Any]) -> list[Work]:
        name = item["item_id"]
        turns = ({"role": "user", "content": name},)
        return [
            Work(f"{name}-{i}", GenerateRequest(f"{name}-{i}", turns, Sampling()), item) for i in range(2)
        ]

    def follow(self, work: Work, made: Any) -> GenerateRequest | None:
        return replace(work.request, request_id=f"{work.row_key}+") if len(made) == 1 else None

    def row(self, work: Work, made: Any) -> dict[str, Any]:
        return {"row_key": work.row_key, "error": made[-1].error, "texts": [g.text for g in made]}

    def numbers(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"failed": row["error"] is not None, "answers": len(row["texts"])}


class Engine:
    """A handle whose ``generate`` answers by a function, and what it was asked."""

    def __init__(self, answer: Answer) -> None:
        self.asked: list[str] = []

        async def generate(requests: list[GenerateRequest]) -> list[Generation]:
            self.asked += [r.request_id for r in requests]
            return [await answer(r) for r in requests]

        self.generate = SimpleNamespace(remote=generate)


async def at_once(request: GenerateRequest) -> Generation:
    return Generation(request.request_id, text=f"answer to {request.request_id}")


@pytest.fixture
def journal(tmp_path: Path) -> RowJournal:
    return RowJournal(open_store(tmp_path / "forge"), "ab" * 32)


def batch(*keys: str) -> list[dict[str, Any]]:
    return [{"item_id": k.partition("-")[0], "item_hash": "0", "answer": None, WANTED: k} for k in keys]


def test_a_row_is_asked_for_as_often_as_its_recipe_says_and_journalled_once(journal: RowJournal) -> None:
    engine = Engine(at_once)
    told = asyncio.run(Asker(journal).ask(batch("a-0", "a-1", "b-1"), Twice(), engine))
    assert told == Made([{"failed": False, "answers": 2}] * 3, [])
    assert sorted(engine.asked) == sorted(["a-0", "a-0+", "a-1", "a-1+", "b-1", "b-1+"])
    rows = {r["row_key"]: r["texts"] for r in journal.rows()}
    assert rows == {k: [f"answer to {k}", f"answer to {k}+"] for k in ("a-0", "a-1", "b-1")}


def test_after_an_error_nothing_more_is_asked_and_it_is_its_row_s_alone(journal: RowJournal) -> None:
    async def answer(request: GenerateRequest) -> Generation:
        error = "too long" if request.request_id == "a-0" else None
        return Generation(request.request_id, error=error)

    engine = Engine(answer)
    told = asyncio.run(Asker(journal).ask(batch("a-0", "a-1"), Twice(), engine))
    assert told == Made([{"failed": True, "answers": 1}, {"failed": False, "answers": 2}], [])
    assert "a-0+" not in engine.asked
    assert {r["row_key"]: r["error"] for r in journal.rows()} == {"a-0": "too long", "a-1": None}


def test_a_large_batch_is_asked_for_a_few_rows_at_a_time(journal: RowJournal) -> None:
    """And what one of a few needs does not keep the others from their ends."""
    calls = []

    async def answer(request: GenerateRequest) -> Generation:
        error = "too long" if request.request_id == "r1-0" else None
        return Generation(request.request_id, text="so", error=error)

    engine = Engine(answer)
    one_by_one = engine.generate.remote

    async def counted(requests: list[GenerateRequest]) -> list[Generation]:
        calls.append(len(requests))
        return await one_by_one(requests)

    engine.generate.remote = counted
    keys = [f"r{i}-0" for i in range(4 * CALLS + 2)]
    told = asyncio.run(Asker(journal).ask(batch(*keys), Twice(), engine))
    assert [n["answers"] for n in told.numbers] == [1 if key == "r1-0" else 2 for key in keys]
    assert sorted(calls) == [2, 2, 3, *[4] * (2 * CALLS - 1)]
    assert journal.done() == {*keys} - {"r1-0"}


def test_what_an_engine_that_is_gone_has_not_finished_is_left(journal: RowJournal) -> None:
    async def answer(request: GenerateRequest) -> Generation:
        if request.request_id == "a-1+":
            raise ActorDiedError
        return await at_once(request)

    told = asyncio.run(Asker(journal).ask(batch("a-0", "a-1"), Twice(), Engine(answer)))
    assert told == Made([{"failed": False, "answers": 2}], batch("a-1"))
    assert journal.done() == {"a-0"}
    # Whoever gets it next has another asker.
    assert isinstance(told, Made)
    stays = Engine(at_once)
    told = asyncio.run(Asker(journal).ask(told.left, Twice(), stays))
    assert told == Made([{"failed": False, "answers": 2}], [])
    assert stays.asked == ["a-1", "a-1+"]
    assert journal.done() == {"a-0", "a-1"}


def test_when_a_batch_ends_what_others_have_finished_is_journalled_too(journal: RowJournal) -> None:
    """And an asker that is started again makes only the rest of them."""

    async def killed() -> None:
        for_ever = asyncio.Event()

        async def answer(request: GenerateRequest) -> Generation:
            if request.request_id == "b-1":
                await for_ever.wait()
            return await at_once(request)

        asker, engine = Asker(journal), Engine(answer)
        open_ = asyncio.create_task(asker.ask(batch("b-0", "b-1"), Twice(), engine))
        await asyncio.sleep(0.5)
        await asker.ask(batch("a-0", "a-1"), Twice(), engine)
        assert not open_.done()
        open_.cancel()

    asyncio.run(killed())
    assert journal.done() == {"a-0", "a-1", "b-0"}
    engine = Engine(at_once)
    told = asyncio.run(Asker(journal).ask(batch("b-0", "b-1"), Twice(), engine))
    assert engine.asked == ["b-1", "b-1+"]
    assert len(told.numbers) == 1
    assert journal.done() == {"a-0", "a-1", "b-0", "b-1"}


def test_an_engine_that_can_go_on_no_more_is_told_in_its_words_and_finished_rows_are_kept(
    journal: RowJournal,
) -> None:
    async def answer(request: GenerateRequest) -> Generation:
        if request.request_id.startswith("a-1"):
            raise ModelError("the money is spent")
        return await at_once(request)

    told = asyncio.run(Asker(journal).ask(batch("a-0", "a-1", "b-0"), Twice(), Engine(answer)))
    assert told == "the money is spent"
    assert journal.done() == {"a-0", "b-0"}


def test_a_journal_that_takes_nothing_is_told_too(
    journal: RowJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def append(rows: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(journal, "append", append)
    told = asyncio.run(Asker(journal).ask(batch("a-0"), Twice(), Engine(at_once)))
    assert told == "OSError: no space left on device"


@given(st.integers(1, 10**8), st.integers(1, 1024))
def test_batches_under_way_hold_more_rows_than_the_engine_works_on(total: int, slots: int) -> None:
    rows = batch_rows(total)
    held = rows * batches_under_way(slots, rows)
    assert slots < held <= max(2 * rows, SPARE * slots + rows)
