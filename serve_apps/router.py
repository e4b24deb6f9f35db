"""The router's front: check the request, let the policy choose an expert, pass on its reply byte for byte."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
import weakref
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from largeforge_ray.routing import Observation, Router, build_policy, user_turns
from largeforge_ray.routing.breaker import Breaker
from largeforge_ray.routing.experts import AUTO, Expert
from largeforge_ray.routing.policy import ExpertState
from largeforge_ray.types import Decision
from serve_apps.chat_request import parse_chat_request
from serve_apps.keys import KeyRing
from serve_apps.meters import Meters, NoMeters
from serve_apps.openai_errors import (
    ApiError,
    ReplyHead,
    body_too_large,
    expert_unavailable,
    too_slow,
    unknown_model,
    unknown_path,
    wrong_method,
)

logger = logging.getLogger("ray.serve")

ROUTES = {
    "/v1/chat/completions": "POST",
    "/v1/route": "POST",
    "/v1/models": "GET",
    "/health": "GET",
}


CLIENT_LEFT = 499
"""What is counted for a reply whose client did not wait for its end; nginx's number."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for: ``max_tokens`` in tokens, ``timeout_s`` for the whole reply."""

    max_body_bytes: int
    max_tokens: int
    timeout_s: float


class Engine(Protocol):
    """What the front needs of an engine; ``answer`` yields a head, then bytes, or raises ``ApiError``."""

    @property
    def up(self) -> bool: ...

    @property
    def wait_s(self) -> float: ...

    def answer(self, expert: str, payload: Mapping[str, Any]) -> AsyncIterator[ReplyHead | bytes]: ...


