"""When batch work gives its place to serving, and what becomes of the batches; Ray is a stand-in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayActorError

from largeforge_ray.errors import StageError
from largeforge_ray.models.room import (
    BLIND_S,
    BOARD,
    FORGET_S,
    IN_VAIN,
    LOOK_S,
    Place,
    Room,
    Waiting,
    Wish,
    priority_of,
    who_waits,
)
from largeforge_ray.teach.asking import Made
from largeforge_ray.teach.crew import Crew

LEAVE, STAY = Wish.LEAVE, Wish.STAY


class Clock:
    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        return self.at


def wishes(looks: Iterable[str], takes: int = 1, ends: bool = True) -> list[Wish | None]:
    """Of looks that each see the replicas named by their letters; where one should, an engine ``ends``."""
    clock, given = Clock(), [[Waiting(name, takes) for name in names] for names in looks]
    room, said = Room(iter(given).__next__, clock), []
    for _ in given:
        said.append(room.wish())
        if ends and said[-1] is LEAVE:
            room.gave()
        clock.at += LOOK_S
    return said


def test_who_waits_in_two_looks_gets_room_and_then_engines_come_back() -> None:
    assert wishes(["", "a", "a", "a", "", ""]) == [STAY, None, LEAVE, None, STAY, STAY]


def test_as_many_leave_as_wait_whichever_of_them_is_given_the_room() -> None:
    assert wishes(["ab", "ab", "ab", ""]) == [None, LEAVE, LEAVE, STAY]
    assert wishes(["ab", "ab", "a", "a", ""]) == [None, LEAVE, LEAVE, None, STAY]
    assert wishes(["ab", "ab", "b", "b", ""]) == [None, LEAVE, LEAVE, None, STAY]
    assert wishes("aaa", takes=2) == [None, LEAVE, LEAVE]


def test_one_more_leaves_in_case_a_place_was_none_and_then_it_was_in_vain() -> None:
    made = wishes("a" * 20)
    assert made.count(LEAVE) == 2
    assert made[-1] is STAY
    assert STAY in made[: 3 * IN_VAIN]
    # Another that comes then is another matter.
    assert wishes(["a"] * 20 + ["ab", "ab"])[-1] is LEAVE


def test_what_was_in_vain_is_tried_again_after_a_while_and_forgotten_with_who_waited() -> None:
    made = wishes("a" * (20 + int(FORGET_S / LOOK_S)))
    assert LEAVE not in made[20 : int(FORGET_S / LOOK_S)]
    assert LEAVE in made[int(FORGET_S / LOOK_S) :]
    assert wishes([*("a" * 20), "", "a", "a"])[-1] is LEAVE


def test_where_nobody_can_leave_engines_that_did_come_back_after_a_while() -> None:
    assert wishes("a" * 20, ends=False)[-1] is STAY


def test_replicas_that_come_and_go_want_nothing() -> None:
    assert wishes(["a", "b", "c", "", "a"]) == [None, None, None, STAY, None]


def test_between_looks_it_says_nothing_and_after_one_that_failed_it_looks_again_later() -> None:
    clock, looks = Clock(), []

    def look() -> list[Waiting]:
        looks.append(clock.at)
        if clock.at == 3:
            raise ConnectionError("no dashboard")
        return []

    room = Room(look, clock)
    heard = {}
    for _ in range(int(2 * (BLIND_S + 8))):
        heard[clock.at] = room.wish()
        clock.at += 0.5
    assert looks == [0.0, 3.0, 3.0 + BLIND_S, 6.0 + BLIND_S]
    assert {at for at, wish in heard.items() if wish is STAY} == {*looks}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """What Ray lists: fill in ``actors`` and ``groups``."""
    import ray
    import ray.util.state

    there: dict[str, list[Any]] = {"actors": [], "groups": []}

    def listed(kind: str) -> Callable[..., list[Any]]:
        def of(*, filters: list[tuple[str, str, str]], **_: Any) -> list[Any]:
            return [
                one for one in there[kind] if all(getattr(one, name) == want for name, _, want in filters)
            ]

        return of

    monkeypatch.setattr(ray.util.state, "list_actors", listed("actors"))
    monkeypatch.setattr(ray.util.state, "list_placement_groups", listed("groups"))
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="here"))
    return there


def actor(name: str, kind: str = "ServeReplica:app:engine", pid: int = 0, **resources: float) -> Any:
    state = "ALIVE" if pid else "PENDING_CREATION"
    return SimpleNamespace(
        actor_id=name,
        class_name=kind,
        name=name,
        pid=pid,
        state=state,
        job_id=f"job of {name}",
        required_resources=resources,
    )


def test_only_replicas_without_a_process_that_want_what_we_hold_wait(cluster: dict[str, list[Any]]) -> None:
    cluster["actors"] = [
        actor("a", GPU=1.0),
        actor("b", pid=7, GPU=1.0),
        actor("c", CPU=4.0),
        actor("d", "Trainer", GPU=1.0),
        actor("e", GPU=2.5),
    ]
    assert who_waits({"GPU": 1.0}) == [Waiting("a", 1), Waiting("e", 3)]


def test_stages_of_a_higher_priority_wait_with_serving(cluster: dict[str, list[Any]]) -> None:
    names = {priority: Place("run", "teach", priority).name() for priority in (-3, 0, 4)}
    cluster["actors"] = [actor(name, "EngineActor", CPU=1.0) for name in names.values()]
    # Workers of a training have no name; the board of their job has.
    cluster["actors"] += [actor(Place("r", "train", p).name(), BOARD, pid=9) for p in (0, 9)]
    cluster["groups"] = [
        SimpleNamespace(
            placement_group_id=f"group {i}",
            name="",
            state="PENDING",
            creator_job_id=board.job_id,
            bundles=[{"unit_resources": {"CPU": 1.0}}] * 2,
        )
        for i, board in enumerate(cluster["actors"][-2:])
    ]
    assert who_waits({"CPU": 1.0}, priority=9) == []
    job = cluster["groups"][1].creator_job_id
    assert who_waits({"CPU": 1.0}, priority=4) == [Waiting(job, 2)]
    assert who_waits({"CPU": 1.0}, priority=0) == [Waiting(names[4], 1), Waiting(job, 2)]
    assert who_waits({"GPU": 1.0}, priority=0) == []


def test_a_replica_waits_whose_workers_may_be_on_several_nodes(cluster: dict[str, list[Any]]) -> None:
    from ray.serve._private.common import REPLICA_ID_FULL_ID_STR_PREFIX

    name = f"{REPLICA_ID_FULL_ID_STR_PREFIX}app#engine#1"
    bundles = [{"unit_resources": {"CPU": 1.0}}, *([{"unit_resources": {"GPU": 1.0}}] * 4)]
    shared: dict[str, Any] = {"state": "PENDING", "creator_job_id": "serve", "bundles": bundles}
    cluster["groups"] = [
        SimpleNamespace(placement_group_id="a", name=name, **shared),
        SimpleNamespace(placement_group_id="b", name="somebody else's", **shared),
    ]
    assert who_waits({"GPU": 1.0}, priority=9) == [Waiting("a", 4)]


def test_an_actor_s_name_says_whose_it_is_and_is_given_once() -> None:
    place = Place("20261126-101010-ab12", "teach", -3, {"teacher": 0.5})
    one, other = place.options(), place.options()
    assert one["name"] != other["name"]
    assert one["name"].startswith("largeforge:20261126-101010-ab12:teach:priority -3:")
    assert one["resources"] == {"teacher": 0.5}
    assert priority_of(one["name"]) == -3
    assert [priority_of(name) for name in (None, "", "SERVE_CONTROLLER_ACTOR", "a:b:c:d:e")] == [None] * 4


@dataclass
class FakeRay:
    """Tasks end in the order they were asked for; of a killed engine's all but the first row are left."""

    results: dict[int, Any] = field(default_factory=dict)
    of: dict[int, str] = field(default_factory=dict)
    killed: list[str] = field(default_factory=list)

    def ref(self, result: Any, engine: str) -> int:
        number = len(self.results) + 1
        self.results[number], self.of[number] = result, engine
        return number

    def get(self, ref: int) -> Any:
        result = self.results[ref]
        if isinstance(result, Exception):
            raise result
        return result

    def wait(self, refs: list[int], *, timeout: float, num_returns: int = 1) -> tuple[list[int], list[int]]:
        return sorted(refs)[:num_returns], []

    def kill(self, engine: Any) -> None:
        self.killed.append(engine.name)
        for ref, name in self.of.items():
            if name == engine.name:
                made = self.results[ref]
                rows = made.numbers if isinstance(made, Made) else []
                self.results[ref] = Made(rows[:1], rows[1:]) if rows else ActorDiedError()


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    import ray

    fake = FakeRay()
    for name in ("get", "wait", "kill"):
        monkeypatch.setattr(ray, name, getattr(fake, name))
    return fake


