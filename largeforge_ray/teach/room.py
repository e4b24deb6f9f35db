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

    A replica that still waits when as many have left as would do is waiting for something else, and no more
    leave for it.
    """

    def __init__(self, look: Callable[[], list[Waiting]], now: Callable[[], float] = time.monotonic) -> None:
        self._look, self._now = look, now
        self._seen: set[str] = set()
        self._left_for: dict[str, int] = {}
        self._due = now()
        self._told = False

    def wish(self) -> Wish | None:
        """None between looks, when nothing can be seen, and while whoever waits may yet find a place."""
        from ray.util.state.exception import RayStateApiException

        if self._now() < self._due:
            return None
        try:
            waiting = self._look()
        except (OSError, RayStateApiException) as error:
            if not self._told:
                _log.warning("batch work cannot see whether serving needs room: %s", error)
            self._told, self._due = True, self._now() + BLIND_S
            return None
        self._due = self._now() + LOOK_S
        open_ = [one for one in waiting if self._left_for.get(one.actor, 0) < one.takes]
        still = next((one for one in open_ if one.actor in self._seen), None)
        self._seen = {one.actor for one in open_}
        if still is None:
            return None if open_ else Wish.STAY
        self._left_for[still.actor] = self._left_for.get(still.actor, 0) + 1
        # Whoever was made room for gets as long again to take it.
        self._seen = set()
        return Wish.LEAVE
