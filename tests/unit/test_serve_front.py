"""The router's front over HTTP, with scripted engines: what a client sees, and what an engine is told."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from serve_apps.openai_errors import ApiError, ReplyHead, bad_request, expert_unavailable, queue_full
from serve_apps.ports import Limits
from tests.unit._front import (
    CHAT,
    DONE,
    EVENTS,
    HANG,
    HELLO,
    LIMITS,
    ORDER,
    OTHER_MODEL,
    STREAM,
    ScriptedEngine,
    Wire,
    answering,
    app,
    client,
    completion,
    in_loop,
    told,
)
from tests.unit.test_routing import ADAPTER, MODEL


def test_models_lists_auto_and_the_live_experts_with_their_artifacts() -> None:
    http, engine = answering()
    listed = http.get("/v1/models").json()
    assert listed["object"] == "list"
    facts = {card["id"]: card.get("artifact") for card in listed["data"]}
    policies = {"largeforge/keyword": None, "largeforge/cascade": None}
    assert facts == {
        "auto": None,
        **policies,
        "base": MODEL[:16],
        "tuned": ADAPTER[:16],
        "solo": OTHER_MODEL[:16],
    }
    assert all(card["object"] == "model" and card["created"] > 1e9 for card in listed["data"])
    assert engine.asked == []


def test_health_is_of_the_router_and_ready_is_of_every_expert() -> None:
    up, other = ScriptedEngine(), ScriptedEngine()
    http = TestClient(app(up, other))
    every = {"status": "ok", "experts": {"base": "up", "tuned": "up", "solo": "up"}}
    assert http.get("/health").json() == http.get("/ready/").json() == every
    other.up = False
    assert http.get("/health/").json() == {
        "status": "degraded",
        "experts": every["experts"] | {"solo": "down"},
    }
    response = http.get("/ready")
    assert "'solo'" in told(response, 503, "expert_unavailable")["message"]
    assert response.headers["retry-after"] == "5"
    up.up = False
    told(http.get("/health"), 503, "expert_unavailable")


@pytest.mark.parametrize(
    ("model", "messages", "chosen", "policy"),
    [
        ("auto", ORDER, "tuned", "keyword"),
        ("auto", HELLO, "base", "keyword"),
        ("base", ORDER, "base", "pinned"),
        ("tuned", HELLO, "tuned", "pinned"),
    ],
)
def test_auto_goes_by_keywords_and_a_name_pins(model: str, messages: dict, chosen: str, policy: str) -> None:
    http, engine = answering()
    response = http.post(CHAT, json={"model": model, "temperature": 0.5, **messages})
    assert response.status_code == 200
    assert response.content == completion("hi")
    assert engine.asked == [(chosen, {"model": model, "temperature": 0.5, **messages})]
    headers = response.headers
    assert headers["x-largeforge-expert"] == chosen
    assert headers["x-largeforge-artifact"] == (ADAPTER if chosen == "tuned" else MODEL)[:16]
    assert re.fullmatch(r"chatcmpl-[0-9a-f]{32}", headers["x-request-id"])
    assert headers["x-largeforge-decision"].isascii()
    decision = json.loads(headers["x-largeforge-decision"])
    assert (decision["chosen"], decision["policy"]) == (chosen, policy)
    assert "lamps" not in headers["x-largeforge-decision"]


def test_an_expert_on_another_model_has_its_own_engine() -> None:
    first, second = ScriptedEngine(), ScriptedEngine(ReplyHead(200), completion("solo"))
    response = TestClient(app(first, second)).post(CHAT, json={"model": "solo", **HELLO})
    assert response.content == completion("solo")
    assert (first.asked, len(second.asked)) == ([], 1)


@pytest.mark.parametrize("model", ["gpt-4", "old", "Tuned", "\u00e9\n"])
def test_an_unknown_or_draining_model_is_a_404_that_lists_the_names(model: str) -> None:
    http, engine = answering()
    error = told(http.post(CHAT, json={"model": model, **HELLO}), 404, "model_not_found")
    assert error["message"].endswith("auto, largeforge/keyword, largeforge/cascade, base, tuned, solo")
    assert error["param"] == "model"
    assert engine.asked == []


def test_route_answers_with_the_decision_and_asks_no_engine() -> None:
    http, engine = answering()
    response = http.post("/v1/route", json={"model": "auto", **ORDER})
    decision = response.json()
    assert (decision["chosen"], decision["runner_up"], decision["fell_back"]) == ("tuned", "base", False)
    assert decision["scores"] == {"base": 0.0, "solo": 0.0, "tuned": 1.0}
    assert decision["reason"] == "2 of 2 keywords of 'tuned'"
    assert decision["artifact"] == ADAPTER[:16]
    assert decision["request_id"] == response.headers["x-request-id"]
    assert engine.asked == []


def test_under_serves_own_middleware_a_reply_has_one_request_id_and_it_is_the_clients() -> None:
    from ray.serve._private.http_util import RequestIdMiddleware

    http = TestClient(RequestIdMiddleware(app(ScriptedEngine(ReplyHead(200), completion("hi")))))
    for path in (CHAT, "/v1/route", "/v1/nowhere"):
        response = http.post(path, json={"model": "auto", **HELLO}, headers={"x-request-id": "mine"})
        assert response.headers.get_list("x-request-id") == ["mine"]
        [given] = http.post(path, json={"model": "auto", **HELLO}).headers.get_list("x-request-id")
        assert given
    routed = http.post("/v1/route", json={"model": "auto", **HELLO}, headers={"x-request-id": "mine"})
    assert routed.json()["request_id"] == "mine"


@in_loop
async def test_a_stream_is_passed_on_part_by_part_as_it_comes() -> None:
    gate = asyncio.Event()
    wire = Wire({"model": "base", "stream": True, **HELLO})
    task = wire.start(app(ScriptedEngine(STREAM, EVENTS[0], gate, *EVENTS[1:], DONE)))
    head = await wire.received.get()
    assert head["status"] == 200
    assert (b"content-type", b"text/event-stream; charset=utf-8") in head["headers"]
    assert b"content-length" not in dict(head["headers"])
    assert (await wire.received.get())["body"] == EVENTS[0]
    await asyncio.sleep(0.02)
    assert wire.received.empty()
    gate.set()
    await task
    bodies = [wire.received.get_nowait() for _ in range(wire.received.qsize())]
    assert [part["body"] for part in bodies] == [*EVENTS[1:], DONE, b""]
    assert [part["more_body"] for part in bodies] == [True, True, True, False]


def test_bytes_of_a_stream_are_not_looked_at() -> None:
    parts = [b"data: {\xff", b"\x00\r\n", b"", b"data: [DO", b"NE]\n\n"]
    http, _ = client(STREAM, *parts)
    assert http.post(CHAT, json={"model": "base", **HELLO}).content == b"".join(parts)


def test_a_stream_that_breaks_off_ends_with_an_error_event_and_no_done() -> None:
    http, engine = client(STREAM, *EVENTS[:2], expert_unavailable("base"), DONE)
    response = http.post(CHAT, json={"model": "base", "stream": True, **HELLO})
    assert response.status_code == 200
    assert response.content == b"".join(EVENTS[:2]) + expert_unavailable("base").event()
    assert engine.open == 0


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("error", "retry"),
    [
        (expert_unavailable("base"), "5"),
        (queue_full(9, 8), "1"),
        (bad_request("top_k is odd", "top_k"), None),
    ],
)
def test_an_error_before_the_head_is_a_plain_reply(stream: bool, error: ApiError, retry: str | None) -> None:
    http, _ = client(error)
    response = http.post(CHAT, json={"model": "base", "stream": stream, **HELLO})
    assert told(response, error.status, error.code or "")["message"] == error.message
    assert response.headers.get("retry-after") == retry
    assert response.headers["x-largeforge-expert"] == "base"


def test_a_refusal_that_the_engine_sends_as_a_reply_keeps_its_status_and_retry_after() -> None:
    http, _ = client(ReplyHead(429, retry_after_s=1), queue_full(64, 64).body())
    response = http.post(CHAT, json={"model": "base", "stream": True, **HELLO})
    assert "64 requests" in told(response, 429, "queue_full")["message"]
    assert response.headers["retry-after"] == "1"


def test_an_engine_lost_amid_a_json_reply_is_an_error_and_no_half_reply() -> None:
    http, engine = client(ReplyHead(200), completion("hi")[:20], expert_unavailable("base"))
    response = http.post(CHAT, json={"model": "base", **HELLO})
    told(response, 503, "expert_unavailable")
    assert response.headers["retry-after"] == "5"
    assert engine.open == 0


SHORT = Limits(max_body_bytes=2000, max_tokens=64, timeout_s=0.1)


@pytest.mark.parametrize("script", [[HANG], [ReplyHead(200), b"{", HANG]], ids=["head", "body"])
def test_an_answer_that_takes_too_long_is_a_504_and_the_engine_is_let_go(script: list[Any]) -> None:
    http, engine = client(*script, limits=SHORT)
    response = http.post(CHAT, json={"model": "base", **HELLO})
    assert "longer than 0.1 s; lower max_tokens" in told(response, 504, "timeout")["message"]
    assert response.headers["x-largeforge-expert"] == "base"
    assert engine.open == 0


def test_a_stream_that_takes_too_long_ends_with_an_error_event_and_the_engine_is_let_go() -> None:
    http, engine = client(STREAM, EVENTS[0], HANG, limits=SHORT)
    content = http.post(CHAT, json={"model": "base", "stream": True, **HELLO}).content
    assert content.startswith(EVENTS[0] + b'data: {"error"')
    assert b'"code": "timeout"' in content
    assert DONE not in content
    assert engine.open == 0


@in_loop
async def test_the_time_limit_is_for_the_whole_answer_not_for_each_part() -> None:
    wire = Wire({"model": "base", "stream": True, **HELLO})
    await wire.start(app(ScriptedEngine(STREAM, *[0.02, EVENTS[0]] * 50), limits=SHORT))
    bodies = [wire.received.get_nowait().get("body", b"") for _ in range(wire.received.qsize())]
    assert bodies.count(EVENTS[0]) < 7
    assert b'"code": "timeout"' in bodies[-2]


@in_loop
@pytest.mark.parametrize("script", [[HANG], [STREAM, EVENTS[0], HANG], [ReplyHead(200), b"{", HANG]])
async def test_a_request_that_serve_cancels_lets_the_engine_go(script: list[Any]) -> None:
    engine = ScriptedEngine(*script)
    task = Wire({"model": "base", "stream": True, **HELLO}).start(app(engine))
    await asyncio.sleep(0.02)
    assert engine.open == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.open == 0


@in_loop
async def test_a_client_that_goes_away_amid_a_stream_lets_the_engine_go() -> None:
    engine = ScriptedEngine(STREAM, EVENTS[0], HANG)
    wire = Wire({"model": "base", "stream": True, **HELLO})
    task = wire.start(app(engine))
    await wire.received.get()
    wire.gone.set()
    await task
    assert engine.open == 0


@in_loop
async def test_a_client_that_goes_away_before_its_body_is_there_reaches_no_engine() -> None:
    engine = ScriptedEngine()
    wire = Wire({"model": "base", **HELLO})
    wire.body.clear()
    wire.gone.set()
    await wire.start(app(engine))
    assert engine.asked == []
    assert wire.received.empty()


def test_a_body_over_the_limit_is_a_413_with_and_without_a_declared_length() -> None:
    http, engine = answering()
    long = json.dumps({"model": "base", "messages": [{"role": "user", "content": "x" * 3000}]}).encode()
    json_headers = {"content-type": "application/json"}

    def pieces() -> Iterator[bytes]:
        yield from (long[at : at + 100] for at in range(0, len(long), 100))

    for content in (long, pieces()):
        error = told(http.post(CHAT, content=content, headers=json_headers), 413, "request_too_large")
        assert f"exceeds {LIMITS.max_body_bytes} bytes; send less" in error["message"]
    fits = long[: -len("x" * 1100) - 4] + long[-4:]
    assert len(fits) <= LIMITS.max_body_bytes
    assert http.post(CHAT, content=fits, headers=json_headers).status_code == 200
    assert len(engine.asked) == 1


@in_loop
async def test_a_body_without_end_is_not_read_on_after_the_limit() -> None:
    read = 0

    class Endless(Wire):
        async def receive(self) -> dict[str, Any]:
            nonlocal read
            read += 100
            return {"type": "http.request", "body": b" " * 100, "more_body": True}

    wire = Endless(HELLO)
    await wire.start(app(ScriptedEngine()))
    assert wire.received.get_nowait()["status"] == 413
    assert read == LIMITS.max_body_bytes + 100


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", CHAT, "POST"),
        ("OPTIONS", CHAT, "POST"),
        ("DELETE", "/v1/models", "GET"),
        ("PUT", "/v1/route", "POST, GET"),
        ("POST", "/health", "GET"),
    ],
)
def test_a_wrong_method_is_a_405_that_names_the_right_one(method: str, path: str, allowed: str) -> None:
    http, _ = answering()
    response = http.request(method, path)
    assert f"use {allowed}" in told(response, 405, "method_not_allowed")["message"]
    assert response.headers["allow"] == allowed


@pytest.mark.parametrize(
    "path", ["/index.html", "/v1", "/v1/audio/speech", "/v1/models/base", "/v1/%F0%9F%98%80"]
)
def test_an_unknown_path_is_a_404_that_lists_the_paths(path: str) -> None:
    http, _ = answering()
    message = told(http.get(path), 404, "unknown_path")["message"]
    assert "use one of: /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/route, " in message


@pytest.mark.parametrize("path", [CHAT, "/v1/route"])
def test_a_broken_request_is_a_400_that_reaches_no_engine(path: str) -> None:
    http, engine = answering()
    body = json.dumps({"model": "base", **HELLO})
    for headers in ({}, {"content-type": "text/plain"}):
        error = told(http.post(path, content=body, headers=headers), 400, "invalid_type")
        assert error["param"] == "content-type"
    too_many = {"model": "base", "max_tokens": LIMITS.max_tokens + 1, **HELLO}
    assert told(http.post(path, json=too_many), 400, "out_of_range")["param"] == "max_tokens"
    assert engine.asked == []
