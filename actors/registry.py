"""The registry as a named actor: one for each application, found by name, and as it was after a restart."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from largeforge_ray.promote.registry import EventLog, Registry
from largeforge_ray.promote.rollout import Rules
from largeforge_ray.promote.views import Entry, ReplicaReport, RouterReport, View
from largeforge_ray.routing.experts import Price, Router, parse_router

NAMESPACE = "largeforge"
TICK_S = 0.25
LONGEST_S = 1.0
"""A report is answered when something has changed, or after so long."""
IDLE_S = 120.0
"""With nobody reporting for so long the application is gone, and so is its registry."""


class RegistryActor:
    """A ``Registry`` over the store's log, whose changes its callers wait for."""

    def __init__(self, store: str, router: str, rules: Rules) -> None:
        from largeforge_ray.store import open_store

        self._store = open_store(store)
        artifact = self._store.get(router)
        self._router: Router = parse_router((self._store.fetch(artifact) / "router.json").read_bytes())
        log = EventLog(self._store, f"registry/{artifact.key[:16]}")
        gates = dict(artifact.metrics.get("gates", {}))
        self._registry = Registry(log, self._router.experts, time.time, rules, gates)
        self._counted = len(self._registry.events)
        self._changed = asyncio.Event()
        self._moves = _moves()
        self._heard = time.monotonic()
        self._ticking: asyncio.Task[None] | None = None

    async def sync(self, report: ReplicaReport | RouterReport, known: int | None) -> View:
        """Take a report and answer with what is news to who knows change ``known``."""
        self._heard = time.monotonic()
        self._ticking = self._ticking or asyncio.create_task(self._tick())
        before = self._registry.number
        self._registry.hear(report)
        self._tell(before)
        if known == self._registry.number:
            changed = asyncio.create_task(self._changed.wait())
            await asyncio.wait([changed], timeout=LONGEST_S)
            changed.cancel()
        return self._registry.view(known)

    async def propose(self, reference: str, name: str | None, price: Price | None, actor: str) -> Entry:
        """Preflight of an adapter artifact, and the start of its promotion. Raises ``ForgeError``."""
        from largeforge_ray.promote.candidate import candidate

        expert = await asyncio.to_thread(
            candidate, self._store, reference, self._router, name=name, price=price
        )
        before = self._registry.number
        entry = self._registry.propose(expert, actor)
        self._tell(before)
        return entry

    async def remove(self, name: str, actor: str) -> Entry:
        """Let an expert end what it has and go. Raises ``ForgeError``."""
        before = self._registry.number
        entry = self._registry.remove(name, actor, keep=self._router.policy.fallback)
        self._tell(before)
        return entry

    async def history(self) -> list[Any]:
        """All events, oldest first."""
        return list(self._registry.events)

    async def _tick(self) -> None:
        import ray

        while time.monotonic() - self._heard < IDLE_S:
            await asyncio.sleep(TICK_S)
            before = self._registry.number
            self._registry.tick()
            self._tell(before)
        ray.actor.exit_actor()

    def _tell(self, before: int) -> None:
        if self._registry.number != before:
            for event in self._registry.events[self._counted :]:
                self._moves.inc(tags={"expert": event.record.name, "to": event.to or "removed"})
            self._counted = len(self._registry.events)
            self._changed.set()
            self._changed = asyncio.Event()


def _moves() -> Any:
    from ray.util.metrics import Counter

    return Counter(
        "largeforge_promotions",
        description="Changes of experts' states, by the state they came to",
        tag_keys=("expert", "to"),
    )


def find_registry(name: str, store: str, router: str, rules: Rules) -> Any:
    """The actor of this name, started if there is none. Needs no CPU of its own."""
    import ray

    actor = ray.remote(RegistryActor).options(
        name=name,
        namespace=NAMESPACE,
        get_if_exists=True,
        lifetime="detached",
        num_cpus=0,
        max_restarts=-1,
        max_concurrency=1024,
    )
    return actor.remote(store, router, rules)
