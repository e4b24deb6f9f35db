"""Anything may be sent to the router: it answers with less than 500, in OpenAI's shape, and soon."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from largeforge_ray.keyfile import hash_of
from serve_apps.admin import Admin
from serve_apps.openai_errors import ReplyHead
from tests.unit._front import ScriptedEngine, app, completion
from tests.unit.test_admin import TOKEN, Registered

PATHS = (
    *(
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/route",
        "/v1/models",
        "/v1/experts",
        "/health",
        "/ready",
    ),
    *(
        "/",
        "/page.js",
        "/admin/experts",
        "/admin/experts/orders",
        "/metrics",
        "/invocations",
        "/v1/load_lora_adapter",
    ),
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    [
        "model",
        "messages",
        "prompt",
        "stream",
        "n",
        "max_tokens",
        "temperature",
        "logprobs",
        "top_logprobs",
        "tools",
        "response_format",
        "stop",
        "chat_template",
        "seed",
        "user",
        "adapter",
        "name",
        "price",
        "stream_options",
        "input",
        "encoding_format",
        "dimensions",
    ]
)
NEARLY = {"model": "auto", "messages": [{"role": "user", "content": "hello"}], "prompt": "hello"}
TO_EMBED = {"model": "auto", "input": ["hello"]}
BODIES = (
    st.binary(max_size=300)
    | st.builds(lambda value: json.dumps(value).encode(), VALUES)
    | st.builds(
        lambda known, more: json.dumps(known | more).encode(),
        st.sampled_from([NEARLY, TO_EMBED]),
        st.dictionaries(FIELDS, VALUES, max_size=4),
    )
)
TYPES = st.sampled_from(["application/json", "application/json; charset=utf-8", "text/plain", "", "a/b/c;;="])
HTTP = TestClient(
    app(ScriptedEngine(ReplyHead(200), completion("hi")), admin=Admin(Registered(), hash_of(TOKEN))),
    raise_server_exceptions=True,
)


@settings(max_examples=400, deadline=2000)
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"]),
    path=st.sampled_from(PATHS)
    | st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30).map(lambda text: f"/{text}"),
    query=st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), max_size=20),
    body=BODIES,
    kind=TYPES,
    known=st.booleans(),
)
def test_whatever_is_asked_the_answer_is_no_fault_of_ours(
    method: str, path: str, query: str, body: bytes, kind: str, known: bool
) -> None:
    headers = {"content-type": kind} | ({"authorization": f"Bearer {TOKEN}"} if known else {})
    try:
        reply = HTTP.request(method, f"http://testserver{path}?{query}", content=body, headers=headers)
    except (ValueError, UnicodeError):
        return  # httpx refuses to send such a URL
    assert reply.status_code < 500, reply.text
    if reply.status_code >= 400 and method != "HEAD":
        error: dict[str, Any] = reply.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        assert "Traceback" not in error["message"]
