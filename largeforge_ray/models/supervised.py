"""An engine that outlives its core: it is started again, and the request that kills it is found.

What was under way when the core died is asked again. A request that saw two deaths is asked again alone,
so that it costs no others; one that is alone with two deaths more gets an error for its answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

from largeforge_ray.errors import ModelError
from largeforge_ray.models.engine import EngineDied
from largeforge_ray.types import GenerateRequest, Generation, Sampling, ScoreRequest, TokenScores

SHARED_DEATHS, LONE_DEATHS = 2, 2
"""One death may be anybody's doing; a second one alone is no longer chance."""
VAIN_STARTS = 8
"""Starts in a row without one finished request, after which no further start will help."""

HARMLESS = GenerateRequest("harmless", ({"role": "user", "content": "Hello"},), Sampling(max_tokens=1))

LOOK_S = 1.0
"""Seconds between looks at an engine that has not answered."""

_log = logging.getLogger(__name__)


class SupervisedEngine:
    """``start`` makes an engine and blocks until it is ready.

    Raises ``ModelError`` from whatever is asked once ``VAIN_STARTS`` starts led to nothing.
    """

    def __init__(self, start: Callable[[], Any]) -> None:
        self._start = start
        try:
            self._engine = start()
        except RuntimeError:
            # A core killed while it started looks like one that cannot start: a second failure tells.
            self._engine = start()
        self.deaths = 0
        self._vain = 0
        self._running, self._lone = 0, 0
        self._changed = asyncio.Condition()
        self._death: asyncio.Future[None] | None = None

    @property
    def start_seconds(self) -> float:
        """How long the newest start took."""
        seconds: float = self._engine.start_seconds
        return seconds

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation]:
        """Answer all requests, in their order."""
        return list(await asyncio.gather(*(self._generate(r) for r in requests)))

    async def score(self, requests: Sequence[ScoreRequest]) -> list[TokenScores]:
        """How likely the model finds the tokens of each request, in their order."""
        # The engine itself scores one after the other.
        return [await self._score(r) for r in requests]

    async def put_adapter(self, files: dict[str, bytes]) -> str:
        """As ``Engine.put_adapter``; the adapter is there again after a restart."""
        folder: str = await self._engine.put_adapter(files)
        return folder

    def shutdown(self) -> None:
        """Stop the engine's processes and wait for them."""
        self._engine.shutdown()

    async def _generate(self, request: GenerateRequest) -> Generation:
        made: Generation = await self._survive("generate", request, Generation)
        return made

    async def _score(self, request: ScoreRequest) -> TokenScores:
        made: TokenScores = await self._survive("score", request, TokenScores)
        return made

    async def _survive(self, method: str, request: Any, made: Any) -> Any:
        shared = lone = 0
        while lone < LONE_DEATHS:
            alone = shared >= SHARED_DEATHS
            async with self._turn(alone):
                life = self.deaths
                try:
                    (answer,) = await self._while_alive(getattr(self._engine, method)([request]))
                except EngineDied:
                    self._revive(life)
                    shared, lone = shared + (not alone), lone + alone
                else:
                    self._vain = 0
                    return answer
        await self._prove()
        return made(request.request_id, error=f"the engine died {lone} times while it had this request alone")

    async def _prove(self) -> None:
        """Ask for something harmless: of an engine that still answers, only what it was asked is to blame.

        Towards its end a farm may have nothing left but requests that kill.
        """
        async with self._turn(alone=True):
            life = self.deaths
            try:
                await self._while_alive(self._engine.generate([HARMLESS]))
            except EngineDied:
                self._revive(life)
            else:
                self._vain = 0

    async def _while_alive(self, call: Coroutine[Any, Any, Any]) -> Any:
        """What ``call`` returns. Raises ``EngineDied`` too if its engine is replaced meanwhile: whoever meets
        the death first stops the old engine, and vLLM then tells those that wait for its answers nothing."""
        self._death = self._death or asyncio.get_running_loop().create_future()
        death, engine, task = self._death, self._engine, asyncio.ensure_future(call)
        # A request that was being sent to the core when it died waits for its socket and hears nothing.
        while not task.done() and not death.done() and not engine.errored:
            await asyncio.wait({death, task}, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        # What it ends with is of no interest any more.
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        task.cancel()
        raise EngineDied("the engine was replaced")

    @asynccontextmanager
    async def _turn(self, alone: bool) -> AsyncIterator[None]:
        """A place among the requests under way, or all of the engine."""
        async with self._changed:
            self._lone += alone
            # Others that come later wait behind one that wants to be alone, or it would wait for ever.
            free = (lambda: not self._running) if alone else (lambda: not self._lone)
            await self._changed.wait_for(free)
            self._running += 1
        try:
            yield
        finally:
            async with self._changed:
                self._running -= 1
                self._lone -= alone
                self._changed.notify_all()

    def _revive(self, life: int) -> None:
        """Start again, once for all that saw the same death. Nothing else runs meanwhile."""
        if life != self.deaths:
            return
        death, self._death = self._death, None
        if death is not None:
            death.set_result(None)
        self.deaths += 1
        self._vain += 1
        if self._vain > VAIN_STARTS:
            raise ModelError(
                f"the engine died {self.deaths} times, the last {self._vain} without an answer between; "
                "look at its log in the dashboard, lower model.max_model_len or use a larger machine"
            )
        _log.warning("the engine's core died (death %d); starting it again", self.deaths)
        self._engine.shutdown()
        self._engine = self._start()
