"""A stream whose engine dies goes on from another: the client has every word once, and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largeforge_ray.routing.experts import EngineOptions
from serve_apps.fleet import Fleet
from serve_apps.openai_errors import ApiError, ReplyHead, expert_unavailable
from serve_apps.resuming import MOST_KEPT_BYTES, Sent, read_resumption
from tests.unit._front import DONE, STREAM, in_loop
from tests.unit._replicas import BASE, ScriptedModel, asking, fleet_of, parts

LOST = ConnectionResetError("the engine's process was killed")
TOLD = expert_unavailable("base").event()


def event(**delta: Any) -> bytes:
    choice = {"index": 0, "finish_reason": delta.pop("end", None), "delta": delta}
    chunk = {"id": "chatcmpl-7f", "object": "chat.completion.chunk", "choices": [choice]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


ROLE = event(role="assistant", content="")
WORDS = [event(content="Hel"), event(content='lo {"error" \u00e9\U0001f600'), event(content="!", end="stop")]
WHOLE = (ROLE, *WORDS, DONE)
HELLO = "Hel" + 'lo {"error" \u00e9\U0001f600'


def going_on(said: str, *rest: bytes) -> ScriptedModel:
    return ScriptedModel(STREAM, ROLE, *([event(content=said)] if said else []), *rest)


async def until_it_fails(fleet: Fleet, **more: Any) -> tuple[bytes, int]:
    body = b""
    try:
        async for part in fleet.answer(asking(stream=True, **more)):
            body += b"" if isinstance(part, ReplyHead) else part
    except ApiError as error:
        return body, error.status
    return body, 200


@in_loop
@pytest.mark.parametrize("end", [LOST, TOLD])
@pytest.mark.parametrize("passed", range(3))
async def test_a_stream_that_breaks_off_goes_on_from_another_engine(passed: int, end: Any) -> None:
    said = ["", "Hel", HELLO][passed]
    dying = ScriptedModel(STREAM, *WHOLE[: passed + 1], end)
    other = going_on(said, *WHOLE[passed + 1 :])
    async with fleet_of(dying, other) as (fleet, [_, second]):
        head, *body = await parts(fleet, asking(stream=True))
        assert (head, b"".join(body)) == (STREAM, b"".join(WHOLE))
        [(_, payload)] = second.model.asked
        assert second.model.said == [said]
        assert payload["request_id"] == "7f"
        assert payload["messages"] == json.loads(asking().body)["messages"]
        # The one that failed is not asked again until it reports itself.
        assert fleet.replicas == 1


@in_loop
async def test_of_an_event_that_came_in_half_the_client_has_nothing() -> None:
    dying = ScriptedModel(STREAM, ROLE, WORDS[0] + WORDS[1][:20], LOST)
    async with fleet_of(dying, going_on("Hel", *WHOLE[2:])) as (fleet, _):
        _, *body = await parts(fleet, asking(stream=True))
        assert b"".join(body) == b"".join(WHOLE)


@in_loop
@pytest.mark.parametrize(
    "more", [{"n": 2}, {"tools": [{}]}, {"logprobs": True}, {"response_format": {}}, {"presence_penalty": 1}]
)
async def test_an_answer_that_is_more_than_its_text_ends_with_a_503(more: dict[str, Any]) -> None:
    async with fleet_of(ScriptedModel(STREAM, ROLE, WORDS[0], LOST), going_on("Hel")) as (fleet, [_, second]):
        assert await until_it_fails(fleet, **more) == (ROLE + WORDS[0], 503)
        assert second.model.asked == []


@in_loop
async def test_so_does_one_of_an_engine_that_goes_on_with_none_and_one_that_is_over() -> None:
    slow = replace(BASE, engine=EngineOptions(512, backend="transformers"))
    for expert, script in ((slow, (ROLE, WORDS[0])), (BASE, WHOLE[:-1])):
        dying = ScriptedModel(STREAM, *script, LOST, served=(expert.version,))
        other = ScriptedModel(STREAM, served=(expert.version,))
        async with fleet_of(dying, other) as (fleet, [_, second]):
            with pytest.raises(ApiError, match="no healthy engine"):
                await parts(fleet, asking(expert, stream=True))
            assert second.model.asked == []


@in_loop
async def test_a_stream_that_breaks_two_engines_is_not_given_to_a_third() -> None:
    dying = ScriptedModel(STREAM, ROLE, WORDS[0], LOST)
    again = going_on("Hel", LOST)
    async with fleet_of(dying, again, ScriptedModel(STREAM)) as (fleet, [_, second, third]):
        with pytest.raises(ApiError, match="no healthy engine"):
            await parts(fleet, asking(stream=True))
        assert (len(second.model.asked), len(third.model.asked)) == (1, 0)


@in_loop
async def test_an_engine_that_tells_something_else_is_not_believed() -> None:
    dying = ScriptedModel(STREAM, ROLE, WORDS[0], LOST)
    async with fleet_of(dying, going_on("Bye", *WHOLE[2:])) as (fleet, _):
        assert await until_it_fails(fleet) == (ROLE + WORDS[0], 503)


@in_loop
async def test_one_that_refuses_is_not_passed_over_for_others_and_the_next_is_asked() -> None:
    dying = ScriptedModel(STREAM, ROLE, WORDS[0], LOST)
    full = ScriptedModel(ReplyHead(429, retry_after_s=1), b'{"error": {}}')
    async with fleet_of(dying, full) as (fleet, _):
        assert await until_it_fails(fleet) == (ROLE + WORDS[0], 503)
        assert fleet.replicas == 1
    async with fleet_of(dying, full, going_on("Hel", *WHOLE[2:])) as (fleet, _):
        assert await until_it_fails(fleet) == (b"".join(WHOLE), 200)
        assert fleet.replicas == 2


@in_loop
async def test_what_another_replica_has_admitted_is_not_refused_as_too_much() -> None:
    dying, busy = ScriptedModel(STREAM, ROLE, WORDS[0], LOST), going_on("Hel", *WHOLE[2:])
    async with fleet_of(dying, busy) as (fleet, [_, second]):
        second.app.under_way = 100
        assert await until_it_fails(fleet) == (b"".join(WHOLE), 200)


@in_loop
async def test_an_answer_whose_tokens_were_all_said_ends_as_it_should() -> None:
    over = event(end="length")
    for last in ((over, DONE), (over, b'data: {"choices": [], "usage": {}}\n\n', DONE)):
        dying = ScriptedModel(STREAM, ROLE, WORDS[0], LOST)
        async with fleet_of(dying, going_on("Hel", *last)) as (fleet, _):
            assert await until_it_fails(fleet) == (b"".join((ROLE, WORDS[0], *last)), 200)


@in_loop
@pytest.mark.parametrize("early", [DONE, TOLD, b'data: {"choices": [], "usage": {}}\n\n', b": ping\n\n"])
async def test_one_that_ends_before_it_has_told_what_was_said_is_not_believed(early: bytes) -> None:
    dying = ScriptedModel(STREAM, ROLE, WORDS[0], LOST)
    async with fleet_of(dying, ScriptedModel(STREAM, ROLE, early)) as (fleet, _):
        assert await until_it_fails(fleet) == (ROLE + WORDS[0], 503)


def test_values_that_ask_for_nothing_and_stops_that_may_have_begun() -> None:
    sent = Sent()
    sent.add(ROLE + WORDS[0])
    for more in (
        {"n": 1},
        {"presence_penalty": 0},
        {"logprobs": False},
        {"tools": []},
        {"stop": ["xx", "yl"]},
    ):
        assert sent.resumption(asking(stream=True, **more).body) is not None
    for stop in ("lx", ["a", "el\n"]):
        assert sent.resumption(asking(stream=True, stop=stop).body) is None


@given(cuts=st.lists(st.integers(0, len(b"".join(WHOLE))), max_size=6), broken=st.integers(0, 400))
def test_however_the_bytes_are_cut_every_word_is_passed_on_once(cuts: list[int], broken: int) -> None:
    stream, sent = b"".join(WHOLE), Sent()
    # After its last word there is nothing to go on with.
    broken = min(broken, len(b"".join(WHOLE[:3])))
    places = sorted({0, *(c for c in cuts if c < broken), broken})
    passed = b"".join(sent.add(stream[a:b]) for a, b in pairwise(places))
    resumption = sent.resumption(asking(stream=True).body)
    assert resumption is not None
    assert read_resumption(resumption.body()) == resumption
    said = resumption.said
    told = [HELLO, "Hel", ""].index(said)
    rest = b"".join([ROLE, *([event(content=said)] if said else []), *WORDS[2 - told :], DONE])
    middle = len(rest) // 2
    passed += sent.add(rest[:middle]) + sent.add(rest[middle:])
    assert passed == stream


def test_a_very_long_stream_is_not_kept() -> None:
    sent = Sent()
    for _ in range(2 * MOST_KEPT_BYTES // len(WORDS[0])):
        sent.add(WORDS[0])
    assert sent.resumption(asking(stream=True).body) is None


def test_plain_completions_go_on_too() -> None:
    def chunk(text: str) -> bytes:
        told = {"id": "cmpl-3", "choices": [{"index": 0, "text": text}]}
        return b"data: " + json.dumps(told).encode() + b"\n\n"

    sent, body = Sent(), json.dumps({"model": "auto", "prompt": "a", "stream": True}).encode()
    assert sent.add(chunk("one") + chunk(" two")) == chunk("one") + chunk(" two")
    resumption = sent.resumption(body)
    assert resumption is not None
    assert (resumption.answer, resumption.said) == ("3", "one two")
    assert sent.add(chunk("one two") + chunk(" three")) == chunk(" three")
    several = json.dumps({"model": "auto", "prompt": ["a", "b"], "stream": True}).encode()
    assert sent.resumption(several) is None


def test_the_event_of_a_dead_engine_is_no_part_of_the_answer() -> None:
    sent = Sent()
    assert sent.add(ROLE + TOLD) == ROLE
    assert sent.broken
