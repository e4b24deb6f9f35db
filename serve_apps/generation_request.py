"""Requests to an engine that serves a part of OpenAI's API: what it does not do it refuses by name."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serve_apps.chat_request import MAX_CHOICES, MAX_TOP_LOGPROBS
from serve_apps.openai_errors import ApiError, bad_request

MAX_STOPS = 16
"""Each is looked for in every token's text."""
GREEDY_BELOW = 1e-5
"""A temperature that vLLM, too, takes for none."""
MESSAGE_FIELDS = ("role", "content", "name")
NEUTRAL: dict[str, Any] = {
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "repetition_penalty": 1,
    "min_p": 0,
    "min_tokens": 0,
    "logit_bias": {},
    "tools": [],
    "tool_choice": "none",
    "response_format": {"type": "text"},
    "ignore_eos": False,
    "skip_special_tokens": True,
    "echo": False,
}
"""Values of fields that are not supported which ask for nothing, as clients send them by default."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. ``top_k`` 0 draws from all; ``logprobs`` None asks for no log-probabilities.

    With ``seed`` the choices repeat, each with a draw of its own.
    """

    max_tokens: int
    n: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    include_usage: bool | None = None


Stop = Annotated[str, Field(min_length=1)]


class GenerationRequest(BaseModel):
    """What chat and plain requests have in common. ``user`` says who asks and changes nothing."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    prompt_field: ClassVar[str]

    model: str
    user: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0.0, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0.0, le=1.0)
    top_k: int | None = Field(None, ge=-1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63 - MAX_CHOICES)
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None

    @property
    def asked_tokens(self) -> int | None:
        return self.max_tokens

    @property
    @abstractmethod
    def kept_logprobs(self) -> int | None:
        """How many of the likeliest tokens are told at each place, None for no log-probabilities."""

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(self, max_tokens: int) -> Sampling:
        """With OpenAI's defaults: temperature 1 and nothing cut off."""
        temperature = 1.0 if self.temperature is None else self.temperature
        return Sampling(
            max_tokens=max_tokens,
            n=self.n or 1,
            temperature=0.0 if temperature < GREEDY_BELOW else temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=max(self.top_k or 0, 0),
            seed=self.seed,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            logprobs=self.kept_logprobs,
        )


class ChatRequest(GenerationRequest):
    prompt_field: ClassVar[str] = "messages"
    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)

    @property
    def asked_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def kept_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    def turns(self) -> list[dict[str, str]]:
        """The messages as chat templates take them: text parts become lines."""
        return [_turn(index, message) for index, message in enumerate(self.messages)]


class TextRequest(GenerationRequest):
    prompt_field: ClassVar[str] = "prompt"
    prompt: str = Field(min_length=1)
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)

    @property
    def kept_logprobs(self) -> int | None:
        return self.logprobs


REQUESTS: dict[str, type[ChatRequest] | type[TextRequest]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": TextRequest,
}


def parse_generation(path: str, payload: Mapping[str, Any]) -> ChatRequest | TextRequest:
    """Check a request to ``path``. Raises ``ApiError``, status 400, naming field, rule and fix."""
    schema = REQUESTS[path]
    known = {field: value for field, value in payload.items() if field in schema.model_fields}
    for field, value in payload.items():
        if field not in known and value is not None and value != NEUTRAL.get(field, ...):
            raise unsupported(field)
    try:
        request = schema.model_validate(known)
    except ValidationError as error:
        raise _invalid(error) from None
    if request.stream_options is not None and not request.stream:
        raise bad_request("stream_options are of a stream; set stream: true", "stream_options")
    if isinstance(request, ChatRequest) and request.top_logprobs and not request.logprobs:
        raise bad_request("top_logprobs need logprobs; set logprobs: true", "top_logprobs")
    return request


def unsupported(field: str) -> ApiError:
    return bad_request(
        f"{field} is not supported by this expert's engine; leave it out, or ask another expert",
        field,
        "unsupported_parameter",
    )


def _turn(index: int, message: Mapping[str, Any]) -> dict[str, str]:
    given = {field: value for field, value in message.items() if value not in (None, [], {})}
    for field in given:
        if field not in MESSAGE_FIELDS:
            raise unsupported(f"messages[{index}].{field}")
    content = given.get("content", "")
    if not isinstance(content, str):
        content = "\n".join(part["text"] for part in content)
    return given | {"content": content}


def _invalid(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    # Further parts of the location name alternatives of a union, which mean nothing to the caller.
    field = str(first["loc"][0])
    return bad_request(f"{field}: {first['msg']}", field)
