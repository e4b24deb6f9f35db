"""A chat engine: vLLM's asynchronous engine behind two methods (read in vLLM 0.29.0).

Requests of many callers are batched continuously, and each may name its own adapter.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from largeforge_ray.config.speculation import Speculation
from largeforge_ray.errors import ModelError
from largeforge_ray.models.clock import SharedClock
from largeforge_ray.models.hardware import engine_args, engine_env
from largeforge_ray.store import local_folder
from largeforge_ray.types import GenerateRequest, Generation, Likeliest, ScoreRequest, TokenScores

HANDED_ADAPTERS = 2
"""What is learning is asked about as it is now; requests under way may still read the one before."""


class EngineDied(RuntimeError):
    """The engine's core process is gone; the object cannot be used again."""


class Engine:
    """One loaded model, at an address. ``max_model_len`` is in tokens and covers prompt and answer.

    ``handed`` is the folder for adapters that are handed over as files, one of its own if None. ``draft_dir``
    holds the model that drafts, if ``speculation`` names one.

    Starting takes 20 to 35 s on a CPU. A request that cannot be served comes back with ``error``
    set and takes none of its neighbours along; ``EngineDied`` is raised when all of them are lost.
    """

    def __init__(
        self,
        model_dir: str,
        *,
        max_model_len: int,
        max_lora_rank: int | None = None,
        handed: Path | None = None,
        speculation: Speculation | None = None,
        draft_dir: str | None = None,
    ) -> None:
        started = time.monotonic()
        os.environ.update(engine_env())
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        args = engine_args(
            local_folder(model_dir),
            max_model_len=max_model_len,
            max_lora_rank=max_lora_rank,
            speculation=speculation,
            draft_dir=None if draft_dir is None else local_folder(draft_dir),
        )
        # What is asked about tokens is bounded by who asks: only our own code does.
        self._llm: Any = AsyncLLM.from_engine_args(
            # Nobody reads its statistics, and to keep them costs every step.
            AsyncEngineArgs(**args, max_logprobs=-1, disable_log_stats=True)
        )
        self._tokenizer: Any = self._llm.get_tokenizer()
        self._max_model_len = max_model_len
        self._adapters: dict[str, Any] = {}
        self._numbers = itertools.count(1)
        self._handed = handed or Path(tempfile.mkdtemp(prefix="largeforge-adapters-"))
        self._owned = [] if handed else [self._handed]
        self._loading = asyncio.Lock()
        self._answering, self._changed = 0, asyncio.Condition()
        self._clock = SharedClock()
        self.start_seconds = time.monotonic() - started

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation]:
        """Answer all requests, in their order."""
        async with self._changed:
            self._answering += 1
        try:
            return list(await asyncio.gather(*(self._one(r) for r in requests)))
        finally:
            async with self._changed:
                self._answering -= 1
                self._changed.notify_all()

    async def score(self, requests: Sequence[ScoreRequest]) -> list[TokenScores]:
        """How likely the model finds the tokens of each request, in their order.

        It waits until nothing is being generated and computes one request at a time: with adapters
        vLLM's CPU engine dies when a prompt's log-probabilities are asked for in a batch (its
        ``add_lora_logits`` counts requests where it is given tokens). So the numbers also repeat.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self._answering == 0)
            return [await self._score(r) for r in requests]

    async def put_adapter(self, files: dict[str, bytes]) -> str:
        """Keep the files of a PEFT folder; returns the folder, for requests to name.

        Its name follows from its bytes, because vLLM keeps prefixes by an adapter's name. The newest
        ``HANDED_ADAPTERS`` stay.
        """
        digest = hashlib.sha256()
        for name in sorted(files):
            digest.update(files[name])
        folder = self._handed / digest.hexdigest()[:16]
        async with self._loading:
            folder.mkdir(exist_ok=True)
            for name, content in files.items():
                (folder / name).write_bytes(content)
            os.utime(folder)
            by_age = sorted(self._handed.iterdir(), key=lambda f: f.stat().st_mtime_ns)
            for old in by_age[:-HANDED_ADAPTERS]:
                self._adapters.pop(str(old), None)
                shutil.rmtree(old)
        return str(folder)

    async def _one(self, request: GenerateRequest) -> Generation:
        ids = self._prompt_ids(request)
        room = self._max_model_len - len(ids)
        if room < 1:
            return Generation(
                request.request_id,
                prompt_tokens=len(ids),
                error=f"prompt of {len(ids)} tokens exceeds the context of {self._max_model_len}; "
                "shorten it or raise model.max_model_len",
            )
        s = request.sampling
        # What nobody asks for costs the engine a logarithm over its vocabulary in every step.
        asked = request.prompt_ids is not None or request.topk is not None
        params = {
            "temperature": s.temperature,
            "top_p": s.top_p,
            "max_tokens": min(s.max_tokens, room),
            "seed": s.seed,
            "stop": list(request.stop),
            "logprobs": (request.topk or 0) if asked else None,
        }
        try:
            with self._clock.share() as share:
                output = await self._run(request, ids, params)
        except ValueError as error:
            return Generation(request.request_id, prompt_tokens=len(ids), error=str(error))
        answer = output.outputs[0]
        tokens = len(answer.token_ids)
        drawn_ids, logprobs = _drawn_tokens(answer) if asked else ((), ())
        return Generation(
            request_id=request.request_id,
            text=answer.text,
            finish_reason=answer.finish_reason,
            prompt_tokens=len(ids),
            completion_tokens=tokens,
            seconds=share.seconds,
            mean_logprob=answer.cumulative_logprob / tokens
            if tokens and answer.cumulative_logprob is not None
            else None,
            token_ids=drawn_ids,
            logprobs=logprobs,
            likeliest=None if request.topk is None else likeliest(answer.logprobs, request.topk),
            cached_tokens=output.num_cached_tokens or 0,
        )

    def _prompt_ids(self, request: GenerateRequest) -> list[int]:
        if request.prompt_ids:
            return list(request.prompt_ids)
        if request.context is not None:
            return list(self._tokenizer.encode(request.context))
        turns = list(request.messages)
        return list(self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False))

    async def _score(self, request: ScoreRequest) -> TokenScores:
        # The engine must give one token, and looks up no cached prefix when it is asked about the prompt.
        params = {"temperature": 0.0, "max_tokens": 1, "prompt_logprobs": 0, "detokenize": False}
        ids = list(request.token_ids)
        try:
            output = await self._run(request, ids, params)
        except ValueError as error:
            return TokenScores(request.request_id, error=str(error))
        following = zip(ids[1:], output.prompt_logprobs[1:], strict=True)
        return TokenScores(request.request_id, tuple(known[token].logprob for token, known in following))

    async def _run(self, request: GenerateRequest | ScoreRequest, ids: list[int], params: Any) -> Any:
        """vLLM's finished output. Raises ``ValueError`` for a request that cannot be served."""
        from vllm import SamplingParams
        from vllm.exceptions import VLLMClientError
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            stream = self._llm.generate(
                {"prompt_token_ids": ids},
                SamplingParams(**params, output_kind=RequestOutputKind.FINAL_ONLY),
                request.request_id,
                lora_request=await self._adapter(request.adapter),
            )
            async for output in stream:
                return output
        except EngineDeadError as error:
            raise EngineDied("the engine's core process died") from error
        except VLLMClientError as error:
            raise ValueError(str(error)) from error
        raise ValueError("the engine ended the request without an answer")

    async def _adapter(self, folder: str | None) -> Any:
        """The engine's handle of an adapter, which is loaded when it is first asked for.

        Raises ``ModelError`` for one the engine cannot load. Met in the middle of a batch it would end
        the engine.
        """
        if folder is None:
            return None
        from vllm.lora.request import LoRARequest
        from vllm.v1.engine.exceptions import EngineDeadError

        async with self._loading:
            if folder not in self._adapters:
                here = await asyncio.to_thread(local_folder, folder)
                handle = LoRARequest(
                    lora_name=here.name, lora_int_id=next(self._numbers), lora_path=str(here)
                )
                try:
                    await self._llm.add_lora(handle)
                except EngineDeadError:
                    raise
                except Exception as error:  # vLLM gives whatever its core met as a plain Exception
                    raise ModelError(
                        f"the engine cannot load adapter {handle.lora_name}: {error}; train it again with "
                        "targets and a rank the engine knows"
                    ) from error
                self._adapters[folder] = handle
        return self._adapters[folder]

    @property
    def errored(self) -> bool:
        """Whether the core is gone."""
        return bool(self._llm.errored)

    def shutdown(self) -> None:
        """Stop the engine's processes and wait for them."""
        self._llm.shutdown()
        for folder in self._owned:
            shutil.rmtree(folder)


def likeliest(places: Sequence[Mapping[int, Any]], k: int) -> Likeliest:
    """The k likeliest tokens of every place from vLLM's records, likeliest first."""
    import numpy as np

    ids_TK = np.zeros((len(places), k), dtype=np.int32)
    logps_TK = np.full((len(places), k), -np.inf, dtype=np.float64)
    for t, place in enumerate(places):
        # The drawn token is recorded too, wherever it ranks.
        best = sorted((known.rank, token, known.logprob) for token, known in place.items())[:k]
        ids_TK[t, : len(best)] = [token for _, token, _ in best]
        logps_TK[t, : len(best)] = [logp for _, _, logp in best]
    with np.errstate(divide="ignore"):
        tail_T = np.log(np.clip(1.0 - np.exp(logps_TK).sum(1), 0.0, None))
    return Likeliest(ids_TK, logps_TK.astype(np.float16), tail_T.astype(np.float16))


def _drawn_tokens(answer: Any) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Ids and log-probabilities of vLLM's finished answer, before any temperature (``raw_logprobs``)."""
    ids = tuple(answer.token_ids)
    found = zip(ids, answer.logprobs, strict=True)
    return ids, tuple(known[token].logprob for token, known in found)
