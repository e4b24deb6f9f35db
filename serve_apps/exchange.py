"""One HTTP request as ASGI hands it over: its head, its body within limits, and the ways to answer it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from serve_apps.openai_errors import body_too_large, body_too_slow

BODY_S = 30.0
"""A client that takes longer to send its request's body is let go."""


class ClientLeft(Exception):
    """The client closed its connection before the reply was over."""


class Exchange:
    """``request_id`` is the client's own ``x-request-id`` or None."""

    def __init__(self, scope: Mapping[str, Any], receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        self._receive, self._send = receive, send
        self.method = str(scope["method"])
        self.path = str(scope["path"]).rstrip("/") or "/"
        self.query = bytes(scope.get("query_string", b""))
        self.headers = {name.lower(): value for name, value in scope["headers"]}
        self.started = False
        self.added: dict[str, str] = {}
        """Headers that every reply to this request has."""

    def header(self, name: str) -> str:
        """A header's text, empty if there is none."""
        return self.headers.get(name.encode(), b"").decode("latin-1")

    async def body(self, limit: int) -> bytes:
        """Raises ``ApiError``: 413 over ``limit`` bytes, 408 if it does not come in time."""
        announced = self.header("content-length")
        if announced.isdecimal() and int(announced) > limit:
            raise body_too_large(limit)
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_S):
                while True:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise ClientLeft
                    body += message.get("body", b"")
                    if len(body) > limit:
                        raise body_too_large(limit)
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            raise body_too_slow(BODY_S) from None

    @contextmanager
    def unless_left(self) -> Iterator[None]:
        """Raises ``ClientLeft`` inside the block as soon as the client has gone. After ``body`` only."""
        here = asyncio.current_task()
        assert here is not None
        inside, left = True, False

        def gone(watch: asyncio.Task[Any]) -> None:
            nonlocal left
            if inside and not watch.cancelled():
                left = True
                here.cancel()

        watch = asyncio.create_task(self._gone())
        watch.add_done_callback(gone)
        try:
            yield
        except asyncio.CancelledError:
            if left and here.uncancel() == 0:
                raise ClientLeft from None
            raise
        finally:
            inside = False
            watch.cancel()

    async def _gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def start(self, status: int, content_type: str, headers: Mapping[str, str]) -> None:
        """The reply's head; then comes ``part`` by part, then ``end``."""
        self.started = True
        named = {"content-type": content_type, **headers, **self.added}
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in named.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def part(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def reply(
        self,
        status: int,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> None:
        """The whole reply at once."""
        await self.start(status, content_type, {"content-length": str(len(body)), **(headers or {})})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def json(self, value: Any, status: int = 200) -> None:
        await self.reply(status, json.dumps(value).encode())
