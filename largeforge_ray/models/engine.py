"""A chat engine: vLLM's asynchronous engine behind one method (read in vLLM 0.29.0).

Requests of many callers are batched continuously, and each may name its own adapter.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from largeforge_ray.models.hardware import engine_args, engine_env
from largeforge_ray.types import GenerateRequest, Generation


class EngineDied(RuntimeError):
    """The engine's core process is gone; the object cannot be used again."""


class Engine:
    """One loaded model. ``max_model_len`` is in tokens and covers prompt and answer.

    Starting takes 20 to 35 s on a CPU. A request that cannot be served comes back with ``error``
    set and takes none of its neighbours along; ``EngineDied`` is raised when all of them are lost.
    """

    def __init__(self, model_dir: str, *, max_model_len: int, max_lora_rank: int | None = None) -> None:
        started = time.monotonic()
        os.environ.update(engine_env())
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        args = engine_args(
            Path(model_dir), max_model_len=max_model_len, max_lora_rank=max_lora_rank, max_num_seqs=32
        )
        self._llm: Any = AsyncLLM.from_engine_args(AsyncEngineArgs(**args))
        self._tokenizer: Any = self._llm.get_tokenizer()
        self._max_model_len = max_model_len
        self._adapters: dict[str, int] = {}
        self.start_seconds = time.monotonic() - started

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation]:
        """Answer all requests, in their order."""
        return list(await asyncio.gather(*(self._one(r) for r in requests)))

    async def _one(self, request: GenerateRequest) -> Generation:
        from vllm.v1.engine.exceptions import EngineDeadError

        started = time.monotonic()
        ids = self._tokenizer.apply_chat_template(
            list(request.messages), add_generation_prompt=True, return_dict=False
        )
        room = self._max_model_len - len(ids)
        if room < 1:
            return Generation(
                request.request_id,
                prompt_tokens=len(ids),
                error=f"prompt of {len(ids)} tokens exceeds the context of {self._max_model_len}; "
                "shorten it or raise model.max_model_len",
            )
        try:
            return await self._run(request, ids, room, started)
        except EngineDeadError as error:
            raise EngineDied("the engine's core process died") from error
        except ValueError as error:
            return Generation(request.request_id, prompt_tokens=len(ids), error=str(error))

    async def _run(self, request: GenerateRequest, ids: list[int], room: int, started: float) -> Generation:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        s = request.sampling
        params = SamplingParams(
            temperature=s.temperature,
            top_p=s.top_p,
            max_tokens=min(s.max_tokens, room),
            seed=s.seed,
            logprobs=0,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        stream = self._llm.generate(
            {"prompt_token_ids": ids}, params, request.request_id, lora_request=self._lora(request.adapter)
        )
        async for output in stream:
            answer = output.outputs[0]
            tokens = len(answer.token_ids)
            return Generation(
                request_id=request.request_id,
                text=answer.text,
                finish_reason=answer.finish_reason,
                prompt_tokens=len(ids),
                completion_tokens=tokens,
                seconds=time.monotonic() - started,
                mean_logprob=answer.cumulative_logprob / tokens
                if tokens and answer.cumulative_logprob is not None
                else None,
            )
        return Generation(
            request.request_id, prompt_tokens=len(ids), error="the engine ended the request without an answer"
        )

    def _lora(self, adapter: str | None) -> Any:
        if adapter is None:
            return None
        from vllm.lora.request import LoRARequest

        number = self._adapters.setdefault(adapter, len(self._adapters) + 1)
        return LoRARequest(lora_name=Path(adapter).name, lora_int_id=number, lora_path=adapter)

    def shutdown(self) -> None:
        """Stop the engine's processes and wait for them."""
        self._llm.shutdown()
