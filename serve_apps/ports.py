"""The narrow interfaces between the front, the engines and the client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from largeforge_ray.routing import Expert
from serve_apps.openai_errors import ReplyHead


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for: ``max_tokens`` in tokens, ``timeout_s`` for the whole reply."""

    max_body_bytes: int
    max_tokens: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Ask:
    """A request on its way to an engine: the client's own ``body``, and the expert that answers it."""

    path: str
    expert: Expert
    body: bytes


class Engine(Protocol):
    """What the front needs of an engine; ``answer`` yields a head, then bytes, or raises ``ApiError``."""

    def serves(self, expert: Expert) -> bool:
        """Whether a request for the expert would be taken."""

    @property
    def wait_s(self) -> float: ...

    @property
    def replicas(self) -> int: ...

    @property
    def running(self) -> int: ...

    @property
    def speculation(self) -> Mapping[str, Any] | None: ...

    def answer(self, ask: Ask) -> AsyncIterator[ReplyHead | bytes]: ...


class Outlet(Protocol):
    """Where a reply goes: an ``Exchange``, or one that is read on the way."""

    @property
    def started(self) -> bool: ...

    async def start(self, status: int, content_type: str, headers: Mapping[str, str]) -> None: ...

    async def part(self, data: bytes) -> None: ...

    async def end(self) -> None: ...

    async def reply(
        self, status: int, body: bytes, headers: Mapping[str, str], content_type: str
    ) -> None: ...
