"""A deployment handle as the router sees it: failures have a status, and a lost engine is asked no more."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import aclosing
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException

from serve_apps import expert as module
from serve_apps.expert import EngineClient
from serve_apps.openai_errors import ApiError, ReplyHead
from tests.unit._front import EVENTS, HANG, STREAM, in_loop

ACCEPTED = None
SECRET = "a piece of a prompt"
PAYLOAD = {"model": "base", "messages": [{"role": "user", "content": SECRET}]}


class ScriptedStream:
    """What a streaming call returns: an iterator that plays a script and can be cancelled."""

    def __init__(self, script: tuple[Any, ...]) -> None:
        self._script = iter(script)
        self.cancelled = 0

    def __aiter__(self) -> ScriptedStream:
        return self

    async def __anext__(self) -> Any:
        step = next(self._script, StopAsyncIteration())
        if isinstance(step, Exception):
            raise step
        if isinstance(step, float):
            await asyncio.sleep(step)
            return await anext(self)
        return step

    def cancel(self) -> None:
        self.cancelled += 1


class ScriptedHandle:
    """A handle whose calls of ``answer`` play one script each; ``ready`` waits for ``healthy``."""

    def __init__(self, *scripts: tuple[Any, ...]) -> None:
        self.healthy = asyncio.Event()
        self.healthy.set()
        self.ready_errors: list[Exception] = []
        self.asked: list[dict[str, Any]] = []
        self.streams = [ScriptedStream(script) for script in scripts]
        self.ready = SimpleNamespace(remote=self._ready)

    def options(self, *, stream: bool) -> Any:
        assert stream
        return SimpleNamespace(answer=SimpleNamespace(remote=self._answer))

    def _answer(self, payload: dict[str, Any]) -> ScriptedStream:
        assert type(payload) is dict  # a mapping of another kind need not survive pickling
        self.asked.append(payload)
        return self.streams[len(self.asked) - 1]

    async def _ready(self) -> None:
        if self.ready_errors:
            raise self.ready_errors.pop(0)
        await self.healthy.wait()


def task_error() -> Exception:
    """As Serve raises what an engine raised: of both types, with the engine's own words."""
    cause = ValueError(SECRET)
    error = RayTaskError("answer", f"Traceback\nValueError: {SECRET}", cause, "engine", 1, "127.0.0.1")
    return error.as_instanceof_cause()


async def up(handle: ScriptedHandle, accept_s: float = 1.0) -> EngineClient:
    client = EngineClient(handle, accept_s=accept_s, slots=2)
    await until(client, True)
    return client


async def until(client: EngineClient, state: bool) -> None:
    async with asyncio.timeout(5):
        while client.up is not state:
            await asyncio.sleep(0.001)


async def parts(client: EngineClient) -> list[ReplyHead | bytes]:
    return [part async for part in client.answer("base", PAYLOAD)]


async def refusal(client: EngineClient) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await parts(client)
    return caught.value


@pytest.fixture(autouse=True)
def _polls_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RECOVERY_POLL_S", 0.001)


@in_loop
async def test_parts_pass_unchanged_after_the_sign_of_acceptance() -> None:
    handle = ScriptedHandle((ACCEPTED, STREAM, *EVENTS))
    client = await up(handle)
    assert await parts(client) == [STREAM, *EVENTS]
    assert handle.asked == [PAYLOAD]
    assert client.up


@in_loop
async def test_a_payload_of_any_mapping_crosses_as_a_dict() -> None:
    handle = ScriptedHandle((ACCEPTED, STREAM))
    client = await up(handle)
    assert [part async for part in client.answer("base", MappingProxyType(PAYLOAD))] == [STREAM]


@in_loop
async def test_a_new_client_refuses_until_the_deployment_is_ready_and_survives_its_failed_starts() -> None:
    handle = ScriptedHandle((ACCEPTED, STREAM))
    handle.healthy.clear()
    handle.ready_errors = [RayActorError(), RayServeException("not yet"), task_error()]
    client = EngineClient(handle, accept_s=1.0, slots=2)
    await asyncio.sleep(0.02)
    assert not client.up
    assert (await refusal(client)).status == 503
    assert handle.asked == []
    handle.healthy.set()
    await until(client, True)
    assert handle.ready_errors == []
    assert await parts(client) == [STREAM]


@in_loop
async def test_without_acceptance_in_time_the_engine_is_down_and_asked_nothing_until_it_is_ready() -> None:
    handle = ScriptedHandle((HANG,), (ACCEPTED, STREAM))
    client = await up(handle, accept_s=0.02)
    handle.healthy.clear()
    error = await refusal(client)
    assert (error.status, error.code) == (503, "expert_unavailable")
    assert error.headers["retry-after"] == "5"
    assert "'base'" in error.message
    assert handle.streams[0].cancelled
    assert not client.up
    for _ in range(3):
        assert (await refusal(client)).status == 503
    assert len(handle.asked) == 1
    handle.healthy.set()
    await until(client, True)
    assert await parts(client) == [STREAM]


