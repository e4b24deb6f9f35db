"""Every way a request can fail, in the shape OpenAI clients read.

``{"error": {"message", "type", "param", "code"}}``, with ``Retry-After`` where trying again helps.
Nothing here carries a stack trace or a piece of a prompt.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

RETRY_QUEUE_S = 1
"""A place in the queue is free again after about one answer."""

RETRY_ENGINE_S = 5
"""An engine is back after 20 to 60 s; asking every few seconds is cheap and finds it soon."""

_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


class ApiError(Exception):
    """A refusal with an HTTP status. ``param`` is the request field at fault, ``code`` a stable word."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
        allow: str | None = None,
    ) -> None:
        # All of them go to the base class, or the error would lose them when it is pickled.
        super().__init__(status, message, param, code, retry_after_s, allow)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after_s, self.allow = retry_after_s, allow

    def __reduce__(self) -> tuple[object, ...]:
        options = {"param": self.param, "code": self.code}
        return _rebuild, (self.status, self.message, options, self.retry_after_s, self.allow)

    def __str__(self) -> str:
        return self.message

    @property
    def type(self) -> str:
        fallback = "invalid_request_error" if self.status < 500 else "server_error"
        return _TYPES.get(self.status, fallback)

    @property
    def headers(self) -> dict[str, str]:
        headers = {}
        if self.retry_after_s is not None:
            headers["retry-after"] = str(self.retry_after_s)
        if self.allow is not None:
            headers["allow"] = self.allow
        return headers

    def body(self) -> bytes:
        """The JSON body of the reply."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return json.dumps({"error": error}).encode()

    def event(self) -> bytes:
        """The server-sent event that ends a stream which cannot go on; no ``[DONE]`` follows it.

        It has no ``event:`` line: some clients pass over events they have no name for, but all of them
        look for ``error`` in the data.
        """
        return b"data: " + self.body() + b"\n\n"


def _rebuild(
    status: int, message: str, options: dict[str, str | None], retry: int | None, allow: str | None
) -> ApiError:
    return ApiError(status, message, **options, retry_after_s=retry, allow=allow)


@dataclass(frozen=True, slots=True)
class ReplyHead:
    """The first thing an expert sends: what the reply is, before any of its bytes."""

    status: int
    content_type: str = "application/json"
    retry_after_s: int | None = None


def bad_request(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    return ApiError(400, message, param=param, code=code)


def unknown_path(path: str, known: Sequence[str]) -> ApiError:
    return ApiError(
        404, f"path '{path[:80]}' does not exist; use one of: {', '.join(known)}", code="unknown_path"
    )


def wrong_method(method: str, path: str, allowed: Sequence[str]) -> ApiError:
    allow = ", ".join(allowed)
    return ApiError(
        405, f"method {method} is not allowed on {path}; use {allow}", code="method_not_allowed", allow=allow
    )


def no_embedder() -> ApiError:
    return ApiError(
        404,
        "no model here makes embeddings; name one as embedder of the stage that makes the router",
        param="model",
        code="model_not_found",
    )


def unknown_model(name: str, models: Sequence[str]) -> ApiError:
    return ApiError(
        404,
        f"model '{name[:80]}' is none of this endpoint's; use one of: {', '.join(models)}",
        param="model",
        code="model_not_found",
    )


def body_too_large(max_body_bytes: int) -> ApiError:
    return ApiError(
        413,
        f"the request body exceeds {max_body_bytes} bytes; send less, or raise max_body_bytes",
        code="request_too_large",
    )


def body_too_slow(seconds: float) -> ApiError:
    return ApiError(
        408, f"the request body did not arrive within {seconds:g} s; send it again", code="request_timeout"
    )


def no_key() -> ApiError:
    return ApiError(
        401, "no API key was given; send the header Authorization: Bearer KEY", code="missing_api_key"
    )


def foreign_host(host: str) -> ApiError:
    return ApiError(
        421,
        f"a router without API keys is asked by address or as localhost, not as '{host[:80]}', which any web "
        "page could make a name for it; use 127.0.0.1, or start it with keys",
        code="foreign_host",
    )


def invalid_key() -> ApiError:
    return ApiError(
        401, "the API key is unknown or has been revoked; ask for a new one", code="invalid_api_key"
    )


def too_many_at_once(name: str, limit: int) -> ApiError:
    return ApiError(
        429,
        f"key '{name}' has {limit} requests under way, its limit; wait for one to end",
        code="concurrency_limit_exceeded",
        retry_after_s=RETRY_QUEUE_S,
    )


def too_often(name: str, per_minute: int, wait_s: int) -> ApiError:
    return ApiError(
        429,
        f"key '{name}' may send {per_minute} requests a minute; try again in {wait_s} s",
        code="rate_limit_exceeded",
        retry_after_s=wait_s,
    )


def queue_full(load: int, limit: int) -> ApiError:
    return ApiError(
        429,
        f"{load} requests are being answered or wait, the limit is {limit}; try again in {RETRY_QUEUE_S} s",
        code="queue_full",
        retry_after_s=RETRY_QUEUE_S,
    )


def expert_unavailable(expert: str) -> ApiError:
    return ApiError(
        503,
        f"expert '{expert}' has no healthy engine at the moment and is being restarted; "
        f"try again in {RETRY_ENGINE_S} s",
        code="expert_unavailable",
        retry_after_s=RETRY_ENGINE_S,
    )


def too_slow(timeout_s: float) -> ApiError:
    return ApiError(
        504,
        f"the answer took longer than {timeout_s:g} s; lower max_tokens, or raise request_timeout_s",
        code="timeout",
    )


def internal() -> ApiError:
    return ApiError(500, "the server failed to answer; its log names the reason", code="internal_error")
