"""What the router counts, in Ray's Prometheus exporter under ``ray_largeforge_...``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from largeforge_ray.types import Decision

SECONDS = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0]
"""Upper ends of the histograms' buckets."""


class Meters(Protocol):
    """What the front tells of its requests; times are in seconds since the request was read."""

    def decided(self, decision: Decision) -> None: ...

    def began(self, expert: str, seconds: float) -> None:
        """The first event of a stream is there: TTFT as the router sees it."""

    def ended(self, expert: str, status: int, seconds: float) -> None: ...

    def standing(self, queues: Mapping[str, int], replicas: Mapping[str, int]) -> None:
        """Requests given and not ended by expert, and replicas by model, about every second."""


class NoMeters:
    """Counts nothing."""

    def decided(self, decision: Decision) -> None:
        pass

    def began(self, expert: str, seconds: float) -> None:
        pass

    def ended(self, expert: str, status: int, seconds: float) -> None:
        pass

    def standing(self, queues: Mapping[str, int], replicas: Mapping[str, int]) -> None:
        pass


class RayMeters:
    """Counts with Ray; create it in a Ray process."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter, Gauge, Histogram

        self._decisions = Counter(
            "largeforge_decisions",
            description="Decisions by policy, chosen expert, and whether it was the fallback",
            tag_keys=("policy", "expert", "fell_back"),
        )
        self._requests = Counter(
            "largeforge_requests",
            description="Requests that ended, by expert and HTTP status, also that of a stream's error",
            tag_keys=("expert", "status"),
        )
        self._queue = Gauge(
            "largeforge_queue", description="Requests given to an expert and not ended", tag_keys=("expert",)
        )
        self._replicas = Gauge(
            "largeforge_replicas", description="Engines that answer for a model", tag_keys=("model",)
        )
        self._first, self._whole = (
            Histogram(name, description=description, boundaries=SECONDS, tag_keys=("expert",))
            for name, description in (
                ("largeforge_first_event_seconds", "Until the first event of a stream"),
                ("largeforge_answer_seconds", "Until the end of the reply"),
            )
        )

    def decided(self, decision: Decision) -> None:
        fell_back = str(decision.fell_back).lower()
        self._decisions.inc(
            tags={"policy": decision.policy, "expert": decision.chosen, "fell_back": fell_back}
        )

    def began(self, expert: str, seconds: float) -> None:
        self._first.observe(seconds, tags={"expert": expert})

    def ended(self, expert: str, status: int, seconds: float) -> None:
        self._requests.inc(tags={"expert": expert, "status": str(status)})
        self._whole.observe(seconds, tags={"expert": expert})

    def standing(self, queues: Mapping[str, int], replicas: Mapping[str, int]) -> None:
        for expert, waiting in queues.items():
            self._queue.set(waiting, tags={"expert": expert})
        for model, count in replicas.items():
            self._replicas.set(count, tags={"model": model})
