"""Replicas on real ports: bytes pass unchanged, failures have a status, a lost one is asked no more."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from largeforge_ray.routing.balance import BLOCK_BYTES, Balancer, beginnings
from serve_apps.fleet import TOKEN_HEADER, VERSION_HEADER
from serve_apps.openai_errors import ApiError, ReplyHead, queue_full
from tests.unit._front import CHAT, DONE, EVENTS, HANG, HELLO, STREAM, completion, in_loop
from tests.unit._replicas import BASE, TOKEN, TUNED, Running, ScriptedModel, asking, fleet_of, parts, until

WHOLE = ReplyHead(200), completion("hi")


def refused(error: pytest.ExceptionInfo[ApiError]) -> tuple[int, str | None]:
    return error.value.status, error.value.code


@in_loop
async def test_a_whole_reply_and_a_stream_pass_byte_for_byte() -> None:
    async with fleet_of(ScriptedModel(*WHOLE)) as (fleet, [replica]):
        head, *body = await parts(fleet, asking(temperature=0.5))
        assert (head, b"".join(body)) == WHOLE
        [(path, payload)] = replica.model.asked
        assert (path, payload) == (CHAT, {"model": BASE.version, "temperature": 0.5, **HELLO})
    async with fleet_of(ScriptedModel(STREAM, *EVENTS, DONE)) as (fleet, _):
        head, *body = await parts(fleet)
        assert (head, b"".join(body)) == (STREAM, b"".join((*EVENTS, DONE)))


@in_loop
async def test_each_event_arrives_as_it_is_sent() -> None:
    gate = asyncio.Event()
    async with fleet_of(ScriptedModel(STREAM, EVENTS[0], gate, EVENTS[1])) as (fleet, _):
        async with aclosing(fleet.answer(asking())) as answer:
            assert await anext(answer) == STREAM
            assert await anext(answer) == EVENTS[0]
            gate.set()
            assert await anext(answer) == EVENTS[1]


@in_loop
async def test_a_refusal_keeps_its_status_and_retry_after() -> None:
    error = queue_full(9, 8)
    async with fleet_of(ScriptedModel(ReplyHead(429, retry_after_s=1), error.body())) as (fleet, _):
        head, *body = await parts(fleet)
        assert head == ReplyHead(429, retry_after_s=1)
        assert b"".join(body) == error.body()
        assert fleet.serves(BASE)


@in_loop
async def test_a_full_replica_says_so_before_its_engine_is_asked() -> None:
    async with fleet_of(ScriptedModel(*WHOLE)) as (fleet, [replica]):
        replica.app.under_way = 8
        head, *body = await parts(fleet)
        assert head == ReplyHead(429, retry_after_s=1)
        assert json.loads(b"".join(body))["error"]["code"] == "queue_full"
        assert replica.model.asked == []


@in_loop
async def test_as_many_as_there_is_room_for_are_admitted_however_many_come_at_once() -> None:
    gate = asyncio.Event()
    async with fleet_of(ScriptedModel(gate, *WHOLE)) as (fleet, [replica]):
        coming = [asyncio.create_task(parts(fleet)) for _ in range(40)]
        await until(lambda: sum(task.done() for task in coming) == 32)
        assert replica.app.under_way == 8
        gate.set()
        heads = [(await task)[0] for task in coming]
        assert heads.count(WHOLE[0]) == 8


@in_loop
@pytest.mark.parametrize("how", ["gone", "dead", "draining", "without the expert"])
async def test_a_replica_that_takes_nothing_leaves_the_request_to_another(how: str) -> None:
    async with fleet_of(ScriptedModel(*WHOLE), ScriptedModel(*WHOLE)) as (fleet, [first, second]):
        if how == "gone":
            await first.close()
        first.model.healthy = how != "dead"
        first.app.draining = how == "draining"
        if how == "without the expert":
            first.model.served = ()
        for _ in range(3):
            assert (await parts(fleet))[0] == WHOLE[0]
        assert (len(first.model.asked), len(second.model.asked)) == (0, 3)


@in_loop
async def test_with_no_replica_left_it_is_a_503_at_once_until_one_reports_again() -> None:
    async with fleet_of(ScriptedModel(*WHOLE)) as (fleet, [replica]):
        replica.model.healthy = False
        for _ in range(2):
            with pytest.raises(ApiError) as caught:
                await parts(fleet)
            assert refused(caught) == (503, "expert_unavailable")
            assert caught.value.headers == {"retry-after": "5"}
        assert not fleet.serves(BASE)
        assert fleet.replicas == 0
        fleet.update([replica.report(up=False)], keep=False)
        assert not fleet.serves(BASE)
        replica.model.healthy = True
        fleet.update([replica.report()], keep=False)
        assert (await parts(fleet))[0] == WHOLE[0]


@in_loop
async def test_a_request_whose_engine_died_before_its_first_byte_is_another_s_at_once() -> None:
    dying = ScriptedModel(ReplyHead(503, retry_after_s=5), b"{}")
    async with fleet_of(dying, ScriptedModel(*WHOLE)) as (fleet, [first, second]):
        for _ in range(2):
            assert (await parts(fleet))[0] == WHOLE[0]
        assert (len(first.model.asked), len(second.model.asked)) == (1, 2)


@in_loop
async def test_so_is_one_whose_connection_broke_before_it() -> None:
    calls = []

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        calls.append(await reader.readline())
        writer.close()

    async with fleet_of(ScriptedModel(*WHOLE), ScriptedModel(*WHOLE)) as (fleet, [first, second]):
        async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
            first.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            fleet.update([first.report(), second.report()], keep=False)
            assert (await parts(fleet))[0] == WHOLE[0]
        assert (len(calls), len(second.model.asked)) == (1, 1)


@in_loop
async def test_a_request_that_breaks_two_engines_is_not_given_to_a_third() -> None:
    dying = [ScriptedModel(ReplyHead(503, retry_after_s=5), b"{}") for _ in range(2)]
    async with fleet_of(*dying, ScriptedModel(*WHOLE)) as (fleet, [first, second, third]):
        with pytest.raises(ApiError) as caught:
            await parts(fleet)
        assert refused(caught) == (503, "expert_unavailable")
        assert [len(one.model.asked) for one in (first, second, third)] == [1, 1, 0]
        assert (await parts(fleet))[0] == WHOLE[0]


@in_loop
@pytest.mark.parametrize("script", [(HANG,), (STREAM, HANG), (STREAM, EVENTS[0], HANG)], ids=len)
async def test_closing_early_stops_the_engine_and_blames_nobody(script: tuple[Any, ...]) -> None:
    async with fleet_of(ScriptedModel(*script)) as (fleet, [replica]):
        task = asyncio.create_task(parts(fleet))
        await until(lambda: replica.model.running == 1)
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: replica.model.running == 0)
        assert fleet.serves(BASE)
        assert fleet.running == 0


@in_loop
async def test_requests_under_way_go_on_while_a_replica_drains() -> None:
    gate = asyncio.Event()
    async with fleet_of(ScriptedModel(STREAM, EVENTS[0], gate, *EVENTS[1:])) as (fleet, [replica]):
        async with aclosing(fleet.answer(asking())) as answer:
            assert [await anext(answer), await anext(answer)] == [STREAM, EVENTS[0]]
            replica.app.draining = True
            fleet.update([replica.report(up=False)], keep=False)
            with pytest.raises(ApiError):
                await parts(fleet)
            gate.set()
            assert b"".join([part async for part in answer]) == b"".join(EVENTS[1:])


@in_loop
async def test_only_a_replica_that_has_the_adapter_is_asked_for_it() -> None:
    both = ScriptedModel(*WHOLE, served=(BASE.version, TUNED.version))
    async with fleet_of(ScriptedModel(*WHOLE), both) as (fleet, _):
        assert fleet.serves(TUNED)
        await parts(fleet, asking(TUNED))
        assert len(both.asked) == 1
        assert both.asked[0][1]["model"] == TUNED.version


@in_loop
async def test_the_first_request_waits_for_a_replica_where_one_can_be_started() -> None:
    woken = left = 0

    async def wake() -> None:
        nonlocal woken, left
        woken += 1
        try:
            await asyncio.sleep(HANG)
        finally:
            left += 1

    async with fleet_of(wake=wake, slots=2) as (fleet, _):
        waiting = [asyncio.create_task(parts(fleet)) for _ in range(8)]
        await asyncio.sleep(0.02)
        for _ in range(3):
            # The registry tells every second that there is still none.
            fleet.update([], keep=False)
            await asyncio.sleep(0.02)
        assert (woken, left) == (1, 0)
        with pytest.raises(ApiError) as caught:
            await parts(fleet)
        assert refused(caught) == (429, "queue_full")
        replica = Running("late", ScriptedModel(*WHOLE), limit=99)
        fleet.update([replica.report()], keep=False)
        assert [(await task)[0] for task in waiting] == [WHOLE[0]] * 8
        assert (woken, left) == (1, 1)
        await replica.close()


@in_loop
async def test_without_its_token_a_replica_has_nothing() -> None:
    async with fleet_of(ScriptedModel(*WHOLE)) as (_, [replica]), aiohttp.ClientSession() as client:
        url = f"http://{replica.address}"
        right = {TOKEN_HEADER: TOKEN, VERSION_HEADER: BASE.version}
        for path, headers in [
            (CHAT, {}),
            (CHAT, right | {TOKEN_HEADER: "another"}),
            ("/metrics", right),
            ("/invocations", right),
            ("/v1/load_lora_adapter", right),
        ]:
            async with client.post(f"{url}{path}", json=HELLO, headers=headers) as reply:
                assert (reply.status, (await reply.json())["error"]["code"]) == (404, "unknown_path")
        assert replica.model.asked == []


def test_requests_with_the_same_beginning_go_to_the_same_replica() -> None:
    one, two = (b"x" * 4 * BLOCK_BYTES, b"y" * 4 * BLOCK_BYTES)
    balancer, loads = Balancer(), {"a": 0, "b": 0}
    assert balancer.choose(loads, 4, beginnings(one)) == "a"
    assert balancer.choose({"a": 1, "b": 0}, 4, beginnings(two)) == "b"
    for _ in range(3):
        assert balancer.choose({"a": 3, "b": 1}, 4, beginnings(one + b"and more")) == "a"
        assert balancer.choose({"a": 0, "b": 3}, 4, beginnings(two + b"another")) == "b"
    assert balancer.choose({"a": 8, "b": 1}, 4, beginnings(one)) == "b"  # too busy for what it knows
    assert balancer.choose({"b": 9}, 4, beginnings(one)) == "b"


def test_what_shares_no_cache_shares_no_beginning() -> None:
    text = b"x" * 1000
    assert not set(beginnings(text, "base@1")) & set(beginnings(text, "orders@2"))


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 50), min_size=1), st.binary(max_size=2000))
def test_a_replica_is_never_more_than_half_its_slots_above_the_least_loaded_unless_it_is_free(
    loads: dict[str, int], text: bytes
) -> None:
    balancer = Balancer()
    for _ in range(2):
        chosen = balancer.choose(loads, 8, beginnings(text))
        assert loads[chosen] < 8 or loads[chosen] - min(loads.values()) <= 4
