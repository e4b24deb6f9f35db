"""What a stage holds of the cluster: processes' seconds, each with a CPU and, where there are any, a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from largeforge_ray.config.manifest import Prices

HOUR_S = 3600.0


class Ledger:
    """Adds up what is held while it is held; what the driver does itself is not counted."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._since = clock, clock()
        self._held, self._process_s = 0, 0.0

    def hold(self, processes: int) -> None:
        """From now on so many more; fewer if it is negative."""
        now = self._clock()
        self._process_s += self._held * (now - self._since)
        self._since, self._held = now, self._held + processes

    @contextmanager
    def holding(self, processes: int) -> Iterator[None]:
        self.hold(processes)
        try:
            yield
        finally:
            self.hold(-processes)

    def take(self) -> float:
        """Process-seconds since this was last asked."""
        self.hold(0)
        taken, self._process_s = self._process_s, 0.0
        return taken


def spent(
    process_s: float, gpus_each: int, prices: Prices | None, metrics: Mapping[str, Any]
) -> dict[str, float]:
    """``cpu_s`` and ``gpu_s``, ``tokens`` if the stage counted any, and ``usd`` if something has a price:
    the machines by the manifest's, and what an endpoint was paid."""
    made: dict[str, float] = {"cpu_s": round(process_s, 2), "gpu_s": round(process_s * gpus_each, 2)}
    if "tokens" in metrics:
        made["tokens"] = metrics["tokens"]
    paid = metrics.get("usd")
    if prices is not None or paid is not None:
        hours = (made["cpu_s"] / HOUR_S, made["gpu_s"] / HOUR_S)
        each = (0.0, 0.0) if prices is None else (prices.per_cpu_hour, prices.per_gpu_hour)
        made["usd"] = round(sum(h * p for h, p in zip(hours, each, strict=True)) + (paid or 0.0), 6)
    return made
