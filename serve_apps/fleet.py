"""The replicas of one engine as the router sees them: chooses one, and passes on its reply byte for byte."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from largeforge_ray.observe import tracing
from largeforge_ray.promote.views import ReplicaReport
from largeforge_ray.routing import Expert
from largeforge_ray.routing.balance import Balancer, beginnings
from largeforge_ray.routing.load import Load, predicted_wait_s
from serve_apps.openai_errors import ReplyHead, expert_unavailable, queue_full
from serve_apps.ports import Ask
from serve_apps.resuming import RESUMED_HEADER, Broken, Resumption, Sent

TOKEN_HEADER, VERSION_HEADER, NOT_TAKEN_HEADER = (
    "x-largeforge-token",
    "x-largeforge-version",
    "x-largeforge-not-taken",
)
REMEMBERED = 0.1
"""Of the newest request's seconds in their moving average."""

logger = logging.getLogger("ray.serve")


@dataclass(slots=True)
class Replica:
    """``lost`` is the newest report from before a connection to it failed; a later one brings it back."""

    report: ReplicaReport
    given: int = 0
    lost: int = -1

    @property
    def usable(self) -> bool:
        return self.report.up and self.report.sequence > self.lost

    @property
    def load(self) -> int:
        """What this router has given it, or what all routers together have, as it last said."""
        return max(self.given, self.report.running)


class NotTaken(Exception):
    """The replica did not take the request, so another one may have it."""


class NothingCame(Exception):
    """The replica failed before a byte of its reply."""


