"""The checks a request passes before an expert is chosen for it.

What a sampling option means is vLLM's to decide; here stands what would be unsafe, unbounded, or
turned into a confusing error further on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from largeforge_ray.routing import user_turns
from serve_apps.openai_errors import bad_request

MAX_DEPTH = 64
MAX_CHOICES = 8
MAX_TOP_LOGPROBS = 20
MAX_TEXTS = 2048
"""Of one request for embeddings, as OpenAI has it."""
EMBEDS = "/v1/embeddings"
EMBEDDING_FIELDS = ("model", "input", "encoding_format", "dimensions", "user")

REFUSED = {
    "chat_template": "templates come with the model",
    "chat_template_kwargs": "templates come with the model",
    "prompt_embeds": "only text prompts are served",
    "media_io_kwargs": "only text prompts are served",
    "mm_processor_kwargs": "only text prompts are served",
    "kv_transfer_params": "it addresses the engine's inside",
    "ec_transfer_params": "it addresses the engine's inside",
    "vllm_xargs": "it addresses the engine's inside",
    "prompt_logprobs": "it costs a row of log-probabilities for every prompt token",
    "use_beam_search": "its cost has no bound that the queue could count",
    "priority": "requests are served in the order they arrive",
    "request_id": "send the header x-request-id instead",
    "best_of": "n answers are made, and all of them are given",
    "suffix": "the models served here continue text and fill no gaps",
    "truncate_prompt_tokens": "what is cut off would be silently missing; send less",
}
"""Fields of vLLM's API that would let a request reach past itself, with the reason that is replied."""


def parse_request(body: bytes, content_type: str, path: str, *, max_tokens: int) -> dict[str, Any]:
    """The JSON object of a request to ``path``, checked. ``max_tokens`` is the cap on the answer, in tokens.

    Raises:
        ApiError: status 400, naming the field, the rule and the fix.
    """
    # Also keeps web pages out: a browser asks permission before it sends JSON to another origin.
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise bad_request("the header content-type must be application/json", "content-type", "invalid_type")
    request = _parse_json(body)
    for field, why in REFUSED.items():
        if request.get(field) is not None:
            raise bad_request(f"{field} is not accepted: {why}; leave it out", field, "unsupported_parameter")
    model = request.get("model")
    if not isinstance(model, str) or not model:
        raise bad_request("model must be a string: 'auto' or an expert's name", "model", "invalid_type")
    if not isinstance(request.get("stream", False), bool | None):
        raise bad_request("stream must be true or false", "stream", "invalid_type")
    if path == EMBEDS:
        _check_embedding(request)
        return request
    if path == "/v1/completions":
        _check_prompt(request.get("prompt"))
        _check_integer(request, "logprobs", 0, MAX_TOP_LOGPROBS)
    else:
        _check_messages(request.get("messages"))
    _check_integer(request, "n", 1, MAX_CHOICES)
    _check_integer(request, "top_logprobs", 0, MAX_TOP_LOGPROBS)
    _check_integer(request, "max_tokens", 1, max_tokens)
    _check_integer(request, "max_completion_tokens", 1, max_tokens)
    return request


def _parse_json(body: bytes) -> dict[str, Any]:
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise bad_request(
            f"the body is not UTF-8 text: byte {error.start} is wrong", code="invalid_utf8"
        ) from None
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
        # An escaped half of a surrogate pair is valid JSON, but no tokenizer takes it.
        # allow_nan finds the numbers that are too large for a float, such as 1e999.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise bad_request(f"the body is not JSON: {error.msg} at {where}", code="invalid_json") from None
    except UnicodeEncodeError:
        raise bad_request(
            "the body has half a surrogate pair (\\ud800 to \\udfff)", code="invalid_utf8"
        ) from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        reason = str(error).partition(";")[0]  # after it Python tells its own programmers what to do
        raise bad_request(f"the body is not JSON: {reason}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise bad_request("the body must be a JSON object", code="invalid_json")
    _check_depth(value)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _too_deep() -> Exception:
    return bad_request(f"the body is nested deeper than {MAX_DEPTH} levels; flatten it", code="too_deep")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for node in level for child in _children(node)]
        if not level:
            return
    raise _too_deep()


def _children(node: Any) -> list[Any]:
    inside = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return [child for child in inside if isinstance(child, dict | list)]


def _check_prompt(prompt: Any) -> None:
    if not isinstance(prompt, str) or not prompt:
        raise bad_request(
            "prompt must be text that is not empty; send one request for each", "prompt", "invalid_type"
        )


def _check_embedding(request: Mapping[str, Any]) -> None:
    for field in (name[:80] for name in request if name not in EMBEDDING_FIELDS):
        known = ", ".join(EMBEDDING_FIELDS)
        raise bad_request(
            f"{field} is no field of {EMBEDS}; there are: {known}", field, "unsupported_parameter"
        )
    texts = request.get("input")
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise bad_request(
            "input must be text that is not empty, or a list of such texts; ids of tokens are not taken, "
            "which other models number otherwise",
            "input",
            "invalid_type",
        )
    if not 1 <= len(texts) <= MAX_TEXTS:
        raise bad_request(f"input has {len(texts)} texts, outside 1..{MAX_TEXTS}", "input", "out_of_range")
    if request.get("encoding_format") not in (None, "float", "base64"):
        raise bad_request("encoding_format must be float or base64", "encoding_format")
    _check_integer(request, "dimensions", 1, 65536)


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise bad_request("messages must be a list with at least one message", "messages", "invalid_type")
    for index, message in enumerate(messages):
        at = f"messages[{index}]"
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise bad_request(f"{at} must be an object with a role", at, "invalid_type")
        _check_content(message, f"{at}.content")


def _check_content(message: Mapping[str, Any], at: str) -> None:
    content = message.get("content")
    if content is None and message["role"] in ("assistant", "tool", "function"):
        return  # a turn that only calls tools has none
    if isinstance(content, str):
        return
    if not isinstance(content, list):
        raise bad_request(f"{at} must be text or a list of text parts", at, "invalid_type")
    for part in content:
        if (
            not isinstance(part, Mapping)
            or part.get("type") != "text"
            or not isinstance(part.get("text"), str)
        ):
            raise bad_request(
                f"{at} has a part that is not text; images, audio and other media are not served",
                at,
                "unsupported_content",
            )


def _check_integer(request: Mapping[str, Any], field: str, low: int, high: int) -> None:
    value = request.get(field)
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise bad_request(f"{field} must be a whole number", field, "invalid_type")
    if not low <= value <= high:
        raise bad_request(f"{field} {str(value)[:20]} is outside {low}..{high}", field, "out_of_range")


def turns_of(payload: Mapping[str, Any]) -> tuple[str, ...]:
    """What a policy reads: the user's turns, or the prompt of a plain completion."""
    if "messages" in payload:
        return user_turns(payload["messages"])
    return (str(payload.get("prompt", "")),)
