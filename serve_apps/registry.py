"""The registry as routers and engines of the application see it."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Any

from actors.registry import find_registry
from largeforge_ray.errors import ForgeError
from largeforge_ray.promote.rollout import Rules
from largeforge_ray.promote.views import Entry, ReplicaReport, RouterReport, View
from largeforge_ray.routing.experts import Price

ANSWER_S = 5.0

logger = logging.getLogger("ray.serve")


@dataclass(slots=True)
class RegistryClient:
    """Finds the registry's actor when it is first asked, and again whenever it was lost.

    ``app`` is the name of the Serve application, ``router`` the key of its router artifact.
    """

    app: str
    store: str
    router: str
    rules: Rules = field(default_factory=Rules)
    _actor: Any = None

    async def sync(self, report: ReplicaReport | RouterReport, known: int | None) -> View | None:
        """What is news, None if the registry cannot be asked now: whoever asks goes on with what it knows."""
        from ray.exceptions import RayError

        try:
            async with asyncio.timeout(ANSWER_S):
                return await self._found().sync.remote(report, known)  # type: ignore[no-any-return]
        except (RayError, ValueError, TimeoutError) as error:
            logger.warning(
                "the registry does not answer: %s", str(error).splitlines()[0] if str(error) else "late"
            )
            self._actor = None
            return None

    async def propose(self, reference: str, name: str | None, price: Price | None, actor: str) -> Entry:
        """Raises ``ForgeError`` if it is refused."""
        return await _asked(self._found().propose.remote(reference, name, price, actor))  # type: ignore[no-any-return]

    async def remove(self, name: str, actor: str) -> Entry:
        """Raises ``ForgeError`` if it is refused."""
        return await _asked(self._found().remove.remote(name, actor))  # type: ignore[no-any-return]

    async def history(self) -> list[Any]:
        return await _asked(self._found().history.remote())  # type: ignore[no-any-return]

    def _found(self) -> Any:
        if self._actor is None:
            name = f"registry-{self.app}-{self.router[:16]}"
            self._actor = find_registry(name, self.store, self.router, self.rules)
        return self._actor


async def _asked(reference: Any) -> Any:
    """What the actor returns, or its own error without Ray's traceback around it."""
    from ray.exceptions import RayTaskError

    try:
        return await reference
    except RayTaskError as error:
        if isinstance(error.cause, ForgeError):
            raise error.cause from None
        raise
