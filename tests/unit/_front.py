"""A front whose engines play a script, and ways to ask it: over HTTP, or message by message."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from starlette.testclient import TestClient

from largeforge_ray.routing import Expert, parse_router
from serve_apps.openai_errors import ReplyHead
from serve_apps.ports import Ask, Engine, Limits
from serve_apps.router import Front
from tests.unit.test_routing import ADAPTER, MODEL, expert, router

OTHER_MODEL = "d" * 64
LIMITS = Limits(max_body_bytes=2000, max_tokens=64, timeout_s=5.0)
HELLO = {"messages": [{"role": "user", "content": "hello"}]}
ORDER = {"messages": [{"role": "user", "content": "order: 4 lamps as json"}]}
STREAM = ReplyHead(200, "text/event-stream; charset=utf-8")
CHAT = "/v1/chat/completions"
HANG = 3600.0


class ScriptedEngine:
    """Plays parts, raises errors, waits (for seconds, an event, or ever); knows what it was asked.

    ``open`` counts the answers that are neither finished nor closed.
    """

    def __init__(self, *script: Any, up: bool = True, wait_s: float = 0.0) -> None:
        self.up, self.wait_s, self.script = up, wait_s, script
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.open, self.replicas, self.speculation = 0, 1, None

    @property
    def running(self) -> int:
        return self.open

    def serves(self, expert: Expert) -> bool:
        return self.up

    async def answer(self, ask: Ask) -> AsyncIterator[ReplyHead | bytes]:
        self.asked.append((ask.expert.name, json.loads(ask.body)))
        self.open += 1
        try:
            for step in self.script:
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, asyncio.Event):
                    await step.wait()
                elif isinstance(step, float):
                    await asyncio.sleep(step)
                else:
                    yield step
        finally:
            self.open -= 1


def completion(text: str) -> bytes:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    reply = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    return json.dumps(reply).encode()


def event(text: str) -> bytes:
    choice = {"index": 0, "finish_reason": None, "delta": {"content": text}}
    chunk = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
EVENTS = [event("Hel"), event("lo \u00e9\U0001f600"), event("!")]


def app(
    engine: Engine, other: Engine | None = None, limits: Limits = LIMITS, **more: Any
) -> Callable[..., Awaitable[None]]:
    """The router's ASGI application."""
    experts = [
        expert("base"),
        expert("tuned", ADAPTER, {"order": 0.5, "json": 0.5}),
        expert("solo", model_key=OTHER_MODEL),
        expert("old", model_key="e" * 64, state="draining"),
    ]
    engines = {MODEL: engine, OTHER_MODEL: other or ScriptedEngine(), "e" * 64: ScriptedEngine()}
    return Front(parse_router(router(*experts)), engines, limits, **more)


def client(*script: Any, limits: Limits = LIMITS) -> tuple[TestClient, ScriptedEngine]:
    engine = ScriptedEngine(*script)
    return TestClient(app(engine, limits=limits)), engine


def answering(text: str = "hi") -> tuple[TestClient, ScriptedEngine]:
    return client(ReplyHead(200), completion(text))


def told(response: Any, status: int, code: str) -> dict[str, Any]:
    """The error of a refusal, whose shape is checked on the way."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"].startswith("chatcmpl-")
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    return error


def in_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 10))

    return run


class Wire:
    """One request at the ASGI level, whose client reads part by part and can go away."""

    def __init__(self, payload: Mapping[str, Any], path: str = CHAT) -> None:
        self.body = [json.dumps(payload).encode()]
        self.gone = asyncio.Event()
        self.received: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        headers = [(b"content-type", b"application/json")]
        self.scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}

    async def receive(self) -> dict[str, Any]:
        if self.body:
            return {"type": "http.request", "body": self.body.pop(), "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        self.received.put_nowait(message)

    def start(self, application: Any) -> asyncio.Task[None]:
        return asyncio.create_task(application(self.scope, self.receive, self.send))