class Front:
    """Answers HTTP requests for one router. ``engines`` maps each live expert's model key to its engine."""

    def __init__(
        self,
        router: Router,
        engines: Mapping[str, Engine],
        limits: Limits,
        *,
        keys: KeyRing | None = None,
        meters: Meters | None = None,
    ) -> None:
        self._router, self._engines, self._limits, self._keys = router, engines, limits, keys
        self._meters = meters or NoMeters()
        self._policy = build_policy(router)
        self._breakers = {expert.name: Breaker() for expert in router.live}
        self._created = int(time.time())

    async def handle(self, request: Request) -> Response:
        """Every outcome is a response; OpenAI's shape for every refusal."""
        given = request.headers.get("x-request-id")
        request_id = given or f"chatcmpl-{uuid.uuid4().hex}"
        try:
            response = await self._route(request, request_id)
        except ApiError as error:
            response = Response(error.body(), error.status, error.headers, "application/json")
        if given is None:  # Serve's proxy gives one and echoes it; a second would reach the client as "a, a"
            response.headers["x-request-id"] = request_id
        return response

    async def _route(self, request: Request, request_id: str) -> Response:
        path = request.url.path.rstrip("/") or "/"
        if path not in ROUTES:
            raise unknown_path(path, list(ROUTES))
        if request.method != ROUTES[path]:
            raise wrong_method(request.method, path, [ROUTES[path]])
        if path == "/health":
            return self._health()
        if self._keys is None:
            return await self._answer(request, path, request_id)
        name = self._keys.enter(request.headers.get("authorization", ""))
        try:
            response = await self._answer(request, path, request_id)
        except BaseException:
            self._keys.leave(name)
            raise
        # Of a client that leaves before the first byte only the reply's end of life tells.
        leave = weakref.finalize(response, self._keys.leave, name)
        if isinstance(response, StreamingResponse):
            response.body_iterator = _then(response.body_iterator, leave)
        return response

    async def _answer(self, request: Request, path: str, request_id: str) -> Response:
        if path == "/v1/models":
            return _json(self._models())
        payload = parse_chat_request(
            await _body(request, self._limits.max_body_bytes),
            request.headers.get("content-type", ""),
            max_tokens=self._limits.max_tokens,
        )
        expert, decision = self._decide(payload, request_id)
        if path == "/v1/route":
            return _json(asdict(decision) | {"artifact": expert.artifact})
        self._meters.decided(decision)
        return await self._chat(payload, expert, decision)

    def _decide(self, payload: Mapping[str, Any], request_id: str) -> tuple[Expert, Decision]:
        wanted = str(payload["model"])
        if wanted == AUTO:
            seen = Observation(request_id, user_turns(payload["messages"]))
            decision = self._policy.decide(seen, {e.name: self._state(e) for e in self._router.live})
        else:
            decision = Decision(request_id, "pinned", wanted, "the request names the expert")
        expert = self._router.expert(decision.chosen)
        if expert is None:
            raise unknown_model(wanted, [AUTO, *(e.name for e in self._router.live)])
        logger.info("routed to expert=%s policy=%s: %s", expert.name, decision.policy, decision.reason)
        return expert, decision

    def _state(self, expert: Expert) -> ExpertState:
        engine, now = self._engines[expert.model_key], asyncio.get_running_loop().time()
        return ExpertState(engine.up and self._breakers[expert.name].allows(now), engine.wait_s)

    def _ended(self, expert: Expert, status: int, began: float) -> None:
        """What became of a request; a queue that is full is no better for the next one than a failure."""
        breaker, now = self._breakers[expert.name], asyncio.get_running_loop().time()
        self._meters.ended(expert.name, status, now - began)
        after = breaker.told(failed=status == 429 or status >= 500, now=now)
        self._breakers[expert.name] = after
        if after.open_s > breaker.open_s:
            logger.warning("expert %s gets no routed requests for %g s", expert.name, after.open_s)

    async def _chat(self, payload: dict[str, Any], expert: Expert, decision: Decision) -> Response:
        headers = {
            "x-largeforge-expert": expert.name,
            "x-largeforge-artifact": expert.artifact,
            "x-largeforge-decision": _header(decision),
        }
        clock = asyncio.get_running_loop().time
        began = clock()
        deadline = began + self._limits.timeout_s
        self._breakers[expert.name] = self._breakers[expert.name].asked(began)
        parts = self._engines[expert.model_key].answer(expert.name, payload | {"model": expert.name})
        try:
            head = await self._next(parts, deadline)
        except ApiError as error:
            self._ended(expert, error.status, began)
            return Response(error.body(), error.status, headers | error.headers, "application/json")
        assert isinstance(head, ReplyHead), "an engine sends a reply's head before its bytes"
        if head.retry_after_s is not None:
            headers["retry-after"] = str(head.retry_after_s)
        streamed = head.content_type.startswith("text/event-stream")
        ended = partial(self._ended, expert, began=began)
        stream = self._rest(parts, deadline, head.status, streamed, ended)
        if streamed:
            self._meters.began(expert.name, clock() - began)
            return StreamingResponse(stream, head.status, headers, head.content_type)
        try:
            body = b"".join([part async for part in stream])
        except ApiError as error:
            return Response(error.body(), error.status, headers | error.headers, "application/json")
        return Response(body, head.status, headers, head.content_type)

    async def _rest(
        self, parts: Any, deadline: float, status: int, streamed: bool, ended: Callable[[int], None]
    ) -> AsyncIterator[bytes]:
        """What follows the head. A stream that breaks off ends with an error event, not as if finished."""
        async with aclosing(parts):
            while True:
                try:
                    yield await self._next(parts, deadline)
                except StopAsyncIteration:
                    ended(status)
                    return
                except (GeneratorExit, asyncio.CancelledError):
                    ended(CLIENT_LEFT)
                    raise
                except ApiError as error:
                    ended(error.status)
                    if not streamed:
                        raise
                    yield error.event()
                    return

    async def _next(self, parts: Any, deadline: float) -> Any:
        try:
            async with asyncio.timeout_at(deadline):
                return await anext(parts)
        except TimeoutError:
            await parts.aclose()
            raise too_slow(self._limits.timeout_s) from None

    def _models(self) -> dict[str, Any]:
        def card(name: str, artifact: str | None) -> dict[str, Any]:
            facts = {"id": name, "object": "model", "created": self._created, "owned_by": "largeforge"}
            return facts | ({"artifact": artifact} if artifact else {})

        return {
            "object": "list",
            "data": [card(AUTO, None), *(card(e.name, e.artifact) for e in self._router.live)],
        }

    def _health(self) -> Response:
        experts = {e.name: "up" if self._engines[e.model_key].up else "down" for e in self._router.live}
        down = [name for name, state in experts.items() if state == "down"]
        if down:
            raise expert_unavailable(down[0])
        return _json({"status": "ok", "experts": experts})


async def _then(parts: Any, end: Callable[[], None]) -> AsyncIterator[Any]:
    """The parts, and ``end`` once they are over or their reader has gone."""
    try:
        async with aclosing(parts):
            async for part in parts:
                yield part
    finally:
        end()


def _json(value: Any) -> Response:
    return Response(json.dumps(value), media_type="application/json")


def _header(decision: Decision) -> str:
    """ASCII JSON on one line; the request's id has a header of its own."""
    facts = asdict(decision)
    del facts["request_id"]
    return json.dumps(facts, separators=(",", ":"))


async def _body(request: Request, limit: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise body_too_large(limit)
    return bytes(body)
