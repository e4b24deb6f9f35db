"""vLLM's asynchronous engine, counting what passes through it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any


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
    from vllm.v1.engine.async_llm import AsyncLLM

    class MeteredLLM(AsyncLLM):
        ended: Callable[[Usage], None] = staticmethod(lambda usage: None)

        async def generate(self, *args: Any, lora_request: Any = None, **options: Any) -> Any:
            began = first = time.monotonic()
            tokens, out = 0, None
            answer = super().generate(*args, lora_request=lora_request, **options)
            try:
                async for out in answer:
                    first = time.monotonic() if tokens == 0 else first
                    tokens += sum(len(choice.token_ids) for choice in out.outputs)
                    yield out
            finally:
                await answer.aclose()
                if out is not None:
                    name = lora_request.lora_name if lora_request else None
                    prompt = len(out.prompt_token_ids or ())
                    cached, now = out.num_cached_tokens or 0, time.monotonic()
                    drafts = getattr(out.outputs[0], "spec_decode_metrics", None) if out.outputs else None
                    self.ended(Usage(name, prompt, cached, tokens, first - began, now - began, drafts))

    return MeteredLLM