@in_loop
async def test_an_accepted_request_may_take_longer_than_the_acceptance() -> None:
    handle = ScriptedHandle((ACCEPTED, 0.06, STREAM, 0.06, EVENTS[0]))
    client = await up(handle, accept_s=0.02)
    assert await parts(client) == [STREAM, EVENTS[0]]
    assert client.up


@in_loop
@pytest.mark.parametrize("before", [(), (ACCEPTED,), (ACCEPTED, STREAM, EVENTS[0])], ids=len)
@pytest.mark.parametrize(
    ("error", "status", "code", "stays_up"),
    [
        (RayActorError(), 503, "expert_unavailable", False),
        (ActorUnavailableError("lost", None), 503, "expert_unavailable", False),
        (RayServeException("failed to deploy"), 503, "expert_unavailable", False),
        (BackPressureError(130, 128), 429, "queue_full", True),
        (task_error(), 500, "internal_error", True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_every_failure_has_its_status_and_only_a_lost_engine_is_down(
    error: Exception, status: int, code: str, stays_up: bool, before: tuple[Any, ...]
) -> None:
    handle = ScriptedHandle((*before, error))
    client = await up(handle)
    handle.healthy.clear()
    told = await refusal(client)
    assert (told.status, told.code, client.up) == (status, code, stays_up)
    assert handle.streams[0].cancelled


@in_loop
async def test_back_pressure_tells_the_load_the_limit_and_when_to_come_back() -> None:
    told = await refusal(await up(ScriptedHandle((BackPressureError(130, 128),))))
    assert told.message.startswith("130 requests are being answered or wait, the limit is 128; try again")
    assert told.headers == {"retry-after": "1"}


@in_loop
async def test_an_engines_own_words_go_to_the_log_and_not_to_the_client(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("ray.serve"), "propagate", True)
    told = await refusal(await up(ScriptedHandle((ACCEPTED, task_error()))))
    assert SECRET not in told.body().decode()
    assert "Traceback" not in told.body().decode()
    assert json.loads(told.body())["error"]["message"].endswith("its log names the reason")
    assert "expert base failed to answer" in caplog.text
    assert SECRET in caplog.text


@in_loop
async def test_an_engine_that_reports_its_own_death_is_down_after_the_reply() -> None:
    head, body = ReplyHead(503, retry_after_s=5), b"{}"
    handle = ScriptedHandle((ACCEPTED, head, body), (ACCEPTED, STREAM))
    client = await up(handle)
    handle.healthy.clear()
    assert await parts(client) == [head, body]
    assert not client.up
    handle.healthy.set()
    await until(client, True)
    assert await parts(client) == [STREAM]


@in_loop
async def test_requests_under_way_go_on_while_the_engine_counts_as_down() -> None:
    handle = ScriptedHandle((ACCEPTED, STREAM, *EVENTS), (RayActorError(),))
    client = await up(handle)
    handle.healthy.clear()
    async with aclosing(client.answer("base", PAYLOAD)) as answer:
        assert await anext(answer) == STREAM
        await refusal(client)
        assert not client.up
        assert [part async for part in answer] == EVENTS


@in_loop
async def test_one_recovery_runs_however_many_requests_fail_at_once() -> None:
    handle = ScriptedHandle(*[(0.01, RayActorError())] * 8)
    client = await up(handle)
    handle.healthy.clear()
    waiting_before = len(asyncio.all_tasks())
    told = await asyncio.gather(*(refusal(client) for _ in range(8)))
    assert {error.status for error in told} == {503}
    await asyncio.sleep(0.01)
    assert len(asyncio.all_tasks()) == waiting_before + 1
    handle.healthy.set()
    await until(client, True)


@in_loop
async def test_closing_early_cancels_the_request_and_blames_no_engine() -> None:
    handle = ScriptedHandle((ACCEPTED, STREAM, *EVENTS))
    client = await up(handle)
    async with aclosing(client.answer("base", PAYLOAD)) as answer:
        assert [await anext(answer), await anext(answer)] == [STREAM, EVENTS[0]]
        assert not handle.streams[0].cancelled
    assert handle.streams[0].cancelled
    assert client.up


@in_loop
@pytest.mark.parametrize("script", [(HANG,), (ACCEPTED, HANG), (ACCEPTED, STREAM, HANG)], ids=len)
async def test_cancelling_the_consumer_cancels_the_request_and_blames_no_engine(
    script: tuple[Any, ...],
) -> None:
    handle = ScriptedHandle(script)
    client = await up(handle)
    task = asyncio.create_task(parts(client))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert handle.streams[0].cancelled
    assert client.up
