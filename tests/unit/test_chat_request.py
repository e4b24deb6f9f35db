"""What a chat request may be: each refusal says where, why and what to do, and no bytes break the check."""

from __future__ import annotations

import copy
import json
import pickle
import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_apps import openai_errors
from serve_apps.chat_request import MAX_DEPTH, REFUSED, parse_request
from serve_apps.openai_errors import ApiError, bad_request

LIMIT = 256
USER = {"role": "user", "content": "hello"}
VALID = {"model": "auto", "messages": [USER]}


def parse(body: bytes | dict[str, Any], content_type: str = "application/json") -> dict[str, Any]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return parse_request(raw, content_type, "/v1/chat/completions", max_tokens=LIMIT)


def refusal(body: bytes | dict[str, Any], content_type: str = "application/json") -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(body, content_type)
    assert caught.value.status == 400
    assert caught.value.type == "invalid_request_error"
    assert caught.value.code
    return caught.value


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"stream": None, "n": None, "max_tokens": None},
        {"max_tokens": LIMIT, "max_completion_tokens": 1, "n": 8, "top_logprobs": 0},
        {"temperature": 0.2, "seed": 7, "tools": [{"type": "function", "function": {"name": "f"}}]},
        {"messages": [{"role": "system", "content": "brief"}, USER, {"role": "assistant", "content": None}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]},
        {"messages": [{"role": "user", "content": "\u00e9\U0001f600\u0000"}]},
        dict.fromkeys(REFUSED),
    ],
)
def test_what_openai_allows_passes_unchanged(more: dict[str, Any]) -> None:
    assert parse(VALID | more) == VALID | more


@pytest.mark.parametrize(
    "said", ["application/json", "Application/JSON; charset=utf-8", " application/json "]
)
def test_json_may_be_declared_in_any_spelling(said: str) -> None:
    assert parse(VALID, said) == VALID


@pytest.mark.parametrize("said", ["", "text/plain", "multipart/form-data", "application/jsonlines", "*/*"])
def test_other_content_types_are_refused_because_web_pages_may_send_them(said: str) -> None:
    error = refusal(VALID, said)
    assert (error.param, error.code) == ("content-type", "invalid_type")
    assert "content-type must be application/json" in error.message


@pytest.mark.parametrize("field", REFUSED)
def test_a_field_that_reaches_past_the_request_is_refused_with_its_reason(field: str) -> None:
    for value in (0, "", {}, True):
        error = refusal(VALID | {field: value})
        assert (error.param, error.code) == (field, "unsupported_parameter")
        assert error.message.startswith(f"{field} is not accepted: {REFUSED[field]}; ")
        assert error.message.endswith("leave it out")


