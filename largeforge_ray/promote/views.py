"""What engines and routers tell the registry, and what it tells them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from largeforge_ray.routing.experts import Expert


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """An engine's process, as it describes itself, about every second.

    ``sequence`` grows with every report. ``running`` counts requests given and not ended. ``served`` are the
    versions it answers for, ``refused`` those it cannot load, with the reason, and ``evidence`` what the
    probe of a version found. ``address`` is ``host:port``.
    """

    replica: str
    model_key: str
    address: str
    sequence: int
    token: str = field(default="", repr=False)
    up: bool = True
    running: int = 0
    served: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    evidence: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    speculation: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Trials:
    """What routers saw of an expert that is on trial, beside the ``baseline`` that requests of its kind had.

    ``finished`` counts answers that ended by themselves, ``seconds`` are answers' times, ``agreement`` is
    0..1 for each pair of answers to one request.
    """

    asked: int = 0
    failed: int = 0
    finished: int = 0
    seconds: tuple[float, ...] = ()
    baseline_asked: int = 0
    baseline_finished: int = 0
    baseline_seconds: tuple[float, ...] = ()
    agreement: tuple[float, ...] = ()

    def __add__(self, other: Trials) -> Trials:
        return Trials(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True, slots=True)
class RouterReport:
    """A router's process: by version and state, what it saw of experts that are on trial."""

    router: str
    trials: Mapping[tuple[str, str], Trials] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Entry:
    """An expert in the registry: ``expert.state`` is its state, ``reason`` why it is in it."""

    expert: Expert
    reason: str = ""
    since: float = 0.0
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class View:
    """The registry as of change ``number``. A ``young`` one may not have heard of every replica yet.

    ``entries`` is None for who knows them.
    """

    number: int
    young: bool
    entries: tuple[Entry, ...] | None
    replicas: tuple[ReplicaReport, ...]
