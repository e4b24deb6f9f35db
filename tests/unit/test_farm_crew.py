"""When batch work gives its place to serving, and what becomes of the batches; Ray is a stand-in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from largeforge_ray.teach.crew import Crew
from largeforge_ray.teach.room import LOOK_S, Room


class Clock:
    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        return self.at


def wanted(looks: list[set[str]], *, every_s: float = LOOK_S) -> list[bool]:
    clock, given = Clock(), iter(looks)
    room, said = Room(lambda: next(given), clock), []
    for _ in looks:
        said.append(room.wanted())
        clock.at += every_s
    return said


def test_a_replica_that_is_there_in_two_looks_wants_room_once_for_each_two() -> None:
    assert wanted([set(), {"a"}, {"a"}, {"a"}, {"a"}, set()]) == [False, False, True, False, True, False]


def test_replicas_that_come_and_go_want_nothing() -> None:
    assert wanted([{"a"}, {"b"}, {"c"}, set(), {"a"}]) == [False] * 5


def test_it_looks_no_oftener_than_it_should_and_a_head_that_does_not_answer_is_not_asked_again() -> None:
    clock, looks = Clock(), []

    def look() -> set[str]:
        looks.append(clock.at)
        if clock.at > 7:
            raise ConnectionError("no dashboard")
        return set()

    room = Room(look, clock)
    for _ in range(40):
        assert not room.wanted()
        clock.at += 0.5
    assert looks == [0.0, 3.0, 6.0, 9.0]


@dataclass
class FakeRay:
    """Tasks end in the order they were asked for, an engine's return last of all."""

    results: dict[int, Any] = field(default_factory=dict)
    killed: list[Any] = field(default_factory=list)
    count: int = 0

    def ref(self, result: Any) -> int:
        self.count += 1
        self.results[self.count] = result
        return self.count

    def get(self, what: Any) -> Any:
        if isinstance(what, list):
            return [self.get(each) for each in what]
        result = self.results[what]
        if isinstance(result, Exception):
            raise result
        return result

    def wait(self, refs: list[int], timeout: float) -> tuple[list[int], list[int]]:
        first = min(refs, key=lambda ref: (self.results[ref] == "slots", ref))
        if self.results[first] == "slots":
            self.results[first] = 4
        return [first], []

    def cancel(self, ref: int) -> None:
        from ray.exceptions import TaskCancelledError

        self.results[ref] = TaskCancelledError()

    def kill(self, engine: Any, *, no_restart: bool) -> None:
        assert not no_restart
        self.killed.append(engine.name)
        engine.slots = SimpleNamespace(remote=lambda: self.ref("slots"))


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    import ray

    fake = FakeRay()
    for name in ("get", "wait", "cancel", "kill"):
        monkeypatch.setattr(ray, name, getattr(fake, name))
    return fake


def crew(ray: FakeRay, wants: Callable[[], bool], engines: int = 2) -> tuple[Crew, list[Any], list[Any]]:
    asked: list[Any] = []
    said: list[Any] = []

    def pair(name: str) -> tuple[Any, Any]:
        def ask(batch: Any, recipe: Any, engine: Any) -> int:
            asked.append((batch[0]["n"], engine.name))
            return ray.ref(batch)

        engine = SimpleNamespace(name=name, slots=SimpleNamespace(remote=lambda: ray.ref(4)))
        return SimpleNamespace(ask=SimpleNamespace(remote=ask)), engine

    room: Any = SimpleNamespace(wanted=wants)
    pairs = [pair("abc"[i]) for i in range(engines)]
    return Crew(pairs, lambda slots: slots // 2, room, lambda *n: said.append(n)), asked, said


def batches(number: int) -> list[list[dict[str, Any]]]:
    return [[{"n": i}] for i in range(number)]


def test_few_batches_are_spread_over_all_engines(ray: FakeRay) -> None:
    made, asked, said = crew(ray, lambda: False)
    assert sorted(b[0]["n"] for b in made.ask(batches(3), None)) == [0, 1, 2]
    assert [name for _, name in asked] == ["a", "b", "a"]
    assert said == []


def test_the_batches_of_an_engine_that_leaves_are_made_by_the_others_each_once(ray: FakeRay) -> None:
    looks = iter([False, True])
    made, asked, said = crew(ray, lambda: next(looks, False))
    done = [b[0]["n"] for b in made.ask(batches(9), None)]
    assert sorted(done) == list(range(9))
    assert ray.killed == ["b"]
    taken = {n for n, name in asked if name == "b"}
    assert taken
    assert all((n, "a") in asked for n in taken)
    assert said == [(1, 2)]
    assert made.here == 1


def test_when_all_have_left_it_waits_until_one_is_back(ray: FakeRay) -> None:
    looks = iter([True, True, True])
    made, _, said = crew(ray, lambda: next(looks, False))
    assert sorted(b[0]["n"] for b in made.ask(batches(6), None)) == list(range(6))
    assert ray.killed[:2] == ["b", "a"]
    assert said[:2] == [(1, 2), (0, 2)]
    assert made.here >= 1
