"""What the front tells its meters."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from serve_apps.openai_errors import ReplyHead, internal, queue_full
from tests.unit._front import (
    CHAT,
    DONE,
    EVENTS,
    HANG,
    ORDER,
    STREAM,
    ScriptedEngine,
    Wire,
    app,
    completion,
    in_loop,
)


class Told:
    """Remembers what it is told, and is told no time that could not be."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def decided(self, decision: Any) -> None:
        self.events.append(("decided", decision.policy, decision.chosen))

    def began(self, expert: str, seconds: float) -> None:
        assert 0 <= seconds < 5
        self.events.append(("began", expert))

    def ended(self, expert: str, status: int, seconds: float) -> None:
        assert 0 <= seconds < 5
        self.events.append(("ended", expert, status))


@pytest.mark.parametrize(
    ("script", "events"),
    [
        ([ReplyHead(200), completion("hi")], [("ended", "tuned", 200)]),
        ([STREAM, *EVENTS, DONE], [("began", "tuned"), ("ended", "tuned", 200)]),
        ([STREAM, EVENTS[0], internal()], [("began", "tuned"), ("ended", "tuned", 500)]),
        ([queue_full(9, 8)], [("ended", "tuned", 429)]),
        ([ReplyHead(400), b"{}"], [("ended", "tuned", 400)]),
    ],
)
def test_every_request_is_counted_once_with_its_end(script: list[Any], events: list[Any]) -> None:
    told = Told()
    front = TestClient(app(ScriptedEngine(*script), meters=told))
    front.post(CHAT, json=ORDER | {"model": "auto"})
    assert told.events == [("decided", "keyword", "tuned"), *events]
    front.post("/v1/route", json=ORDER | {"model": "auto"})
    assert len(told.events) == 1 + len(events)


@in_loop
async def test_a_client_that_leaves_amid_a_stream_is_counted_as_such() -> None:
    told = Told()
    wire = Wire(ORDER | {"model": "auto", "stream": True})
    task = wire.start(app(ScriptedEngine(STREAM, EVENTS[0], HANG), meters=told))
    for _ in range(2):
        await wire.received.get()
    wire.gone.set()
    await task
    assert told.events[1:] == [("began", "tuned"), ("ended", "tuned", 499)]
