"""Whether serving waits for room that batch work holds (Ray's state API, read in Ray 2.60.0)."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

LOOK_S = 3.0
"""Between looks, which ask Ray's head. Who is there in two of them waits for room, not for its turn."""
BLIND_S = 60.0
"""Until the next look after one that failed: the head may be starting again."""
IN_VAIN = 6
"""Looks in which nothing changes after which a replica is not waiting for an engine's place."""
REPLICA = "ServeReplica:"
"""How Ray calls the actors of Serve's replicas."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A replica that is on no node yet, and how many processes like ours would have to go for it."""

    actor: str
    takes: int


class Wish(Enum):
    """What serving leaves to a farm: an engine less, or as many as it likes."""

    LEAVE = "leave"
    STAY = "stay"


def waiting_replicas(held: Mapping[str, float]) -> list[Waiting]:
    """Serve's replicas without a node that want of what each of our processes has ``held``."""
    import ray
    from ray.util.state import list_actors

    found = list_actors(
        # Without it, it looks for a cluster on this machine, and there may be several.
        address=ray.get_runtime_context().gcs_address,
        filters=[("state", "=", "PENDING_CREATION")],
        detail=True,
        raise_on_missing_output=False,
    )
    made = []
    for actor in found:
        wanted = actor.required_resources or {}
        takes = math.ceil(max((wanted.get(name, 0.0) / each for name, each in held.items()), default=0.0))
        if (actor.class_name or "").startswith(REPLICA) and not actor.pid and takes:
            made.append(Waiting(actor.actor_id, takes))
    return made


class Room:
    """Asked again and again, it says when an engine should make room and when none need to.

    As many leave as the replicas that wait take. One for which that was in vain is waiting for something
    else: no more leave for it, and those that did come back.
    """

    def __init__(self, look: Callable[[], list[Waiting]], now: Callable[[], float] = time.monotonic) -> None:
        self._look, self._now = look, now
        self._waiting: dict[str, int] = {}
        self._in_vain: set[str] = set()
        self._given = self._stuck = 0
        self._due = now()
        self._told = False

    def gave(self) -> None:
        """An engine that held a place has ended."""
        self._given += 1
        if self._given <= sum(self._waiting.values()):
            self._stuck = 0

    def wish(self) -> Wish | None:
        """None between looks, and while whoever waits may yet find a place."""
        from ray.exceptions import RayError
        from ray.util.state.exception import RayStateApiException

        if self._now() < self._due:
            return None
        try:
            waiting = {one.actor: one.takes for one in self._look() if one.actor not in self._in_vain}
        except (OSError, RayError, RayStateApiException) as error:
            if not self._told:
                _log.warning("batch work cannot see whether serving needs room: %s", error)
            self._told, self._due = True, self._now() + BLIND_S
            # Ray has no place for an engine that comes back too early.
            return Wish.STAY
        self._due = self._now() + LOOK_S
        still = self._waiting.keys() & waiting.keys()
        placed = sum(takes for actor, takes in self._waiting.items() if actor not in waiting)
        self._given = max(0, self._given - placed)
        self._stuck = self._stuck + 1 if waiting.keys() == self._waiting.keys() else 0
        self._waiting = waiting
        if not waiting:
            self._given = 0
            return Wish.STAY
        if self._stuck >= IN_VAIN:
            self._in_vain |= waiting.keys()
            return Wish.STAY
        # One more than should do: an engine whose node was lost held no place.
        spare = self._stuck == IN_VAIN // 2
        return Wish.LEAVE if still and (self._given < sum(waiting.values()) or spare) else None
