"""The registry: which experts there are and in which state, what their engines say, and every change kept.

A plain object; ``actors/registry.py`` is the process around it. Each change of an expert is an event in the
store before it is in memory, so a registry that was killed is the same again. Engines and routers are known
by what they report and are forgotten when they no longer do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from pydantic import TypeAdapter

from largeforge_ray.errors import ConfigError
from largeforge_ray.promote.rollout import Rules, Seen, next_move
from largeforge_ray.promote.views import Entry, ReplicaReport, RouterReport, Trials, View
from largeforge_ray.routing.experts import Expert, State

SILENT_S = 5.0
"""Who has not reported for so long has gone."""
ON_TRIAL = ("loading", "shadow", "canary")
DRAIN_S = 5.0
"""Between an expert's last request and its adapter's leaving the engines lie all routers' views and
queues."""


class Files(Protocol):
    """What the log needs of a store."""

    def write_bytes(self, rel: str, data: bytes) -> None: ...

    def read_bytes(self, rel: str) -> bytes: ...

    def list(self, rel: str) -> list[str]:
        """Sorted paths of what lies directly in a folder."""


@dataclass(frozen=True, slots=True)
class Event:
    """A change of an expert; ``record`` is the whole expert. ``time`` is in seconds since the epoch.

    ``before`` is None for one that is new, and ``to`` is None for one that was removed.
    """

    sequence: int
    time: float
    actor: str
    version: str
    before: State | None
    to: State | None
    reason: str
    record: Expert
    evidence: Mapping[str, Any]


class EventLog:
    """Events as files of a folder of the store, one each, in order."""

    def __init__(self, files: Files, folder: str) -> None:
        self._files, self._folder = files, folder

    def replay(self) -> list[Event]:
        adapter = TypeAdapter(Event)
        paths = [path for path in self._files.list(self._folder) if path.endswith(".json")]
        return [adapter.validate_json(self._files.read_bytes(path)) for path in paths]

    def append(self, event: Event) -> None:
        data = json.dumps(asdict(event), sort_keys=True).encode()
        self._files.write_bytes(f"{self._folder}/{event.sequence:08d}.json", data)


class Registry:
    """``clock`` gives seconds since the epoch. A log with nothing in it begins with the experts of ``seed``,
    and ``gates``, by expert, is what their gates decided on."""

    def __init__(
        self,
        log: EventLog,
        seed: Iterable[Expert],
        clock: Callable[[], float],
        rules: Rules | None = None,
        gates: Mapping[str, Any] | None = None,
    ) -> None:
        self._log, self._clock, self._rules = log, clock, rules or Rules()
        self.events: list[Event] = log.replay()
        self._entries: dict[str, Entry] = {}
        for event in self.events:
            self._apply(event)
        self.number = 0
        self._began = clock()
        self._replicas: dict[str, tuple[ReplicaReport, float]] = {}
        self._routers: dict[str, tuple[RouterReport, float]] = {}
        if not self.events:
            for expert in seed:
                gate = (gates or {}).get(expert.name)
                evidence = None if gate is None else {"gate": gate}
                self._change(expert, expert.state, "it came with the router", "seed", evidence)

    @property
    def entries(self) -> tuple[Entry, ...]:
        return tuple(self._entries.values())

    def view(self, known: int | None = None) -> View:
        """Everything, without the entries for who knows change ``known`` already."""
        entries = None if known == self.number else self.entries
        replicas = tuple(report for report, _ in self._replicas.values())
        return View(self.number, self._clock() - self._began < SILENT_S, entries, replicas)

    def hear(self, report: ReplicaReport | RouterReport) -> None:
        """An engine or a router tells how it is."""
        now = self._clock()
        if isinstance(report, RouterReport):
            self._routers[report.router] = (report, now)
            return
        known = self._replicas.get(report.replica)
        self._replicas[report.replica] = (report, now)
        if known is None or _standing(known[0]) != _standing(report):
            self.number += 1

    def propose(self, expert: Expert, actor: str) -> Entry:
        """Start the promotion of an expert that passed preflight. Raises ``ConfigError`` if it is there
        already, or would take the place of a whole model."""
        known = self._entries.get(expert.version)
        if known is not None and known.expert.state != "failed":
            raise ConfigError(
                f"expert '{expert.version}' is {known.expert.state} already; "
                "remove it first, or give other weights"
            )
        if any(e.expert.name == expert.name and not e.expert.adapter_key for e in self.entries):
            raise ConfigError(
                f"expert '{expert.name}' is a whole model, whose place no adapter takes; give another name"
            )
        other = next((e for e in self._on_trial() if e.expert.name == expert.name), None)
        if other is not None:
            raise ConfigError(
                f"expert '{other.expert.version}' is still in {other.expert.state}; "
                "wait for it, or remove it first"
            )
        return self._change(expert, "loading", "preflight passed", actor)

    def remove(self, name: str, actor: str, *, keep: str) -> Entry:
        """Let an expert end what it has and go; ``keep`` names the one that must stay, the general expert.

        Raises ``ConfigError`` for one that is not there or must stay.
        """
        found = [e for e in self.entries if name in (e.expert.name, e.expert.version)]
        if not found:
            names = ", ".join(sorted({e.expert.name for e in self.entries}))
            raise ConfigError(f"expert '{name}' is not registered; there are: {names}")
        if found[0].expert.name == keep:
            raise ConfigError(f"expert '{keep}' answers what no other expert does; it cannot be removed")
        return [self._change(e.expert, "draining", "it was removed", actor) for e in found][-1]

    def tick(self) -> bool:
        """Forget the silent and move whoever is ready. Whether anything changed."""
        now, before = self._clock(), self.number
        silent = [name for name, (_, heard) in self._replicas.items() if now - heard > SILENT_S]
        for name in silent:
            del self._replicas[name]
            self.number += 1
        self._routers = {n: (r, heard) for n, (r, heard) in self._routers.items() if now - heard <= SILENT_S}
        for entry in self._on_trial():
            move = next_move(entry, self._seen(entry), now, self._rules)
            if move is not None:
                self._move(entry, move.to, move.reason)
        for entry in self.entries:
            if entry.expert.state == "draining" and now - entry.since > DRAIN_S:
                self._change(entry.expert, None, "its requests have ended", "registry")
        return self.number != before

    def _move(self, entry: Entry, to: State, reason: str) -> None:
        seen = self._seen(entry)
        evidence = {"trials": asdict(seen.trials)} if entry.expert.state != "loading" else self._probes(entry)
        self._change(entry.expert, to, reason, "registry", {**entry.evidence, entry.expert.state: evidence})
        for old in self.entries if to == "live" else ():
            same = old.expert.name == entry.expert.name and old.expert.version != entry.expert.version
            if same and old.expert.state == "live":
                self._change(old.expert, "draining", f"'{entry.expert.version}' took its place", "registry")

    def _on_trial(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.expert.state in ON_TRIAL]

    def _probes(self, entry: Entry) -> dict[str, Any]:
        version = entry.expert.version
        return {
            name: dict(report.evidence[version])
            for name, (report, _) in self._replicas.items()
            if version in report.evidence
        }

    def _seen(self, entry: Entry) -> Seen:
        version, state = entry.expert.version, entry.expert.state
        reports = [
            report
            for report, _ in self._replicas.values()
            if report.up and report.model_key == entry.expert.model_key
        ]
        trials = (report.trials.get((version, state), Trials()) for report, _ in self._routers.values())
        return Seen(
            replicas=len(reports),
            serving=sum(version in report.served for report in reports),
            refused={
                report.replica: report.refused[version] for report in reports if version in report.refused
            },
            trials=sum(trials, Trials()),
        )

    def _change(
        self,
        expert: Expert,
        to: State | None,
        reason: str,
        actor: str,
        evidence: Mapping[str, Any] | None = None,
    ) -> Entry:
        known = self._entries.get(expert.version)
        event = Event(
            sequence=self.events[-1].sequence + 1 if self.events else 1,
            time=self._clock(),
            actor=actor,
            version=expert.version,
            before=known.expert.state if known else None,
            to=to,
            reason=reason,
            record=replace(expert, state=to or expert.state),
            evidence=json.loads(json.dumps(evidence or {})),  # as it will be read
        )
        self._log.append(event)
        self.events.append(event)
        self.number += 1
        return self._apply(event)

    def _apply(self, event: Event) -> Entry:
        entry = Entry(event.record, event.reason, event.time, event.evidence)
        if event.to is None:
            self._entries.pop(event.version, None)
        else:
            self._entries[event.version] = entry
        return entry


def _standing(report: ReplicaReport) -> tuple[Any, ...]:
    """What of a report routers must know at once."""
    return report.up, report.address, report.served, tuple(sorted(report.refused.items()))
