"""What is going on now: the store's runs, the experts that are served, the cluster's nodes and actors.

snapshot = observe(Store("./forge"), time.time(), cards=router.cards(), cluster=read_cluster(url))
later = observe(store, time.time(), cards="no router answers", cluster="no cluster answers", before=snapshot)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from largeforge_ray.errors import StoreError
from largeforge_ray.observe.cluster import Cluster
from largeforge_ray.observe.events import read_events, run_file

if TYPE_CHECKING:
    from largeforge_ray.store import Store
    from largeforge_ray.types import RunEvent

NEWEST = 8
"""Runs that are looked at; ids begin with the time, so the last ones are the newest."""
SILENT_S = 600.0
"""A stage that loads or quantises says nothing for minutes; a run that is silent for longer was killed."""
RECENT = 20
"""Notes of progress that the rate is taken over."""
ENDED = ("finished", "cached")


@dataclass(frozen=True, slots=True)
class RunView:
    """``state`` is running, silent, done or failed. ``done`` and ``total`` count the stage's own units, and
    ``rate`` is those in a second; None where it has not said. Times are seconds since the epoch."""

    run: str
    state: str
    stage: str
    stages_done: int
    stages: int
    began: float
    heard: float
    done: float | None = None
    total: float | None = None
    rate: float | None = None

    @property
    def left_s(self) -> float | None:
        """Until the stage is over, at the rate it has now."""
        if self.done is None or self.total is None or not self.rate:
            return None
        return max(0.0, self.total - self.done) / self.rate


@dataclass(frozen=True, slots=True)
class ExpertView:
    """An expert as the router tells of it. ``acceptance`` is of drafted tokens, 0..1, None without any."""

    name: str
    state: str
    artifact: str
    up: bool
    replicas: int
    running: int
    waiting_s: float
    acceptance: float | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One look. A part that cannot be seen is empty, and ``absent`` says why, by runs, experts or workers."""

    time: float
    runs: tuple[RunView, ...]
    experts: tuple[ExpertView, ...]
    cluster: Cluster
    absent: Mapping[str, str]


def observe(
    store: Store,
    now: float,
    *,
    cards: Sequence[Mapping[str, Any]] | str,
    cluster: Cluster | str,
    before: Snapshot | None = None,
) -> Snapshot:
    """Put together what there is. ``cards`` are ``GET /v1/experts``; text says why a part is not there.

    Runs that were over ``before`` are not read again.
    """
    absent = {}
    over = {view.run: view for view in before.runs if view.state in ("done", "failed")} if before else {}
    runs: tuple[RunView, ...] = ()
    try:
        newest = [path.split("/")[1] for path in store.list("runs")][-NEWEST:]
        runs = tuple(over.get(run) or read_run(store, run, now) for run in reversed(newest))
    except StoreError as error:
        absent["runs"] = str(error)
    if not runs:
        absent.setdefault("runs", f"store {store.url} holds no runs")
    if isinstance(cards, str):
        absent["experts"], cards = cards, ()
    if isinstance(cluster, str):
        absent["workers"], cluster = cluster, Cluster()
    return Snapshot(now, runs, tuple(_expert(card) for card in cards), cluster, absent)


def read_run(store: Store, run: str, now: float) -> RunView:
    """A run as its plan and its events tell. Raises ``StoreError`` if they cannot be read."""
    path = run_file(run, "plan.json")
    planned = json.loads(store.read_bytes(path))["stages"] if store.exists(path) else []
    return run_view(run, [str(stage["name"]) for stage in planned], read_events(store, run), now)


def run_view(run: str, planned: Sequence[str], events: Sequence[RunEvent], now: float) -> RunView:
    """Where a run stands at ``now``, by its events in the order they came."""
    if not events:
        return RunView(run, "silent", "", 0, len(planned), now, now)
    last = events[-1]
    ended = {event.stage for event in events if event.kind in ENDED}
    state = "running" if now - last.time <= SILENT_S else "silent"
    if last.kind == "failed":
        state = "failed"
    elif ended >= set(planned):
        state = "done"
    began = next((n for n in reversed(range(len(events))) if events[n].kind == "started"), 0)
    done, total, rate = _progress([] if last.kind in ENDED else events[began:])
    return RunView(
        run=run,
        state=state,
        stage=last.stage,
        stages_done=len(ended),
        stages=len(planned),
        began=events[0].time,
        heard=last.time,
        done=done,
        total=total,
        rate=rate,
    )


def _progress(events: Sequence[RunEvent]) -> tuple[float | None, float | None, float | None]:
    """What is done of what there is to do, and the rate of the newest notes, of one stage's events."""
    notes = [
        (event.time, done, total)
        for event in events
        if (done := event.numbers.get("done", event.numbers.get("step"))) is not None
        and (total := event.numbers.get("total", event.numbers.get("steps")))
    ]
    if not notes:
        return None, None, None
    last_s, done, total = notes[-1]
    # Work of another kind in the same stage has another total.
    first_s, first, _ = [note for note in notes if note[2] == total][-RECENT:][0]
    rate = (done - first) / (last_s - first_s) if last_s > first_s and done > first else None
    return done, total, rate


def _expert(card: Mapping[str, Any]) -> ExpertView:
    return ExpertView(
        name=card["name"],
        state=card["state"],
        artifact=card["artifact"],
        up=card["up"],
        replicas=card["replicas"],
        running=card["running"],
        waiting_s=card["waiting_s"],
        acceptance=(card["speculation"] or {}).get("acceptance"),
    )
