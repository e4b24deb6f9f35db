"""LARGEFORGE_LOG=json: one line each, with the run, the stage and the request it belongs to."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import logging.handlers
from collections.abc import Iterator
from contextvars import copy_context
from typing import Any

import pytest

from largeforge_ray.observe import logs
from largeforge_ray.types import RunEvent
from tests.unit._front import CHAT, HELLO, answering
from train_jobs.console import Console, LogLines, open_console

Lines = list[dict[str, Any]]


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """Where a handler of a logger of our own writes."""
    monkeypatch.setenv("LARGEFORGE_LOG", "json")
    written, logger = io.StringIO(), logging.getLogger("a.test")
    logger.addHandler(logging.StreamHandler(written))
    logger.setLevel(logging.INFO)
    yield written
    logger.handlers.clear()


def lines(written: io.StringIO) -> Lines:
    return [json.loads(line) for line in written.getvalue().splitlines()]


def test_a_line_says_what_it_is_about(stream: io.StringIO) -> None:
    logs.dress_handlers("a.test")

    def work() -> None:
        logs.configure(run="r1", stage="rows")
        logging.getLogger("a.test").info("made %d\nrows", 3)
        logs.configure(stage="tuned")
        logging.getLogger("a.test").warning("slow", extra={"facts": {"expert": "orders"}})

    copy_context().run(work)
    first, second = lines(stream)
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "level": "info",
        "logger": "a.test",
        "message": "made 3\nrows",
        "run": "r1",
        "stage": "rows",
    }
    assert (second["level"], second["run"], second["stage"]) == ("warning", "r1", "tuned")
    assert (second["expert"], "request_id" in second) == ("orders", False)


def test_an_error_is_one_line_with_its_trace(stream: io.StringIO) -> None:
    logs.dress_handlers("a.test")
    try:
        raise ValueError("three\nlines\nlong")
    except ValueError:
        logging.getLogger("a.test").exception("failed")
    (line,) = lines(stream)
    assert line["message"] == "failed"
    assert line["error"].endswith("ValueError: three\nlines\nlong")


def test_tasks_that_run_at_once_keep_their_own_request(stream: io.StringIO) -> None:
    logs.dress_handlers("a.test")

    async def answer(name: str) -> None:
        logs.configure(request_id=name)
        await asyncio.sleep(0)
        logging.getLogger("a.test").info(name)

    async def both() -> None:
        await asyncio.gather(answer("one"), answer("two"))
        logging.getLogger("a.test").info("neither")

    asyncio.run(both())
    assert [line.get("request_id") for line in lines(stream)] == ["one", "two", None]


def test_a_line_that_waits_in_a_buffer_keeps_what_it_was_about(stream: io.StringIO) -> None:
    logger = logging.getLogger("a.test")
    (target,) = logger.handlers
    buffer = logging.handlers.MemoryHandler(10, target=target)
    logger.handlers[:] = [buffer]
    logs.dress_handlers("a.test")

    def answer(name: str) -> None:
        logs.configure(request_id=name)
        logger.info(name)

    copy_context().run(answer, "one")
    copy_context().run(answer, "two")
    assert stream.getvalue() == ""
    buffer.flush()
    assert [line["request_id"] for line in lines(stream)] == ["one", "two"]


def test_without_the_variable_nothing_changes(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LARGEFORGE_LOG")
    logs.dress_handlers("a.test")
    logging.getLogger("a.test").info("as it was")
    assert stream.getvalue() == "as it was\n"
    assert isinstance(open_console(), Console)


def test_a_runs_events_become_lines_and_long_lists_stay_in_the_store(stream: io.StringIO) -> None:
    root, console = logging.getLogger(), logging.getLogger("train_jobs.console")
    handlers, root.handlers, level = root.handlers, logging.getLogger("a.test").handlers, console.level
    console.setLevel(logging.INFO)
    try:
        log = open_console()
        assert isinstance(log, LogLines)
        numbers = {"seconds": 2.5, "losses": [[1, 2.0]] * 1000, "phases": {"training": 2.0}}
        told = [
            RunEvent(1.0, "r1", "tuned", "started"),
            RunEvent(2.0, "r1", "tuned", "finished", numbers, "adapter 1f2e"),
            RunEvent(3.0, "r1", "live", "failed", {}, "the gate says no"),
        ]
        copy_context().run(lambda: [log.listen(event) for event in told] and log.say("report: x"))
    finally:
        root.handlers = handlers
        console.setLevel(level)
    started, finished, failed, said = lines(stream)
    assert (started["message"], started["kind"], started["run"]) == ("started", "started", "r1")
    assert (finished["message"], finished["numbers"]) == ("adapter 1f2e", {"seconds": 2.5})
    assert (failed["level"], failed["stage"], failed["message"]) == ("error", "live", "the gate says no")
    assert said["message"] == "report: x"


def test_a_decision_of_the_router_has_its_request(stream: io.StringIO) -> None:
    serve = logging.getLogger("ray.serve")
    handlers, serve.handlers, level = serve.handlers, logging.getLogger("a.test").handlers, serve.level
    serve.setLevel(logging.INFO)
    logs.dress_handlers("ray.serve")
    try:
        client, _ = answering()
        reply = client.post(CHAT, json=HELLO | {"model": "auto"}, headers={"x-request-id": "abc-1"})
        assert reply.status_code == 200
    finally:
        serve.handlers = handlers
        serve.setLevel(level)
    (line,) = lines(stream)
    assert (line["request_id"], line["expert"], line["logger"]) == ("abc-1", "base", "ray.serve")
    assert line["message"].startswith("routed to expert=base policy=")
    assert "hello" not in json.dumps(line)
