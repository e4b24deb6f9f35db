"""When a training and a sweep give their places away, and what they hold meanwhile; Ray is a stand-in."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from largeforge_ray.flow.breaks import Packs, TrainingBreak
from largeforge_ray.flow.ledger import Ledger
from largeforge_ray.models.room import LOOK_S, Room, Waiting
from largeforge_ray.sweep.lane_trial import Berth
from tests.unit.test_farm_crew import Clock


class Cluster:
    """Who waits, what was killed, what is pinned; a pack is up as soon as its number is in ``up``."""

    def __init__(self) -> None:
        self.clock, self.waiting = Clock(), ""
        self.up: set[int] = set()
        self.started: list[Any] = []
        self.killed: list[int] = []
        self.pinned: dict[int, Any] = {}
        self.held, self.said = 0, []
        self.pin = self.ready = SimpleNamespace()
        self.pin.remote = self._pin

    def look(self) -> list[Waiting]:
        return [Waiting(name, 1) for name in self.waiting]

    def start(self) -> Any:
        number = len(self.started)
        pack = SimpleNamespace(number=number, ready=SimpleNamespace(remote=lambda: number))
        self.started.append(pack)
        return pack

    def _pin(self, name: str, value: Any) -> None:
        self.pinned = dict(value)

    def wait(self, refs: list[int], **_: Any) -> tuple[list[int], list[int]]:
        return [r for r in refs if r in self.up], []

    def get(self, ref: Any) -> Any:
        return ref

    def kill(self, pack: Any) -> None:
        self.killed.append(pack.number)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    import ray

    made = Cluster()
    for name in ("wait", "get", "kill"):
        monkeypatch.setattr(ray, name, getattr(made, name))
    return made


def context_of(cluster: Cluster) -> Any:
    return SimpleNamespace(
        room=lambda: Room(cluster.look, cluster.clock),
        emit=lambda stage, kind, numbers, message: cluster.said.append(message),
        ledger=Ledger(lambda: 0.0),
    )


def heeds(packs: Packs, cluster: Cluster, waiting: str, looks: int) -> None:
    cluster.waiting = waiting
    for _ in range(looks):
        cluster.clock.at += LOOK_S
        packs.heed()


def test_trials_are_sent_only_to_packs_that_are_up(cluster: Cluster) -> None:
    context = context_of(cluster)
    packs = Packs(context, "swept", cluster, cluster.start, 2)
    packs.heed()
    assert cluster.pinned == {}
    cluster.up = {0}
    packs.heed()
    assert [*cluster.pinned] == [0]
    cluster.up = {0, 1}
    packs.heed()
    assert [*cluster.pinned] == [0, 1]
    heeds(packs, cluster, "a", 2)
    assert (cluster.killed, [*cluster.pinned]) == ([1], [0])
    heeds(packs, cluster, "", 1)
    # Another is asked for, and waits behind who has the place: no trial waits with it.
    assert (len(cluster.started), [*cluster.pinned]) == (3, [0])
    cluster.up.add(2)
    heeds(packs, cluster, "", 1)
    assert [*cluster.pinned] == [0, 2]
    assert cluster.said == ["others need room: 1 of 2 packs go on", "all packs are back"]


def test_one_that_only_waits_itself_goes_first_and_has_given_nothing(cluster: Cluster) -> None:
    packs = Packs(context_of(cluster), "swept", cluster, cluster.start, 2)
    cluster.up = {0}
    packs.heed()
    heeds(packs, cluster, "a", 2)
    assert cluster.killed == [1]
    heeds(packs, cluster, "a", 1)
    assert cluster.killed == [1, 0]


def test_nothing_is_held_once_they_have_ended_whatever_has_left_before(cluster: Cluster) -> None:
    context, seconds = context_of(cluster), iter(range(100))
    context.ledger = Ledger(lambda: float(next(seconds)))
    packs = Packs(context, "swept", cluster, cluster.start, 2)
    cluster.up = {0, 1}
    packs.heed()
    heeds(packs, cluster, "a", 2)
    packs.close()
    assert context.ledger.take() > 0
    assert context.ledger.take() == 0
    assert sorted(cluster.killed) == [0, 1]


def test_a_training_is_told_once_and_untold_when_somebody_else_was_quicker(cluster: Cluster) -> None:
    break_ = TrainingBreak(context_of(cluster), "tuned", 2)

    def wants(waiting: str) -> bool | None:
        cluster.waiting = waiting
        cluster.clock.at += LOOK_S
        return break_.wanted()

    assert [wants("a") for _ in range(3)] == [None] * 3, "who waits itself holds nothing"
    break_.began()
    assert [wants("a") for _ in range(3)] == [None, True, None]
    assert [wants("a") for _ in range(20)] == [None] * 20, "workers that take long to leave are not in vain"
    assert wants("") is False
    assert [wants("b") for _ in range(2)] == [None, True]
    assert cluster.said[1] == "nobody waits any more: the workers stay"


def test_after_a_break_its_workers_start_again_when_nobody_waits(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_ = TrainingBreak(context_of(cluster), "tuned", 1)
    break_.began()
    cluster.waiting = "a"
    for _ in range(2):
        cluster.clock.at += LOOK_S
        break_.wanted()
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        cluster.clock.at += seconds
        cluster.waiting = "" if len(slept) > 3 else "a"

    monkeypatch.setattr("largeforge_ray.flow.breaks.time.sleep", sleep)
    break_.wait()
    assert len(slept) == 4
    assert cluster.said[-2:] == ["the workers have gone", "nobody waits any more: training goes on"]


def test_a_trial_moves_with_the_packs(cluster: Cluster) -> None:
    board = SimpleNamespace(pinned=SimpleNamespace(remote=lambda name: cluster.pinned))
    cluster.pinned = {0: "first"}
    berths = [Berth(board, turn) for turn in range(2)]
    assert [b.take() for b in berths] == ["first", "first"]
    cluster.pinned = {0: "first", 3: "other"}
    assert [b.is_another() for b in berths] == [False, True]
    assert berths[1].take() == "other"
    cluster.pinned = {0: "first"}
    assert [b.is_gone() for b in berths] == [False, True]
    cluster.pinned = {}
    assert [b.is_another() for b in berths] == [False, False]
