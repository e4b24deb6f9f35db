"""Whose time an engine's time was, where many requests are answered together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Share:
    """One request's part, in seconds; known when its ``with`` has ended."""

    seconds: float = 0.0


class SharedClock:
    """Divides every moment evenly among the requests under way in it: the virtual time of processor sharing.

    So the parts of a batch add up to the time it took, whatever waited for whom. For one event loop.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._under_way = 0
        self._at = self._each = 0.0

    @contextmanager
    def share(self) -> Iterator[Share]:
        """Count one request as under way."""
        made, began = Share(), self._tick(+1)
        try:
            yield made
        finally:
            made.seconds = self._tick(-1) - began

    def _tick(self, joining: int) -> float:
        """What each request that was always under way has had by now, in seconds."""
        now = self._now()
        if self._under_way:
            self._each += (now - self._at) / self._under_way
        self._at, self._under_way = now, self._under_way + joining
        return self._each