class Fleet:
    """Replicas of one engine. Requests wait for a first one only where ``wake`` can start it.

    ``slots`` are the requests a replica works on at once; ``client`` is an ``aiohttp.ClientSession``.
    """

    def __init__(
        self,
        client: Any,
        *,
        slots: int,
        wake: Callable[[], Awaitable[Any]] | None = None,
        balancer: Balancer | None = None,
    ) -> None:
        self._client, self._slots = client, slots
        self._wake, self._waking = wake, 0
        self._woken: asyncio.Future[Any] | None = None
        self._replicas: dict[str, Replica] = {}
        self._balancer = balancer or Balancer()
        self._changed = asyncio.Event()
        self._seconds = 0.0

    def update(self, reports: Iterable[ReplicaReport], *, keep: bool) -> None:
        """The newest reports of all replicas; those without one have gone, unless ``keep``."""
        told = {report.replica: report for report in reports}
        for name, report in told.items():
            known = self._replicas.setdefault(name, Replica(report))
            if report.sequence >= known.report.sequence or report.address != known.report.address:
                known.report = report
        if not keep:
            self._replicas = {name: one for name, one in self._replicas.items() if name in told}
        self._changed.set()
        self._changed = asyncio.Event()

    @property
    def replicas(self) -> int:
        """Those that answer."""
        return sum(replica.usable for replica in self._replicas.values())

    @property
    def speculation(self) -> Mapping[str, Any] | None:
        """How the replicas' speculation does, if they speculate: that of the first."""
        return next((one.report.speculation for one in self._replicas.values()), None)

    def serves(self, expert: Expert) -> bool:
        """Whether a replica has it; where one can be started, requests wait for it."""
        version = expert.version
        return self._wake is not None or any(
            replica.usable and version in replica.report.served for replica in self._replicas.values()
        )

    @property
    def running(self) -> int:
        return sum(replica.load for replica in self._replicas.values())

    @property
    def wait_s(self) -> float:
        """How long a request would wait for its turn in the least loaded replica."""
        loads = [replica.load for replica in self._replicas.values() if replica.usable]
        return predicted_wait_s(Load(min(loads, default=0), self._slots, self._seconds))

    async def answer(self, ask: Ask) -> AsyncIterator[ReplyHead | bytes]:
        """The reply's head, then its bytes. Closing the iterator cancels the request."""
        blocks = beginnings(ask.body, ask.expert.version)
        tried: set[str] = set()
        began, failed = time.monotonic(), False
        # The other backend goes on with no answer of which something was said.
        sent, resumption = Sent() if ask.expert.engine.backend == "vllm" else Sent(most=0), None
        while True:
            replica = await self._choose(ask, blocks, tried)
            replica.given += 1
            try:
                async for part in self._exchange(replica, ask, sent, resumption):
                    yield part
            except NotTaken:
                tried.add(replica.report.replica)
                continue
            except (NothingCame, Broken) as error:
                if isinstance(error, Broken):
                    resumption = sent.resumption(ask.body)
                # Once: the request that breaks an engine breaks two so, and not all of them.
                if failed or (isinstance(error, Broken) and resumption is None):
                    raise expert_unavailable(ask.expert.name) from None
                failed = True
                tried.add(replica.report.replica)
                continue
            finally:
                replica.given -= 1
            recent = time.monotonic() - began
            self._seconds += REMEMBERED * (recent - self._seconds) if self._seconds else recent
            return

    async def _choose(self, ask: Ask, blocks: list[int], tried: set[str]) -> Replica:
        version = ask.expert.version
        while True:
            loads = {
                name: replica.load
                for name, replica in self._replicas.items()
                if replica.usable and version in replica.report.served and name not in tried
            }
            if loads:
                self._stop_waking()
                return self._replicas[self._balancer.choose(loads, self._slots, blocks)]
            if self._wake is None or tried:
                raise expert_unavailable(ask.expert.name)
            await self._first(self._wake)

    async def _first(self, wake: Callable[[], Awaitable[Any]]) -> None:
        """Wait for a change among the replicas, while a first one is asked for on behalf of all that wait."""
        if self._waking >= 4 * self._slots:
            raise queue_full(self._waking, 4 * self._slots)
        self._waking += 1
        changed = asyncio.create_task(self._changed.wait())
        if self._woken is None or self._woken.done():
            self._woken = asyncio.ensure_future(wake())
            # Whether it fails is of no interest: who still waits asks again.
            self._woken.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        try:
            await changed
        except asyncio.CancelledError:
            if self._waking == 1:
                self._stop_waking()
            raise
        finally:
            self._waking -= 1
            changed.cancel()

    def _stop_waking(self) -> None:
        if self._woken is not None:
            self._woken.cancel()
            self._woken = None

    async def _exchange(
        self, replica: Replica, ask: Ask, sent: Sent, resumption: Resumption | None
    ) -> AsyncIterator[ReplyHead | bytes]:
        import aiohttp

        url = f"http://{replica.report.address}{ask.path}"
        headers = {
            "content-type": "application/json",
            TOKEN_HEADER: replica.report.token,
            VERSION_HEADER: ask.expert.version,
            **tracing.carried(),
        }
        body, passed_on, streams = ask.body, False, False
        if resumption is not None:
            body, headers[RESUMED_HEADER] = resumption.body(), "1"
        try:
            async with self._client.post(url, data=body, headers=headers) as response:
                if NOT_TAKEN_HEADER in response.headers:
                    self._lost(replica, "it takes nothing")
                    raise NotTaken
                if response.status == 503:
                    self._lost(replica, "its engine has stopped")
                    raise NothingCame
                if resumption is not None and response.status != 200:
                    raise NotTaken
                retry, kind = response.headers.get("retry-after"), response.headers["content-type"]
                if resumption is None:
                    yield ReplyHead(response.status, kind, int(retry) if retry else None)
                passed_on, streams = True, kind.startswith("text/event-stream")
                async for part in response.content.iter_any():
                    if fresh := sent.add(part) if streams else part:
                        yield fresh
                    if sent.broken:
                        self._lost(replica, "its engine has stopped")
                        raise Broken
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            self._lost(replica, str(error))
            raise NotTaken from None
        except aiohttp.ClientError as error:
            self._lost(replica, str(error) or type(error).__name__)
            if not passed_on:
                raise NothingCame from None
            if streams:
                raise Broken from None
            raise expert_unavailable(ask.expert.name) from None

    def _lost(self, replica: Replica, why: str) -> None:
        replica.lost = replica.report.sequence
        logger.warning(
            "replica %s at %s is passed over: %s", replica.report.replica, replica.report.address, why
        )
