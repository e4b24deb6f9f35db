"""An engine behind Serve: one deployment for all experts that share a base model."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any

from largeforge_ray.routing.experts import ModelGroup
from largeforge_ray.routing.load import Load, predicted_wait_s
from serve_apps.openai_errors import ReplyHead, expert_unavailable, internal, queue_full

RECOVERY_POLL_S = 0.2
REMEMBERED = 0.1
"""Of the newest request's seconds in their moving average."""

logger = logging.getLogger("ray.serve")


class ExpertEngine:
    """A replica: fetches and verifies its artifacts, starts vLLM, answers for the group's experts."""

    async def __init__(self, store: str, group: ModelGroup, *, max_num_seqs: int, max_tokens: int) -> None:
        from largeforge_ray.store import open_store
        from serve_apps.vllm_chat import VllmChat

        opened = open_store(store)
        adapters = {e.name: opened.fetch(opened.get(e.adapter_key)) for e in group.experts if e.adapter_key}
        self._limit = 4 * max_num_seqs
        self._chat = VllmChat(
            opened.fetch(opened.get(group.model_key)),
            [e.name for e in group.experts if not e.adapter_key] or [group.model_key[:16]],
            max_model_len=group.max_model_len,
            max_lora_rank=group.max_lora_rank,
            max_num_seqs=max_num_seqs,
            max_tokens=max_tokens,
        )
        await self._chat.load_adapters(adapters)

    async def check_health(self) -> None:
        """Serve calls this and replaces the replica when it raises."""
        await self._chat.check_health()

    async def ready(self) -> None:
        """Answers as soon as there is a replica with a living engine."""
        await self._chat.check_health()

    async def answer(self, payload: dict[str, Any]) -> AsyncIterator[ReplyHead | bytes | None]:
        """``None`` at once, so that the caller knows the request arrived; then the reply."""
        yield None
        if (running := self._chat.running) >= self._limit:
            error = queue_full(running, self._limit)
            yield ReplyHead(error.status, retry_after_s=error.retry_after_s)
            yield error.body()
            return
        async for part in self._chat.answer(payload):
            yield part

    def __del__(self) -> None:
        # A replica that failed in __init__ has no engine yet.
        if chat := getattr(self, "_chat", None):
            chat.shutdown()


class EngineClient:
    """A deployment handle as the router sees it: a stream of parts, and ``ApiError`` for every failure.

    Create it inside the event loop. At first and after a failure requests are refused at once, until the
    deployment answers ``ready``.
    """

    def __init__(self, handle: Any, *, accept_s: float, slots: int) -> None:
        self._handle = handle
        self._accept_s = accept_s
        self._slots, self._given, self._seconds = slots, 0, 0.0
        self._recovery: asyncio.Task[None] | None = asyncio.create_task(self._recover())

    @property
    def up(self) -> bool:
        return self._recovery is None

    @property
    def wait_s(self) -> float:
        """How long a request would wait for its turn, by what this router has given the engine."""
        return predicted_wait_s(Load(self._given, self._slots, self._seconds))

    async def answer(self, expert: str, payload: Mapping[str, Any]) -> AsyncIterator[ReplyHead | bytes]:
        """The reply's head, then its bytes. Closing the iterator cancels the request."""
        from ray.exceptions import RayError, RayTaskError
        from ray.serve.exceptions import BackPressureError, RayServeException

        if not self.up:
            raise expert_unavailable(expert)
        parts = self._handle.options(stream=True).answer.remote(dict(payload))
        self._given, began = self._given + 1, time.monotonic()
        try:
            async with asyncio.timeout(self._accept_s):
                await anext(parts)
            async for part in parts:
                if isinstance(part, ReplyHead) and part.status == 503:
                    self._go_down()
                yield part
            recent = time.monotonic() - began
            self._seconds += REMEMBERED * (recent - self._seconds) if self._seconds else recent
        except BackPressureError as error:
            raise queue_full(*error.args[:2]) from None
        except RayTaskError as error:
            logger.error("expert %s failed to answer: %s", expert, error)
            raise internal() from None
        except (RayError, RayServeException, TimeoutError):
            self._go_down()
            raise expert_unavailable(expert) from None
        finally:
            self._given -= 1
            parts.cancel()

    def _go_down(self) -> None:
        if self._recovery is None:
            self._recovery = asyncio.create_task(self._recover())

    async def _recover(self) -> None:
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        while not self.up:
            with suppress(RayError, RayServeException):
                await self._handle.ready.remote()
                self._recovery = None
                return
            await asyncio.sleep(RECOVERY_POLL_S)