@pytest.mark.parametrize(
    ("more", "param", "said"),
    [
        ({"model": None}, "model", "must be a string: 'auto' or an expert's name"),
        ({"model": ""}, "model", "must be a string"),
        ({"model": ["auto"]}, "model", "must be a string"),
        ({"stream": "yes"}, "stream", "must be true or false"),
        ({"stream": 1}, "stream", "must be true or false"),
        ({"messages": None}, "messages", "list with at least one message"),
        ({"messages": []}, "messages", "list with at least one message"),
        ({"messages": "hello"}, "messages", "list with at least one message"),
        ({"messages": [USER, "hello"]}, "messages[1]", "must be an object with a role"),
        ({"messages": [{"content": "x"}]}, "messages[0]", "must be an object with a role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "text or a list of text parts"),
        ({"messages": [USER | {"content": 7}]}, "messages[0].content", "text or a list of text parts"),
        ({"messages": [USER | {"content": ["x"]}]}, "messages[0].content", "images, audio and other media"),
        (
            {"messages": [USER, USER | {"content": [{"type": "image_url", "image_url": {"url": "file:///x"}}]}]},
            "messages[1].content",
            "images, audio and other media are not served",
        ),
        ({"messages": [USER | {"content": [{"type": "text"}]}]}, "messages[0].content", "not text"),
        ({"n": 9}, "n", "9 is outside 1..8"),
        ({"n": 0}, "n", "0 is outside 1..8"),
        ({"n": True}, "n", "must be a whole number"),
        ({"n": 1.0}, "n", "must be a whole number"),
        ({"top_logprobs": 21}, "top_logprobs", "21 is outside 0..20"),
        ({"max_tokens": LIMIT + 1}, "max_tokens", f"{LIMIT + 1} is outside 1..{LIMIT}"),
        ({"max_tokens": "10"}, "max_tokens", "must be a whole number"),
        ({"max_completion_tokens": -1}, "max_completion_tokens", f"-1 is outside 1..{LIMIT}"),
        ({"max_tokens": 10**4000}, "max_tokens", f"outside 1..{LIMIT}"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_field_and_the_rule(more: dict[str, Any], param: str, said: str) -> None:
    error = refusal(VALID | more)
    assert error.param == param
    assert param in error.message
    assert said in error.message
    assert len(error.message) < 200


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        (b"", "invalid_json", "line 1, column 1"),
        (b'{"model": "auto",\n "messages" []}', "invalid_json", "line 2, column 13"),
        (b"[]", "invalid_json", "must be a JSON object"),
        (b"null", "invalid_json", "must be a JSON object"),
        (b'{"temperature": NaN}', "invalid_json", "NaN is no JSON number"),
        (b'{"temperature": -Infinity}', "invalid_json", "-Infinity is no JSON number"),
        (b'{"temperature": 1e999}', "invalid_json", "[Oo]ut of range float"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "invalid_json", "limit"),
        (b'{"a": "\xff"}', "invalid_utf8", "byte 7 is wrong"),
        (b'{"a": "\\ud800"}', "invalid_utf8", "half a surrogate pair"),
        (b'{"\\udfff": 1}', "invalid_utf8", "half a surrogate pair"),
        (b"\xef\xbb\xbf{}", "invalid_json", "BOM"),
        (b"[" * 900 + b"]" * 900, "invalid_json", "must be a JSON object"),
        (b'{"a":' * 900 + b"1" + b"}" * 900, "too_deep", f"deeper than {MAX_DEPTH} levels; flatten it"),
        (b"[" * 1_000_000, "too_deep", f"deeper than {MAX_DEPTH} levels; flatten it"),
    ],
)  # fmt: skip
def test_a_body_that_is_no_json_object_is_refused_with_the_place(body: bytes, code: str, said: str) -> None:
    error = refusal(body)
    assert error.code == code
    assert re.search(said, error.message)
    assert "sys." not in error.message


@pytest.mark.parametrize(("levels", "accepted"), [(MAX_DEPTH - 2, True), (MAX_DEPTH, False)])
def test_depth_is_counted_in_levels(levels: int, accepted: bool) -> None:
    nested: Any = "leaf"
    for _ in range(levels):
        nested = [nested]
    if accepted:
        assert parse(VALID | {"metadata": nested})
    else:
        assert refusal(VALID | {"metadata": nested}).code == "too_deep"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=8),
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text(max_size=8), inside, max_size=4),
    max_leaves=20,
)
FIELDS = st.sampled_from(
    ["model", "messages", "stream", "n", "max_tokens", "top_logprobs", "tools", *list(REFUSED)[:2]]
)
MESSAGES = st.lists(
    st.fixed_dictionaries({}, optional={"role": st.sampled_from(["user", "tool"]) | JSON, "content": JSON}),
    max_size=3,
)


def outcome(body: bytes) -> None:
    """A dict or a refusal, never another exception; and what passes can be handed on as UTF-8 JSON."""
    refused, passed = None, None
    try:
        passed = parse(body)
    except ApiError as error:
        refused = error
    if refused is None:
        assert passed["model"]
        json.dumps(passed, ensure_ascii=False, allow_nan=False).encode()
    else:
        assert refused.status == 400
        assert json.loads(refused.body())["error"]["message"]


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
def test_any_bytes_are_parsed_or_refused(body: bytes) -> None:
    outcome(body)


