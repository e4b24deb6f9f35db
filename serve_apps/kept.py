"""A reply that is kept back until it is known whether the client gets it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from largeforge_ray.routing import Expert
from serve_apps.ports import Ask, Outlet


def asked_for_logprobs(ask: Ask, expert: Expert, payload: Mapping[str, Any]) -> Ask:
    """The same question to ``expert``, whose answer tells how likely its tokens were."""
    wanted: dict[str, Any] = {"logprobs": True} if "messages" in payload else {"logprobs": 0}
    return replace(ask, expert=expert, body=json.dumps({**payload, **wanted}).encode())


class Kept:
    """An outlet that keeps what it is given."""

    def __init__(self) -> None:
        self.started, self._status, self._kind, self._body = False, 0, "", bytearray()

    async def start(self, status: int, content_type: str, headers: Mapping[str, str]) -> None:
        self.started, self._status, self._kind = True, status, content_type

    async def part(self, data: bytes) -> None:
        self._body += data

    async def end(self) -> None:
        pass

    async def reply(self, status: int, body: bytes, headers: Mapping[str, str], content_type: str) -> None:
        await self.start(status, content_type, headers)
        self._body = bytearray(body)

    async def send(self, outlet: Outlet, headers: Mapping[str, str]) -> None:
        """Let the client have it."""
        await outlet.reply(self._status, bytes(self._body), headers, self._kind)

    @property
    def logprobs(self) -> list[float]:
        """Of the first answer's tokens, whether it was streamed or not; none of one that broke off."""
        lines = bytes(self._body).split(b"\n") if self._kind.startswith("text/event-stream") else [self._body]
        values = [json.loads(line.removeprefix(b"data: ")) for line in lines if line.endswith(b"}")]
        if any("error" in value for value in values):
            return []
        choices = [choice for value in values for choice in value.get("choices", []) if not choice["index"]]
        return [each for choice in choices for each in _of(choice.get("logprobs") or {})]


def _of(logprobs: Mapping[str, Any]) -> list[float]:
    if "content" in logprobs:  # a chat's
        return [token["logprob"] for token in logprobs["content"] or ()]
    return [value for value in logprobs.get("token_logprobs") or () if value is not None]
