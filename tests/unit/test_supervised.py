"""An engine that dies: what was under way is answered all the same, and what kills it is found."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from largeforge_ray.errors import ModelError
from largeforge_ray.models import supervised
from largeforge_ray.models.engine import EngineDied
from largeforge_ray.models.supervised import VAIN_STARTS, SupervisedEngine
from largeforge_ray.types import GenerateRequest, Generation, Sampling, ScoreRequest, TokenScores


class Host:
    """Starts engines; a request in ``poison`` kills its engine, ``kills`` do so by number of answers."""

    def __init__(
        self, poison: Collection[str] = (), kills: Collection[int] = (), starts_fail: int = 0
    ) -> None:
        self.poison, self.kills = set(poison), set(kills)
        self.starts, self.starts_fail = 0, starts_fail
        self.asked: Counter[str] = Counter()
        self.answered = 0
        self.most_beside_poison = []

    def start(self) -> FragileEngine:
        self.starts += 1
        if self.starts <= self.starts_fail:
            raise RuntimeError("killed while it started")
        return FragileEngine(self)


class FragileEngine:
    start_seconds = 1.0
    errored = False

    def __init__(self, host: Host) -> None:
        self.host = host
        self.dead = asyncio.Event()
        self.running: set[str] = set()
        self.stopped = False

    async def _work(self, name: str) -> None:
        host = self.host
        assert not self.stopped
        host.asked[name] += 1
        self.running.add(name)
        try:
            await asyncio.sleep(0)
            if name in host.poison:
                host.most_beside_poison.append(len(self.running))
                self.dead.set()
            if self.dead.is_set():
                raise EngineDied
            host.answered += 1
            if host.answered in host.kills:
                self.dead.set()
                raise EngineDied
        finally:
            self.running.discard(name)

    async def generate(self, requests: list[GenerateRequest]) -> list[Generation]:
        await asyncio.gather(*(self._work(r.request_id) for r in requests))
        return [Generation(r.request_id, text=f"to {r.request_id}") for r in requests]

    async def score(self, requests: list[ScoreRequest]) -> list[TokenScores]:
        await asyncio.gather(*(self._work(r.request_id) for r in requests))
        return [TokenScores(r.request_id, (0.5,)) for r in requests]

    def shutdown(self) -> None:
        self.stopped = True


def ask(host: Host, *names: str) -> dict[str, Generation]:
    async def run() -> list[Generation]:
        engine = SupervisedEngine(host.start)
        return await engine.generate([GenerateRequest(n, (), Sampling()) for n in names])

    return {made.request_id: made for made in asyncio.run(asyncio.wait_for(run(), 10))}


NAMES = [f"r{i}" for i in range(12)]


def test_a_death_costs_no_answer() -> None:
    host = Host(kills={3})
    made = ask(host, *NAMES)
    assert [made[n].text for n in NAMES] == [f"to {n}" for n in NAMES]
    assert host.starts == 2


def test_the_request_that_kills_is_found_and_costs_no_other() -> None:
    host = Host(poison={"r5"})
    made = ask(host, *NAMES)
    assert {n for n in NAMES if made[n].error} == {"r5"}
    assert made["r5"].error == "the engine died 2 times while it had this request alone"
    assert host.most_beside_poison[-2:] == [1, 1]
    assert host.asked["r5"] == 4


@settings(max_examples=40, deadline=None)
@given(st.sets(st.sampled_from(NAMES), max_size=2), st.sets(st.integers(1, 10), max_size=1))
def test_every_request_is_answered_or_is_one_that_kills(poison: set[str], kills: set[int]) -> None:
    made = ask(Host(poison, kills), *NAMES)
    assert set(made) == set(NAMES)
    assert {n for n in NAMES if made[n].error} == poison


def test_nothing_but_requests_that_kill_is_answered_with_as_many_errors() -> None:
    """More of them than an engine may start in vain: between them it shows that it works."""
    host = Host(poison=set(NAMES))
    made = ask(host, *NAMES)
    assert {m.error for m in made.values()} == {"the engine died 2 times while it had this request alone"}
    assert host.starts > 2 * VAIN_STARTS
    assert host.asked["harmless"] == len(NAMES)


def test_an_engine_that_never_answers_is_given_up() -> None:
    host = Host(poison={*NAMES, "harmless"})
    with pytest.raises(ModelError, match=f"the last {VAIN_STARTS + 1} without an answer between"):
        ask(host, *NAMES)
    assert host.starts == VAIN_STARTS + 1


def test_one_failed_start_is_tried_again_and_a_second_tells() -> None:
    assert ask(Host(starts_fail=1), "r0")["r0"].text == "to r0"
    with pytest.raises(RuntimeError, match="while it started"):
        ask(Host(starts_fail=2), "r0")


def test_scores_survive_a_death_too() -> None:
    async def run() -> list[TokenScores]:
        return await SupervisedEngine(Host(kills={2}).start).score([ScoreRequest(n, (1,)) for n in NAMES])

    assert [s.logprobs for s in asyncio.run(run())] == [(0.5,)] * len(NAMES)


class SilentEngine(FragileEngine):
    """As vLLM's when a new request meets the death first: the others are told nothing."""

    async def generate(self, requests: list[GenerateRequest]) -> list[Generation]:
        if self.host.starts == 1:
            if requests[0].request_id != NAMES[-1]:
                await asyncio.Event().wait()
            raise EngineDied
        return await super().generate(requests)


def test_who_waits_for_an_engine_that_is_replaced_is_answered_by_the_next() -> None:
    class SilentHost(Host):
        def start(self) -> FragileEngine:
            self.starts += 1
            return SilentEngine(self)

    host = SilentHost()
    made = ask(host, *NAMES)
    assert {name: one.text for name, one in made.items()} == {name: f"to {name}" for name in NAMES}
    assert host.starts == 2


def test_a_request_that_never_reached_a_dead_core_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervised, "LOOK_S", 0.01)

    class DeafEngine(FragileEngine):
        async def generate(self, requests: list[GenerateRequest]) -> list[Generation]:
            if self.host.starts == 1:
                self.errored = True
                await asyncio.Event().wait()
            return await super().generate(requests)

    class DeafHost(Host):
        def start(self) -> FragileEngine:
            self.starts += 1
            return DeafEngine(self)

    host = DeafHost()
    assert ask(host, "one", "two")["two"].text == "to two"
    assert host.starts == 2
