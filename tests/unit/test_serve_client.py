"""The router as the official ``openai`` client sees it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from serve_apps.openai_errors import ReplyHead, bad_request, expert_unavailable, queue_full
from tests.unit._front import (
    DONE,
    EVENTS,
    HELLO,
    ORDER,
    STREAM,
    ScriptedEngine,
    app,
    client,
    completion,
    in_loop,
)


@pytest.fixture
def official() -> Iterator[Any]:
    """Makes an ``openai.OpenAI`` in front of an engine that plays this script."""
    made = []

    def make(*script: Any) -> openai.OpenAI:
        http, _ = client(*script)
        made.append(
            openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=http, max_retries=0)
        )
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_the_openai_client_lists_models_and_gets_an_answer(official: Any) -> None:
    ai = official(ReplyHead(200), completion("Paris"))
    policies = ["largeforge/keyword", "largeforge/cascade"]
    assert [model.id for model in ai.models.list()] == ["auto", *policies, "base", "tuned", "solo"]
    raw = ai.chat.completions.with_raw_response.create(model="auto", **ORDER)
    assert raw.parse().choices[0].message.content == "Paris"
    assert raw.headers["x-largeforge-expert"] == "tuned"
    assert raw.request_id == raw.headers["x-request-id"]


@in_loop
async def test_the_openai_client_streams_over_asyncio_too() -> None:
    transport = httpx.ASGITransport(app(ScriptedEngine(STREAM, *EVENTS, DONE)))
    async with httpx.AsyncClient(transport=transport) as http:
        ai = openai.AsyncOpenAI(base_url="http://forge/v1", api_key="none", http_client=http, max_retries=0)
        stream = await ai.chat.completions.create(model="auto", stream=True, **HELLO)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "Hello é😀!"
        with pytest.raises(openai.NotFoundError):
            await ai.chat.completions.create(model="nobody", **HELLO)


def test_the_openai_client_raises_when_a_stream_breaks_off(official: Any) -> None:
    ai = official(STREAM, *EVENTS[:2], expert_unavailable("base"))
    seen: list[str] = []
    stream = ai.chat.completions.create(model="base", stream=True, **HELLO)
    with pytest.raises(openai.APIError, match="no healthy engine"):
        seen.extend(chunk.choices[0].delta.content for chunk in stream)
    assert seen == ["Hel", "lo é😀"]


@pytest.mark.parametrize(
    ("script", "more", "raised", "said"),
    [
        ([], {"model": "gpt-4"}, openai.NotFoundError, "largeforge/cascade, base"),
        ([], {"n": 99}, openai.BadRequestError, "99 is outside 1..8"),
        ([queue_full(9, 8)], {}, openai.RateLimitError, "limit is 8"),
        ([expert_unavailable("base")], {}, openai.InternalServerError, "no healthy engine"),
        ([bad_request("top_p is odd", "top_p")], {}, openai.BadRequestError, "top_p is odd"),
    ],
)
def test_the_openai_client_maps_refusals_to_its_own_errors(
    official: Any, script: list[Any], more: dict[str, Any], raised: type[openai.APIStatusError], said: str
) -> None:
    with pytest.raises(raised, match=re.escape(said)) as caught:
        official(*script).chat.completions.create(**({"model": "base", **HELLO} | more))
    assert caught.value.code
    assert caught.value.type
