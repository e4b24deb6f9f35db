"""vLLM's own OpenAI semantics around its asynchronous engine.

This is the one file of the package that calls parts of vLLM without a public promise. They were read in
the version below, in ``entrypoints/launchers/api_server/app_state.py`` and
``entrypoints/openai/{chat_completion,completion}/{api_router,serving}.py`` and
``entrypoints/pooling/embed/{api_router,serving}.py``; a test fails when the installed version moves.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from largeforge_ray.config.speculation import Speculation
from largeforge_ray.models.hardware import engine_args, engine_env
from largeforge_ray.models.speculation import check_speculation
from serve_apps.metered import SAID, Usage, metered_llm
from serve_apps.openai_errors import ApiError, ReplyHead, bad_request, expert_unavailable, unknown_path
from serve_apps.placing import Placing

READ_IN_VLLM = "0.29.0"

_ERROR_EVENT = 'data: {"error"'
_DONE_EVENT = "data: [DONE]"


class VllmEngine:
    """One engine that answers requests for its model and for adapters on it.

    ``names`` are the model's own. Create it inside the event loop that will use it. Starting takes 20 to 35 s
    on a CPU and blocks. ``max_tokens`` caps every answer, in tokens; ``ended`` is told of every request that
    ended.
    """

    def __init__(
        self,
        model_dir: Path,
        names: Sequence[str],
        *,
        max_model_len: int,
        max_lora_rank: int | None,
        placing: Placing,
        max_tokens: int,
        ended: Callable[[Usage], None] = lambda usage: None,
        speculation: Speculation | None = None,
        draft_dir: Path | None = None,
        embeds: bool = False,
    ) -> None:
        if speculation is not None:
            check_speculation(speculation, model_dir, draft_dir)
        # vLLM would set up logging anew, which closes the log of the Serve replica; a controller that
        # restarts asks for that log's file and takes a replica without one for broken.
        os.environ.update(engine_env(workers=placing.workers) | {"VLLM_CONFIGURE_LOGGING": "0"})
        logging.getLogger("vllm").setLevel(logging.ERROR)
        from vllm import AsyncEngineArgs
        from vllm.entrypoints.openai.models.protocol import BaseModelPath
        from vllm.entrypoints.openai.models.serving import OpenAIServingModels

        args = engine_args(
            model_dir,
            max_model_len=max_model_len,
            max_lora_rank=max_lora_rank,
            max_num_seqs=placing.max_num_seqs,
            speculation=speculation,
            draft_dir=draft_dir,
            embeds=embeds,
        )
        args |= placing.engine_args()
        # The cap binds requests that name no max_tokens, too.
        args["override_generation_config"] = {"max_new_tokens": max_tokens}
        self._engine: Any = metered_llm().from_engine_args(AsyncEngineArgs(disable_log_stats=True, **args))
        self._engine.ended = ended
        self._names = tuple(names)
        paths = [BaseModelPath(name=name, model_path=str(model_dir)) for name in names]
        self._models: Any = OpenAIServingModels(self._engine, paths)
        self._endpoints = self._embedding() if embeds else self._writing()
        self._text_field = "input" if embeds else "messages"

    def _embedding(self) -> dict[str, Any]:
        from vllm.entrypoints.chat_utils import ChatTemplateConfig
        from vllm.entrypoints.pooling.embed.protocol import EmbeddingCompletionRequest
        from vllm.entrypoints.pooling.embed.serving import ServingEmbedding

        unused = ChatTemplateConfig(chat_template=None)
        embed = ServingEmbedding(self._engine, self._models, request_logger=None, chat_template_config=unused)
        return {"/v1/embeddings": (EmbeddingCompletionRequest, embed)}

    def _writing(self) -> dict[str, Any]:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
        from vllm.entrypoints.openai.completion.protocol import CompletionRequest
        from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
        from vllm.renderers.online_renderer import OnlineRenderer

        template = {"chat_template": None, "chat_template_content_format": "auto"}
        renderer = OnlineRenderer(
            self._engine.model_config, self._engine.renderer, request_logger=None, **template
        )
        renderer.warmup()
        common = {"online_renderer": renderer, "request_logger": None}
        chat = OpenAIServingChat(self._engine, self._models, "assistant", **common, **template)
        plain = OpenAIServingCompletion(self._engine, self._models, **common)
        return {
            "/v1/chat/completions": (ChatCompletionRequest, chat.create_chat_completion),
            "/v1/completions": (CompletionRequest, plain.create_completion),
        }

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters that are loaded."""
        return tuple(self._models.lora_requests)

    @property
    def served(self) -> tuple[str, ...]:
        """The names requests may give as their model."""
        return (*self._names, *self.adapters)

    async def load_adapter(self, name: str, folder: Path) -> None:
        """Serve a PEFT folder under a name. Raises ``ModelError`` if the engine refuses it."""
        from vllm.entrypoints.serve.engine.protocol import ErrorResponse
        from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest

        from largeforge_ray.errors import ModelError

        request = LoadLoRAAdapterRequest(lora_name=name, lora_path=str(folder))
        result = await self._models.load_lora_adapter(request)
        if isinstance(result, ErrorResponse):
            raise ModelError(
                f"adapter '{name}' in {folder} does not load: {result.error.message}; "
                "check that it was trained on this model"
            )

    async def unload_adapter(self, name: str) -> None:
        """No longer serve what is under the name; requests under way end."""
        request = self._models.lora_requests.pop(name, None)
        if request is not None:
            await self._engine.remove_lora(request.lora_int_id)

    async def log_probability(self, ids: list[int], token: int, adapter: str | None) -> float:
        """Of ``token`` after ``ids``. Raises ``ValueError`` if the engine refuses them."""
        from vllm import SamplingParams

        # Log-probabilities are taken before what is allowed cuts off the others.
        forced = SamplingParams(max_tokens=1, temperature=0.0, logprobs=0, allowed_token_ids=[token])
        choice = await self._one(ids, forced, adapter)
        return float(choice.logprobs[0][token].logprob)

    async def greedy(self, ids: list[int], adapter: str | None, tokens: int) -> str:
        """What the engine says after ``ids``."""
        from vllm import SamplingParams

        return str((await self._one(ids, SamplingParams(max_tokens=tokens, temperature=0.0), adapter)).text)

    async def _one(self, ids: list[int], sampling: Any, adapter: str | None) -> Any:
        lora = self._models.lora_requests[adapter] if adapter else None
        request = f"probe-{uuid.uuid4().hex}"
        async for out in self._engine.generate(
            {"prompt_token_ids": ids}, sampling, request, lora_request=lora
        ):
            last = out
        return last.outputs[0]

    async def check_health(self) -> None:
        """Raise when the engine's process is gone; from one that is stuck this never comes back."""
        await self._engine.check_health()
        await self._engine.is_sleeping()  # the core answers between two of its steps

    @property
    def healthy(self) -> bool:
        """Whether the engine's process lives."""
        return not self._engine.errored

    @property
    def running(self) -> int:
        """Requests the engine is answering or has queued."""
        return int(self._engine.get_num_unfinished_requests())

    async def answer(
        self, path: str, payload: Mapping[str, Any], said: str = ""
    ) -> AsyncIterator[ReplyHead | bytes]:
        """A head, then the bytes of the reply. ``payload`` is a request whose model is served here, and whose
        answer begins with what was ``said``.

        Refusals come as a reply, too. A stream the engine cannot finish ends with an error event and
        without ``[DONE]``. Closing the iterator, or cancelling its task, aborts the engine's request.
        """
        SAID.set(said)
        try:
            result = await self._create(path, payload)
        except ApiError as error:
            for part in _refusal(error):
                yield part
            return
        if isinstance(result, bytes):
            yield ReplyHead(200)
            yield result
            return
        async with aclosing(result):
            async for part in self._stream(result, str(payload["model"])):
                yield part

    async def _create(self, path: str, payload: Mapping[str, Any]) -> Any:
        """The finished JSON reply as bytes, or vLLM's generator of server-sent events."""
        from pydantic import BaseModel, ValidationError
        from starlette.responses import Response
        from vllm.entrypoints.serve import create_error_response
        from vllm.entrypoints.serve.engine.protocol import ErrorResponse

        if path not in self._endpoints:
            raise unknown_path(path, list(self._endpoints))
        schema, create = self._endpoints[path]
        try:
            result = await create(schema.model_validate(payload))
        except ValidationError as error:
            raise _invalid(error) from None
        except Exception as error:  # vLLM's own server maps whatever is raised here, by this function
            result = create_error_response(error)
        if isinstance(result, ErrorResponse):
            raise self._api_error(result.model_dump()["error"], str(payload["model"]))
        if isinstance(result, BaseModel):
            return result.model_dump_json().encode()
        return bytes(result.body) if isinstance(result, Response) else result

    async def _stream(self, events: AsyncIterator[str], model: str) -> AsyncIterator[ReplyHead | bytes]:
        started = False
        async for event in events:
            if event.startswith(_ERROR_EVENT):
                error = self._api_error(json.loads(event.removeprefix("data: "))["error"], model)
                # Before the first event the status is still open, so the refusal can be a plain one.
                for part in [error.event()] if started else _refusal(error):
                    yield part
                return
            if not started:
                started = True
                yield ReplyHead(200, "text/event-stream; charset=utf-8")
            yield event.encode()
            if event.startswith(_DONE_EVENT):
                return

    def _api_error(self, error: Mapping[str, Any], model: str) -> ApiError:
        """vLLM's error as ours: the engine's death is a 503, and a 500 keeps its reason to the log."""
        status, message = int(error["code"]), str(error["message"])
        if self._engine.errored or status == 503:
            return expert_unavailable(model)
        if status >= 500 and status != 501:
            return ApiError(500, "the engine failed to answer; its log names the reason", code="engine_error")
        too_long = status == 400 and "context length" in message
        return ApiError(
            400 if status in (422, 501) else status,
            message,
            param=self._text_field if too_long else error.get("param"),
            code="context_length_exceeded" if too_long else "invalid_value",
        )

    def shutdown(self) -> None:
        """Stop the engine's processes."""
        self._engine.shutdown()


def _refusal(error: ApiError) -> list[ReplyHead | bytes]:
    return [ReplyHead(error.status, retry_after_s=error.retry_after_s), error.body()]


def _invalid(error: Any) -> ApiError:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    # Further parts of the location name alternatives of a union, which mean nothing to the caller.
    field = str(first["loc"][0]) if first["loc"] else None
    return bad_request(f"{field or 'the request'}: {first['msg']}", field)
