"""transformers behind the interface of an engine, for models that vLLM does not know.

One thread generates, one request after the other in the order they came: a batch would need each
architecture's own way of padding and caching. vLLM, which batches, is the engine for every model it knows.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from largeforge_ray.errors import ModelError
from serve_apps.generated_text import Piece
from serve_apps.generation_request import ChatRequest, Sampling, TextRequest, parse_generation
from serve_apps.metered import Usage
from serve_apps.openai_errors import ApiError, ReplyHead, bad_request, expert_unavailable, unknown_model
from serve_apps.openai_shapes import DONE, REPLIES, Reply
from serve_apps.transformers_model import PromptReader, TransformersModel

STALL_S = 60.0
"""An engine that owes tokens and gives none for so long is replaced."""

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that was read and fits, and its prompt's ids."""

    request: ChatRequest | TextRequest
    ids: list[int]
    sampling: Sampling


class TransformersEngine:
    """One model in this process that answers requests for it and for adapters on it.

    ``names`` are the model's own. Create it inside the event loop that will use it; loading blocks.
    ``max_model_len`` covers prompt and answer, ``max_tokens`` caps every answer, both in tokens; ``ended`` is
    told of every request that got a token and ended. An answer that was left stops at its next token; a
    prompt that is being read in cannot be stopped.
    """

    def __init__(
        self,
        model_dir: Path,
        names: Sequence[str],
        *,
        max_model_len: int,
        max_tokens: int,
        ended: Callable[[Usage], None] = lambda usage: None,
    ) -> None:
        self._names, self._max_model_len, self._max_tokens = tuple(names), max_model_len, max_tokens
        self._ended = ended
        self._thread = ThreadPoolExecutor(1, "generation")
        self._reading = ThreadPoolExecutor(1, "prompts")
        self._reader = PromptReader(model_dir)
        # Built where it is used: how many threads torch computes with is a thread's own setting.
        self._model = self._thread.submit(TransformersModel, model_dir).result()
        self._adapters: dict[str, str] = {}
        self._jobs: set[Future[Any]] = set()
        self._last_token, self._broken, self._closing = 0.0, False, threading.Event()

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters that are loaded."""
        return tuple(self._adapters)

    @property
    def served(self) -> tuple[str, ...]:
        """The names requests may give as their model."""
        return (*self._names, *self.adapters)

    async def load_adapter(self, name: str, folder: Path) -> None:
        """Serve a PEFT folder under a name, after the requests before it. Raises ``ModelError``."""
        if name in self.served:
            raise ModelError(f"adapter '{name}' is loaded already; unload it first")
        try:
            self._adapters[name] = await self._run(self._model.adapters.load, folder)
        except ModelError as error:
            raise ModelError(
                f"adapter '{name}' in {folder} does not load: {error}; "
                "check that it was trained on this model"
            ) from error

    async def unload_adapter(self, name: str) -> None:
        """No longer serve what is under the name; requests that came before end."""
        handle = self._adapters.pop(name, None)
        if handle is not None:
            await self._run(self._model.adapters.delete, handle)

    async def log_probability(self, ids: list[int], token: int, adapter: str | None) -> float:
        """Of ``token`` after ``ids``. Raises ``ValueError`` if they are too many or not the model's."""
        self._check_length(ids, 1)
        return float(await self._run(self._model.log_probability, ids, token, self._handle(adapter)))

    async def greedy(self, ids: list[int], adapter: str | None, tokens: int) -> str:
        """What the model says after ``ids``."""
        self._check_length(ids, tokens)
        pieces: list[Piece] = []
        await self._run(
            self._model.generate,
            ids,
            self._handle(adapter),
            Sampling(tokens),
            pieces.append,
            self._closing.is_set,
        )
        return "".join(piece.text for piece in pieces)

    def _check_length(self, ids: list[int], tokens: int) -> None:
        if len(ids) + tokens > self._max_model_len:
            raise ValueError(
                f"{len(ids)} tokens and {tokens} more exceed the context of {self._max_model_len}"
            )

    def _handle(self, adapter: str | None) -> str | None:
        return self._adapters[adapter] if adapter else None

    async def check_health(self) -> None:
        """Raise when the device has failed, after which nothing works in this process, or is stuck."""
        if self._broken:
            raise RuntimeError("the accelerator failed; the process must be replaced")
        if self._jobs and (stalled_s := time.monotonic() - self._last_token) > STALL_S:
            raise RuntimeError(f"the engine owes tokens and has given none for {stalled_s:.0f} s")

    @property
    def healthy(self) -> bool:
        """Whether it can answer."""
        return not self._broken and not self._closing.is_set()

    @property
    def running(self) -> int:
        """Requests it is answering or has queued."""
        return len(self._jobs)

    def shutdown(self) -> None:
        """Stop what is under way, wait for its thread, and refuse the rest."""
        self._closing.set()
        self._thread.shutdown(cancel_futures=True)
        self._reading.shutdown()

    async def answer(
        self, path: str, payload: Mapping[str, Any], said: str = ""
    ) -> AsyncIterator[ReplyHead | bytes]:
        """A head, then the bytes of the reply. What was ``said`` by another engine is not gone on with.

        Refusals come as a reply, too. A stream that cannot be finished ends with an error event and without
        ``[DONE]``. Closing the iterator stops the generation at its next token.
        """
        started = False
        try:
            asked = await self._read(path, payload)
            reply = REPLIES[path](asked.request.model)
            parts = self._stream(asked, reply) if asked.request.stream else self._whole(asked, reply)
            async with aclosing(parts):
                async for part in parts:
                    started = True
                    yield part
        except ApiError as error:
            if not started:
                yield ReplyHead(error.status, retry_after_s=error.retry_after_s)
            yield error.event() if started else error.body()

    async def _read(self, path: str, payload: Mapping[str, Any]) -> Asked:
        """Check the request and count its prompt. Raises ``ApiError``."""
        request = parse_generation(path, payload)
        if not self.healthy:
            raise expert_unavailable(request.model)
        if request.model not in self.served:
            raise unknown_model(request.model, self.served)
        try:
            if isinstance(request, ChatRequest):
                ids = await self._in_reader(self._reader.chat, request.turns())
            else:
                ids = await self._in_reader(self._reader.text, request.prompt)
        except ValueError as error:
            raise bad_request(str(error), request.prompt_field) from None
        room = self._max_model_len - len(ids)
        if room < (request.asked_tokens or 1):
            raise bad_request(
                f"{len(ids)} tokens of the prompt and {request.asked_tokens or 1} of the answer exceed the "
                f"context length of {self._max_model_len}; shorten the prompt or lower max_tokens",
                request.prompt_field,
                "context_length_exceeded",
            )
        most = min(request.asked_tokens or self._max_tokens, self._max_tokens, room)
        return Asked(request, ids, request.sampling(most))

    async def _whole(self, asked: Asked, reply: Reply) -> AsyncGenerator[ReplyHead | bytes, None]:
        async with aclosing(self._pieces(asked)) as arriving:
            pieces = [piece async for piece in arriving]
        yield ReplyHead(200)
        yield reply.whole(pieces, len(asked.ids))

    async def _stream(self, asked: Asked, reply: Reply) -> AsyncGenerator[ReplyHead | bytes, None]:
        held: list[Piece] = []
        tokens = 0
        async with aclosing(self._pieces(asked)) as arriving:
            async for piece in arriving:
                if tokens == 0:
                    yield ReplyHead(200, "text/event-stream; charset=utf-8")
                    for event in reply.opening(asked.sampling.n):
                        yield event
                tokens += 1
                held.append(piece)
                if piece.text or piece.finish:
                    yield reply.event(held)
                    held = []
        if asked.request.include_usage:
            yield reply.usage(len(asked.ids), tokens)
        yield DONE

    async def _pieces(self, asked: Asked) -> AsyncGenerator[Piece, None]:
        """The pieces as the thread makes them. Raises ``ApiError`` if it cannot make all of them."""
        loop, left = asyncio.get_running_loop(), threading.Event()
        arrived: asyncio.Queue[Piece | None] = asyncio.Queue()
        began = first = time.monotonic()
        tokens = 0

        def tell(piece: Piece | None) -> None:
            self._last_token = time.monotonic()
            if not left.is_set():  # who left may have taken the event loop along
                loop.call_soon_threadsafe(arrived.put_nowait, piece)

        model = asked.request.model
        if not self.healthy or model not in self.served:  # it may have gone while the prompt was read
            raise expert_unavailable(model)
        job = self._submit(
            self._model.generate,
            asked.ids,
            adapter := self._adapters.get(model),
            asked.sampling,
            tell,
            lambda: left.is_set() or self._closing.is_set(),
        )
        job.add_done_callback(lambda _: tell(None))
        try:
            while (piece := await arrived.get()) is not None:
                first = first if tokens else time.monotonic()
                tokens += 1
                yield piece
            self._check(job, model)
        finally:
            left.set()
            job.cancel()
            if tokens:
                name, now = model if adapter else None, time.monotonic()
                self._ended(Usage(name, len(asked.ids), 0, tokens, first - began, now - began))

    def _check(self, job: Future[Any], model: str) -> None:
        """Raise what ended the job too early."""
        import torch

        try:
            job.result()
        except CancelledError:
            raise expert_unavailable(model) from None
        except Exception as error:  # any architecture's own code runs there
            logger.exception("the engine failed to answer")
            self._broken |= isinstance(error, torch.AcceleratorError)
            raise ApiError(
                500, "the engine failed to answer; its log names the reason", code="engine_error"
            ) from None
        if self._closing.is_set():
            raise expert_unavailable(model)

    async def _run(self, work: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.wrap_future(self._submit(work, *args))

    def _submit(self, work: Callable[..., Any], *args: Any) -> Future[Any]:
        if not self._jobs:
            self._last_token = time.monotonic()  # what was before it does not count as a stall
        job = self._thread.submit(work, *args)
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        return job

    async def _in_reader(self, read: Callable[..., list[int]], prompt: Any) -> list[int]:
        return await asyncio.get_running_loop().run_in_executor(self._reading, read, prompt)
