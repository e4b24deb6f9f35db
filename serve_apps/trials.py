"""What the router sees of experts on trial: in shadow they answer copies of requests, in canary some
clients."""

from __future__ import annotations

import asyncio
import json
import time
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from largeforge_ray.promote.views import Trials
from largeforge_ray.routing.experts import Expert
from serve_apps.openai_errors import ApiError, ReplyHead
from serve_apps.ports import Outlet

MOST_SHADOWS = 4
"""Copies under way at once: a shadow must not crowd out what it shadows."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole reply, with the ``seconds`` it took."""

    status: int
    seconds: float
    text: str = ""
    finished: bool = False


class TrialBook:
    """Counts answers by version and state; reads what must be compared, of trials only."""

    def __init__(self) -> None:
        self._trials: dict[tuple[str, str], Trials] = {}
        self._shadows: set[asyncio.Task[None]] = set()

    @property
    def trials(self) -> Mapping[tuple[str, str], Trials]:
        return dict(self._trials)

    def keep(self, experts: list[Expert]) -> None:
        """Forget what is no longer on trial."""
        now = {(expert.version, expert.state) for expert in experts}
        self._trials = {key: trials for key, trials in self._trials.items() if key in now}

    def answered(self, expert: Expert, answer: Answer) -> None:
        self._add(expert, _of(answer))

    def baseline(self, expert: Expert, answer: Answer) -> None:
        """How a request of the same kind was answered by whom ``expert`` may follow."""
        self._add(
            expert,
            Trials(
                baseline_asked=1, baseline_finished=int(answer.finished), baseline_seconds=(answer.seconds,)
            ),
        )

    def shadow(self, expert: Expert, usual: Answer, ask: Callable[[], AsyncIterator[Any]]) -> None:
        """Let ``expert`` answer, too, in the background, and compare; its answer is discarded."""
        if len(self._shadows) < MOST_SHADOWS:
            task = asyncio.create_task(self._shadow(expert, usual, ask))
            self._shadows.add(task)
            task.add_done_callback(self._shadows.discard)

    async def _shadow(self, expert: Expert, usual: Answer, ask: Callable[[], AsyncIterator[Any]]) -> None:
        answer = await whole_answer(ask())
        self.baseline(expert, usual)
        same = (agreement(usual.text, answer.text),) if answer.status == 200 else ()
        self._add(expert, _of(answer) + Trials(agreement=same))

    def _add(self, expert: Expert, trials: Trials) -> None:
        key = (expert.version, expert.state)
        self._trials[key] = self._trials.get(key, Trials()) + trials


def _of(answer: Answer) -> Trials:
    failed = answer.status >= 500 or answer.status == 429
    seconds = () if failed else (answer.seconds,)
    return Trials(asked=1, failed=int(failed), finished=int(answer.finished), seconds=seconds)


class Tee:
    """An exchange whose reply is read as it passes."""

    def __init__(self, exchange: Outlet) -> None:
        self._exchange, self._kind, self._body = exchange, "", bytearray()
        self._began = time.monotonic()

    @property
    def started(self) -> bool:
        return self._exchange.started

    async def start(self, status: int, content_type: str, headers: Mapping[str, str]) -> None:
        self._kind = content_type
        await self._exchange.start(status, content_type, headers)

    async def part(self, data: bytes) -> None:
        self._body += data
        await self._exchange.part(data)

    async def end(self) -> None:
        await self._exchange.end()

    async def reply(self, status: int, body: bytes, headers: Mapping[str, str], content_type: str) -> None:
        self._kind, self._body = content_type, bytearray(body)
        await self._exchange.reply(status, body, headers, content_type)

    def answer(self, status: int) -> Answer:
        """What has passed."""
        return read_answer(status, self._kind, bytes(self._body), time.monotonic() - self._began)


def in_canary(session: str, share: float) -> bool:
    """Whether a conversation is one of the share that a canary answers: always the same ones."""
    return zlib.crc32(session.encode("utf-8", "surrogatepass")) < share * 2**32


async def whole_answer(parts: AsyncIterator[Any]) -> Answer:
    """Read a reply to its end; a failure is an answer, too."""
    began, status, body, kind = time.monotonic(), 500, bytearray(), ""
    try:
        async with aclosing(parts):  # type: ignore[type-var]
            async for part in parts:
                if isinstance(part, ReplyHead):
                    status, kind = part.status, part.content_type
                else:
                    body += part
    except ApiError as error:
        status = error.status
    return read_answer(status, kind, bytes(body), time.monotonic() - began)


def read_answer(status: int, kind: str, body: bytes, seconds: float) -> Answer:
    """The text of a reply, streamed or not, and whether it ended by itself. A stream's error is a failure."""
    if status != 200:
        return Answer(status, seconds)
    if not kind.startswith("text/event-stream"):
        return _answer(seconds, [json.loads(body)])
    events = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: {")]
    values = [json.loads(event) for event in events]
    if any("error" in value for value in values):
        return Answer(500, seconds)
    return _answer(seconds, values)


def _answer(seconds: float, values: list[dict[str, Any]]) -> Answer:
    text, reasons = [], set()
    for value in values:
        for choice in value.get("choices", []):
            said = choice.get("message") or choice.get("delta") or choice
            text.append(said.get("content") or said.get("text") or "")
            reasons.add(choice.get("finish_reason"))
    return Answer(200, seconds, "".join(text), "length" not in reasons)


def agreement(one: str, other: str) -> float:
    """The words two answers share, over all their words: 0..1."""
    a, b = set(one.split()), set(other.split())
    return len(a & b) / len(a | b) if a | b else 1.0
