"""Whether serving waits for room that batch work holds (Ray's state API, read in Ray 2.60.0)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

LOOK_S = 3.0
"""Between looks, which ask Ray's head. Whoever is there in two of them waits for room, not for its turn."""
REPLICA = "ServeReplica:"
"""How Ray calls the actors of Serve's replicas."""

_log = logging.getLogger(__name__)


def waiting_replicas() -> set[str]:
    """The actor ids of Serve's replicas that Ray has found no place for."""
    import ray
    from ray.util.state import list_actors

    found = list_actors(
        # Without it, it looks for a cluster on this machine, and there may be several.
        address=ray.get_runtime_context().gcs_address,
        filters=[("state", "=", "PENDING_CREATION")],
        raise_on_missing_output=False,
    )
    return {actor.actor_id for actor in found if (actor.class_name or "").startswith(REPLICA)}


class Room:
    """Asked again and again, it says when an engine should make room."""

    def __init__(
        self,
        look: Callable[[], set[str]] = waiting_replicas,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look, self._now = look, now
        self._seen: set[str] = set()
        self._due = now()

    def wanted(self) -> bool:
        """Whether a replica has waited since the look before; once for each two looks."""
        if self._now() < self._due:
            return False
        from ray.util.state.exception import RayStateApiException

        try:
            waiting = self._look()
        except (OSError, RayStateApiException) as error:  # the head's dashboard is off or out of reach
            _log.warning("batch work cannot see whether serving needs room: %s", error)
            self._due = float("inf")
            return False
        self._due = self._now() + LOOK_S
        still, self._seen = waiting & self._seen, waiting
        if still:
            # Whoever was made room for gets as long again to take it.
            self._seen = set()
        return bool(still)
