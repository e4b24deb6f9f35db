"""vLLM's asynchronous engine, counting what passes through it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any

SAID: ContextVar[str] = ContextVar("said", default="")
"""What another engine has said of the answer to the present request. It is read, not drawn."""


@dataclass(frozen=True, slots=True)
class Usage:
    """One request that ended. ``name`` is the adapter's, or None for the model itself; times in seconds.

    ``cached_tokens`` are those of the prompt that had been computed for another request; ``speculation`` is
    vLLM's own account of what was drafted, None without speculation.
    """

    name: str | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    first_s: float
    seconds: float
    speculation: Any = None

    @property
    def token_s(self) -> float | None:
        """The mean time of a token after the first (TPOT)."""
        return (
            (self.seconds - self.first_s) / (self.completion_tokens - 1)
            if self.completion_tokens > 1
            else None
        )


@cache
def metered_llm() -> Any:
    """A subclass of ``vllm.v1.engine.async_llm.AsyncLLM`` (read in 0.29.0), once vLLM may be imported."""
    from vllm.outputs import CompletionOutput, RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM

    class MeteredLLM(AsyncLLM):
        ended: Callable[[Usage], None] = staticmethod(lambda usage: None)

        def generate(self, prompt: Any, sampling_params: Any, *args: Any, **options: Any) -> Any:
            said = SAID.get()
            if not said:
                return self._metered(prompt, sampling_params, *args, **options)
            return self._go_on(said, prompt, sampling_params, *args, **options)

        async def _go_on(
            self, said: str, prompt: Any, sampling_params: Any, request_id: str, **options: Any
        ) -> Any:
            ids = self.get_tokenizer().encode(said, add_special_tokens=False)
            before, left = prompt["prompt_token_ids"], sampling_params.max_tokens - len(ids)
            told = CompletionOutput(0, said, ids, None, None)
            yield RequestOutput(request_id, None, before, None, [told], finished=False)
            if left <= 0:
                over = CompletionOutput(0, "", [], None, None, finish_reason="length")
                yield RequestOutput(request_id, None, before, None, [over], finished=True)
                return
            rest, whole = sampling_params.clone(), prompt | {"prompt_token_ids": [*before, *ids]}
            rest.max_tokens, rest.min_tokens = left, max(0, rest.min_tokens - len(ids))
            async with aclosing(self._metered(whole, rest, request_id, **options)) as answer:
                async for out in answer:
                    out.prompt_token_ids = before
                    yield out

        async def encode(self, *args: Any, **options: Any) -> Any:
            began, out = time.monotonic(), None
            answer = super().encode(*args, **options)
            try:
                async for out in answer:
                    yield out
            finally:
                await answer.aclose()
                if out is not None:
                    prompt, seconds = len(out.prompt_token_ids), time.monotonic() - began
                    self.ended(Usage(None, prompt, out.num_cached_tokens or 0, 0, seconds, seconds))

        async def _metered(self, *args: Any, lora_request: Any = None, **options: Any) -> Any:
            began = first = time.monotonic()
            tokens, prompt, out = 0, 0, None
            answer = super().generate(*args, lora_request=lora_request, **options)
            try:
                async for out in answer:
                    if tokens == 0:
                        first, prompt = time.monotonic(), len(out.prompt_token_ids or ())
                    tokens += sum(len(choice.token_ids) for choice in out.outputs)
                    yield out
            finally:
                await answer.aclose()
                if out is not None:
                    name = lora_request.lora_name if lora_request else None
                    cached, now = out.num_cached_tokens or 0, time.monotonic()
                    drafts = getattr(out.outputs[0], "spec_decode_metrics", None) if out.outputs else None
                    self.ended(Usage(name, prompt, cached, tokens, first - began, now - began, drafts))

    return MeteredLLM