@given(st.dictionaries(FIELDS | st.text(max_size=6), JSON, max_size=6), MESSAGES, st.booleans())
def test_any_json_is_parsed_or_refused(fields: dict[str, Any], messages: list[Any], valid: bool) -> None:
    outcome(json.dumps((VALID if valid else {"messages": messages}) | fields).encode())


@given(st.integers(0, 200), st.binary(max_size=3))
def test_a_valid_request_with_some_bytes_changed_is_parsed_or_refused(at: int, change: bytes) -> None:
    good = json.dumps(VALID | {"stream": True, "n": 2, "tools": [[{}]]}).encode()
    outcome(good[:at] + change + good[at + len(change) :])


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 1_000_000,
        b'{"a":' * 200_000,
        b'{"model": "auto", "messages": [' + b"[]," * 330_000 + b"[]]}",
        b'{"seed": ' + b"9" * 1_000_000 + b"}",
        b'{"x": "' + b"\\ud83d" * 160_000 + b'"}',
        json.dumps(VALID | {"messages": [USER] * 25_000}).encode(),
    ],
    ids=["lists", "objects", "wide", "digits", "surrogates", "messages"],
)
def test_a_megabyte_made_to_hurt_is_dealt_with_quickly(body: bytes) -> None:
    started = time.monotonic()
    outcome(body)
    assert time.monotonic() - started < 2.0


TEXTS = st.none() | st.text(max_size=20)


@given(st.integers(400, 599), st.text(max_size=60), TEXTS, TEXTS, st.none() | st.integers(0, 99), TEXTS)
def test_an_api_error_survives_pickling_whole(status, message, param, code, retry, allow) -> None:
    error = ApiError(status, message, param=param, code=code, retry_after_s=retry, allow=allow)
    for again in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert type(again) is ApiError
        assert vars(again) == vars(error)
        assert str(again) == message
        assert (again.body(), again.headers) == (error.body(), error.headers)


@pytest.mark.parametrize(
    ("error", "status", "kind", "words"),
    [
        (bad_request("n is odd", "n"), 400, "invalid_request_error", ["n is odd"]),
        (
            openai_errors.unknown_path("/v2", ["/a", "/b"]),
            404,
            "not_found_error",
            ["'/v2'", "use one of: /a, /b"],
        ),
        (openai_errors.unknown_model("x" * 999, ["auto"]), 404, "not_found_error", ["use one of: auto"]),
        (
            openai_errors.wrong_method("PUT", "/a", ["GET"]),
            405,
            "invalid_request_error",
            ["PUT", "/a", "use GET"],
        ),
        (
            openai_errors.body_too_large(10),
            413,
            "invalid_request_error",
            ["10 bytes", "raise max_body_bytes"],
        ),
        (
            openai_errors.queue_full(9, 8),
            429,
            "rate_limit_error",
            ["9 requests", "limit is 8", "try again in"],
        ),
        (openai_errors.internal(), 500, "server_error", ["its log names the reason"]),
        (
            openai_errors.expert_unavailable("tuned"),
            503,
            "service_unavailable_error",
            ["'tuned'", "try again in"],
        ),
        (openai_errors.too_slow(1.5), 504, "timeout_error", ["1.5 s", "lower max_tokens"]),
    ],
    ids=lambda value: value.code if isinstance(value, ApiError) else "",
)
def test_each_refusal_has_openais_shape_and_says_what_to_do(error, status, kind, words) -> None:
    told = json.loads(error.body())["error"]
    assert set(told) == {"message", "type", "param", "code"}
    assert (error.status, told["type"]) == (status, kind)
    assert told["code"]
    assert all(word in told["message"] for word in words)
    assert len(told["message"]) < 250
    assert error.event() == b"data: " + error.body() + b"\n\n"
    assert b"\n" not in error.body()


def test_a_retry_is_suggested_only_where_it_helps() -> None:
    assert openai_errors.queue_full(9, 8).headers == {"retry-after": "1"}
    assert openai_errors.expert_unavailable("x").headers == {"retry-after": "5"}
    assert openai_errors.wrong_method("PUT", "/a", ["GET", "POST"]).headers == {"allow": "GET, POST"}
    assert openai_errors.too_slow(1.0).headers == openai_errors.internal().headers == {}
