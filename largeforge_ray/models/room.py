"""Who holds room in a cluster, who waits for it, and who gives it up (Ray's state API, read in Ray 2.60.0).

Serving goes before all batch work, and of that who has the higher priority. Nobody keeps a list of who waits:
Ray knows, and the name of an actor of ours says whose it is.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

LOOK_S = 3.0
"""Between looks, which ask Ray's head. Who is there in two of them waits for room, not for its turn."""
BLIND_S = 300.0
"""Until the next look after one that failed, which takes most of a minute: there may be no dashboard."""
IN_VAIN = 6
"""Looks in which nothing changes after which it is not our place that is waited for."""
FORGET_S = 600.0
"""After which it may be all the same: others hold less by then."""
MOST_LISTED = 10_000
"""Ray lists a hundred by itself, and who waits may be beyond."""
REPLICA = "ServeReplica:"
"""How Ray calls the actors of Serve's replicas."""
REPLICA_GROUP = "SERVE_REPLICA::"
"""How Serve calls the placement group of a replica whose workers may be on several nodes."""
MARK = "largeforge"
BOARD = "RunBoard"
"""The actor that a stage with a training has, whose workers wait for room without a name of their own."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """Whose a process is, and what it asks Ray for beside a CPU or a GPU: ``resources`` by their names."""

    run: str
    stage: str
    priority: int = 0
    resources: Mapping[str, float] = field(default_factory=dict)

    def name(self) -> str:
        """For one actor; the dashboard shows it."""
        return f"{MARK}:{self.run}:{self.stage}:priority {self.priority}:{secrets.token_hex(4)}"

    def options(self) -> dict[str, Any]:
        """Of an actor that takes room."""
        return {"name": self.name(), "resources": dict(self.resources)}


def priority_of(name: str | None) -> int | None:
    """What the name of an actor says, if it is one of ours."""
    parts = (name or "").split(":")
    return int(parts[3].removeprefix("priority ")) if parts[0] == MARK and len(parts) == 5 else None


@dataclass(frozen=True, slots=True)
class Waiting:
    """Who is on no node yet, and how many processes like ours would have to go for it."""

    who: str
    takes: int


class Wish(Enum):
    """What is left to batch work: a process less, or as many as it likes."""

    LEAVE = "leave"
    STAY = "stay"


def who_waits(held: Mapping[str, float], priority: int = 0) -> list[Waiting]:
    """Who goes before ``priority`` and wants of what each of our processes has ``held``: replicas of Serve,
    and what stages of a higher one start."""
    from ray.util import state

    def takes(wanted: Mapping[str, float]) -> int:
        return math.ceil(max((wanted.get(name, 0.0) / each for name, each in held.items()), default=0.0))

    def goes_first(actor: Any) -> bool:
        said = priority_of(actor.name)
        return (actor.class_name or "").startswith(REPLICA) or (said is not None and said > priority)

    pending = [a for a in _listed(state.list_actors, state="PENDING_CREATION") if not a.pid]
    # Of one that starts again Ray still tells the process it had.
    again = [a for a in _listed(state.list_actors, state="RESTARTING") if priority_of(a.name) is not None]
    found = [
        Waiting(actor.actor_id, takes(actor.required_resources or {}))
        for actor in (*pending, *again)
        if goes_first(actor)
    ]
    if groups := _listed(state.list_placement_groups, state="PENDING"):
        boards = _listed(state.list_actors, state="ALIVE", class_name=BOARD)
        ahead = {board.job_id for board in boards if goes_first(board)}

        def who_of(group: Any) -> str | None:
            if (group.name or "").startswith(REPLICA_GROUP):
                return str(group.placement_group_id)
            # By its job: Ray Train asks for another group every minute, and it is the same one that waits.
            return str(group.creator_job_id) if group.creator_job_id in ahead else None

        found += [
            Waiting(who, sum(takes(part["unit_resources"]) for part in group.bundles))
            for group in groups
            if (who := who_of(group))
        ]
    return [one for one in found if one.takes]


def _listed(of: Callable[..., Any], **wanted: str) -> list[Any]:
    import ray

    found: list[Any] = of(
        # Without it, it looks for a cluster on this machine, and there may be several.
        address=ray.get_runtime_context().gcs_address,
        filters=[(name, "=", value) for name, value in wanted.items()],
        detail=True,
        limit=MOST_LISTED,
        raise_on_missing_output=False,
    )
    return found


class Room:
    """Asked again and again, it says when a process should make room and when none need to.

    As many leave as those that wait take. One for which that was in vain is waiting for something
    else: no more leave for it, and those that did come back.
    """

    def __init__(self, look: Callable[[], list[Waiting]], now: Callable[[], float] = time.monotonic) -> None:
        self._look, self._now = look, now
        self._waiting: dict[str, int] = {}
        self._in_vain: dict[str, float] = {}
        self._given = self._stuck = 0
        self._due = now()
        self._told = False

    def gave(self) -> None:
        """A process that held a place has ended."""
        self._given += 1
        if self._given <= sum(self._waiting.values()):
            self._stuck = 0

    def nobody_waits(self) -> bool:
        """For who was told to leave and takes long to: whether it need not. False between looks."""
        return self._now() >= self._due and self._see() == {}

    def wish(self) -> Wish | None:
        """None between looks, and while whoever waits may yet find a place."""
        if self._now() < self._due:
            return None
        if (waiting := self._see()) is None:
            # Ray has no place for a process that comes back too early.
            return Wish.STAY
        still = self._waiting.keys() & waiting.keys()
        placed = sum(takes for who, takes in self._waiting.items() if who not in waiting)
        self._given = max(0, self._given - placed)
        self._stuck = self._stuck + 1 if waiting.keys() == self._waiting.keys() else 0
        self._waiting = waiting
        if not waiting:
            self._given = 0
            return Wish.STAY
        if self._stuck >= IN_VAIN:
            self._in_vain |= dict.fromkeys(waiting, self._now())
            return Wish.STAY
        # One more than should do: a process whose node was lost held no place.
        spare = self._stuck == IN_VAIN // 2
        return Wish.LEAVE if still and (self._given < sum(waiting.values()) or spare) else None

    def _see(self) -> dict[str, int] | None:
        """Who waits, and what that takes; None if nobody can say."""
        from ray.exceptions import RayError
        from ray.util.state.exception import RayStateApiException

        try:
            found = self._look()
        except (OSError, RayError, RayStateApiException) as error:
            if not self._told:
                _log.warning("batch work cannot see who needs room: %s", error)
            self._told, self._due = True, self._now() + BLIND_S
            return None
        self._due = self._now() + LOOK_S
        there, since = {one.who for one in found}, self._now() - FORGET_S
        self._in_vain = {who: at for who, at in self._in_vain.items() if who in there and at > since}
        return {one.who: one.takes for one in found if one.who not in self._in_vain}
