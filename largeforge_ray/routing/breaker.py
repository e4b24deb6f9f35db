"""A circuit breaker as a frozen value: every event gives the next one, the clock is passed in.

Closed, it lets requests through and counts failures in a row. Open, it lets none through until its time is
over. Half open, one request goes through, and its end decides (Nygard 2007, "Release It!").
"""

from __future__ import annotations

from dataclasses import dataclass, replace

FAILURES = 3
"""In a row; the next request would likely be another."""
SHORTEST_S, LONGEST_S = 1.0, 30.0
"""How long it stays open: the first time, and after doubling."""
TRIAL_S = 60.0
"""After which a trial that was never told of counts as lost, and another one may go."""


@dataclass(frozen=True, slots=True)
class Breaker:
    """``open_s`` is how long it was opened for last, 0 while closed; times are in seconds of one clock."""

    failures: int = 0
    until: float = 0.0
    open_s: float = 0.0

    def allows(self, now: float) -> bool:
        """Whether a request may go."""
        return self.open_s == 0.0 or now >= self.until

    def asked(self, now: float) -> Breaker:
        """A request has gone. Half open, no other one goes until it is told of."""
        return self if self.open_s == 0.0 else replace(self, until=now + TRIAL_S)

    def told(self, *, failed: bool, now: float) -> Breaker:
        """How a request ended."""
        if not failed:
            return Breaker()
        if self.failures + 1 < FAILURES and self.open_s == 0.0:
            return replace(self, failures=self.failures + 1)
        open_s = min(LONGEST_S, max(SHORTEST_S, 2 * self.open_s))
        return Breaker(self.failures + 1, now + open_s, open_s)
