"""When the next request to an endpoint may go: its rate limits, and the wait before a retry.

Pure: the clock is passed in, and whoever asks does the waiting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

BURST_S = 1.0
"""Servers enforce a minute's limit by the second, so no more than a second's share is saved up."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0


class RateLimit:
    """Token buckets for requests and for tokens a minute; None is no limit.

    What is admitted within any minute exceeds the limit by ``BURST_S`` of it at most. A request larger
    than that is admitted on credit: what comes after it waits until the credit is paid back.
    """

    def __init__(self, requests_per_minute: int | None, tokens_per_minute: int | None) -> None:
        self._requests = _Bucket(requests_per_minute or math.inf)
        self._tokens = _Bucket(tokens_per_minute or math.inf)

    def wait_s(self, now: float, tokens: int) -> float:
        """0 if a request of ``tokens`` may go, which is then counted, or after how long to ask again.

        ``now`` is in seconds, of any clock that never goes back.
        """
        wait = max(self._requests.wait_s(now, 1), self._tokens.wait_s(now, tokens))
        if wait == 0:
            self._requests.level -= 1
            self._tokens.level -= tokens
        return wait

    def correct(self, counted: int, used: int) -> None:
        """A request that was counted with some tokens has used others."""
        self._tokens.level += counted - used


class _Bucket:
    """``level`` is what may be taken now; below zero it is what is owed."""

    def __init__(self, per_minute: float) -> None:
        self._per_s = per_minute / 60
        self._full = max(1.0, self._per_s * BURST_S)
        self._at: float | None = None
        self.level = self._full

    def wait_s(self, now: float, amount: int) -> float:
        if self._at is not None and now > self._at:
            self.level = min(self._full, self.level + (now - self._at) * self._per_s)
        self._at = now
        missing = min(amount, self._full) - self.level
        return missing / self._per_s if missing > 0 else 0.0


def asked_wait_s(headers: Mapping[str, str], now: float) -> float | None:
    """How long a server asks to be left alone, in seconds, or None if it asks for nothing that can be read.

    It says so in ``retry-after-ms`` or in ``retry-after``, as seconds or as a date. ``headers`` have
    lower-case names or ignore case; ``now`` is in seconds since the epoch.
    """
    for name, per_s in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / per_s
        except ValueError:
            continue
        if not math.isnan(seconds):
            return max(0.0, seconds)
    try:
        return max(0.0, parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - now)
    except ValueError:
        return None


def retry_wait_s(failures: int, asked_s: float | None, jitter: float) -> float:
    """The wait after so many failures in a row: what the server asks for, else twice as long each time.

    ``jitter`` is 0 to 1 and keeps requests that failed together from coming back together: it lengthens
    what was asked for by up to a quarter, and shortens the other by up to a half.
    """
    if asked_s is not None:
        return asked_s * (1 + jitter / 4)
    # The exponent is bounded, because a large one is more than a float holds.
    return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(failures - 1, 30)) * (1 - jitter / 2)