@dataclass
class Farm:
    """A crew of scripted engines, who asked whom for which rows, and what was said."""

    ray: FakeRay
    wish: Callable[[], Wish | None]
    engines: int = 2
    started: int = 0
    fails: bool = False
    asked: list[tuple[str, list[int]]] = field(default_factory=list)
    said: list[tuple[int, int]] = field(default_factory=list)

    def engine(self) -> Any:
        name = "abcdefgh"[self.started]
        self.started += 1
        up = RayActorError() if self.fails and self.started > self.engines else 4
        return SimpleNamespace(name=name, slots=SimpleNamespace(remote=lambda: self.ray.ref(up, name)))

    def crew(self) -> Crew:
        def ask(batch: Any, recipe: Any, engine: Any) -> int:
            self.asked.append((engine.name, [row["n"] for row in batch]))
            return self.ray.ref(Made(list(batch), []), engine.name)

        asker = SimpleNamespace(ask=SimpleNamespace(remote=ask))
        pairs = [(asker, self.engine()) for _ in range(self.engines)]
        room: Any = SimpleNamespace(wish=self.wish, gave=lambda: None)
        return Crew(pairs, lambda slots: slots // 2, room, self.engine, lambda *n: self.said.append(n))


def batches(number: int) -> list[list[dict[str, Any]]]:
    """Of three rows each."""
    return [[{"n": 3 * i + k} for k in range(3)] for i in range(number)]


def numbers(made: Iterable[Any]) -> list[int]:
    return [row["n"] for batch in made for row in batch]


def script(*given: Wish | None) -> Callable[[], Wish | None]:
    looks = iter(given)
    return lambda: next(looks, None)


def test_few_batches_are_spread_over_all_engines(ray: FakeRay) -> None:
    farm = Farm(ray, script())
    assert sorted(numbers(farm.crew().ask(batches(3), None))) == list(range(9))
    assert [name for name, _ in farm.asked] == ["a", "b", "a"]
    assert farm.said == []


def test_the_rows_an_engine_leaves_are_made_by_the_others_each_once(ray: FakeRay) -> None:
    farm = Farm(ray, script(None, None, None, LEAVE))
    crew = farm.crew()
    assert sorted(numbers(crew.ask(batches(9), None))) == list(range(27))
    assert ray.killed == ["b"]
    assert farm.said == [(1, 2)]
    assert crew.up == 1
    assert [engine.name for engine in crew.dismiss()] == ["a"]


def test_another_takes_its_place_when_nobody_waits_any_more(ray: FakeRay) -> None:
    farm = Farm(ray, script(None, None, None, LEAVE, None, STAY))
    crew = farm.crew()
    assert sorted(numbers(crew.ask(batches(20), None))) == list(range(60))
    assert farm.said == [(1, 2), (2, 2)]
    assert "c" in {name for name, _ in farm.asked}
    assert [engine.name for engine in crew.dismiss()] == ["a", "c"]


def test_when_all_have_left_it_waits_until_one_is_back(ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    farm = Farm(ray, script(None, None, None, LEAVE, LEAVE, *[None] * 20, STAY))
    assert sorted(numbers(farm.crew().ask(batches(6), None))) == list(range(18))
    assert sorted(ray.killed) == ["a", "b"]
    assert (0, 2) in farm.said
    assert farm.said[-1][0] > 0


def test_an_engine_that_cannot_come_back_is_done_without(ray: FakeRay) -> None:
    farm = Farm(ray, script(None, None, None, LEAVE, STAY), fails=True)
    assert sorted(numbers(farm.crew().ask(batches(12), None))) == list(range(36))
    assert farm.said[-1] == (1, 1)


def test_without_any_engine_it_says_so(ray: FakeRay) -> None:
    farm = Farm(ray, script(None, None, LEAVE, STAY), engines=1, fails=True)
    with pytest.raises(StageError, match="every engine is gone, the last with: "):
        numbers(farm.crew().ask(batches(12), None))
