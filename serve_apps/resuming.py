"""A stream whose engine dies goes on from another one, and its client sees nothing of it.

The router keeps what it has passed on. When a stream breaks off, it asks another replica for the same request
with the text that was said of it so far. That engine takes the text as the beginning of its answer: it reads
it instead of drawing it, tells it again, and draws the rest. The router leaves out what its client has.

With temperature 0 the rest is what it would have been, but for ties; else it is another draw. An answer that
is more than its text cannot be gone on with, and ends with an error event.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from serve_apps.generation_request import NEUTRAL

RESUMED_HEADER = "x-largeforge-resumed"
"""Of a request to a replica whose body is a ``Resumption``'s."""
MOST_KEPT_BYTES = 2**20
"""Of a stream; a longer one is not gone on with."""
SIMPLE = {
    *("model", "messages", "prompt", "stream", "stream_options", "max_tokens", "max_completion_tokens"),
    *("temperature", "top_p", "top_k", "min_p", "seed", "stop", "user"),
    *("ignore_eos", "min_tokens", "logit_bias", "repetition_penalty"),
}
"""Fields of requests whose answers are their text, whoever draws it; other penalties see who did."""
ASKS_NOTHING = NEUTRAL | {"n": 1, "logprobs": False, "top_logprobs": 0}
"""Values of other fields that change nothing."""
EVENT, END = b"data: ", b"\n\n"
ERROR, UNAVAILABLE = b'data: {"error"', b'"code": "expert_unavailable"'
"""Nothing that is said looks like the first: quotes inside a text are escaped."""


@dataclass(frozen=True, slots=True)
class Resumption:
    """The client's ``request``, whose answer has the id ``answer`` and begins with ``said``."""

    request: dict[str, Any]
    answer: str
    said: str

    def body(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @property
    def payload(self) -> dict[str, Any]:
        """The request as an engine takes it; what it calls its answer follows from ``request_id``."""
        return self.request | ({"request_id": self.answer} if self.answer else {})


def read_resumption(body: bytes) -> Resumption:
    """What ``Resumption.body`` wrote."""
    return Resumption(**json.loads(body))


class Broken(Exception):
    """A stream broke off after its beginning."""


@dataclass(slots=True)
class Sent:
    """What a client has of a stream, in whole events, and whether the engine has said that it is ``broken``.

    Of more than ``most`` bytes nothing is kept. ``again`` is what another engine tells once more.
    """

    most: int = MOST_KEPT_BYTES
    broken: bool = False
    _parts: list[bytes] = field(default_factory=list)
    _bytes: int = 0
    _open: bytes = b""
    _again: str | None = None

    def add(self, part: bytes) -> bytes:
        """What of a reply's bytes is for the client: whole events that it does not have.

        Raises ``Broken`` if another engine tells what was not said.
        """
        part = self._open + part
        whole = part.rfind(END) + len(END)
        if whole < len(END):
            self._open = part
            return b""
        part, self._open = part[:whole], part[whole:]
        error = part.find(ERROR)
        if error >= 0 and UNAVAILABLE in part[error:]:
            self.broken, part = True, part[:error]
        if self._again is not None:
            part = self._unseen(part, self._again)
        self._bytes += len(part)
        if self._bytes <= self.most:
            self._parts.append(part)
        else:
            self._parts.clear()
        return part

    def _unseen(self, part: bytes, again: str) -> bytes:
        while part:
            event, _, rest = part.partition(END)
            told = json.loads(event.removeprefix(EVENT)) if event.startswith(EVENT + b"{") else {}
            if not again and not _has_role(told):
                self._again = None
                return part
            if not told.get("choices") or not again.startswith(_text(told)):
                raise Broken
            again, part = again[len(_text(told)) :], rest
        self._again = again
        return part

    def resumption(self, body: bytes) -> Resumption | None:
        """How another engine goes on with the answer to a request; None if none can."""
        request, told = json.loads(body), list(self._told())
        wants = {k for k, v in request.items() if v is not None and v != ASKS_NOTHING.get(k, ...)}
        if self._bytes > self.most or wants - SIMPLE or not isinstance(request.get("prompt", ""), str):
            return None
        said, stops = "".join(map(_text, told)), request.get("stop") or []
        if any(map(_is_more, told)) or _may_stop(said, [stops] if isinstance(stops, str) else stops):
            return None
        self.broken, self._open, self._again = False, b"", said if told else None
        # vLLM puts what kind of answer it is before the id of a request.
        return Resumption(request, str(told[0]["id"]).partition("-")[2] if told else "", said)

    def _told(self) -> Iterator[dict[str, Any]]:
        for event in b"".join(self._parts).split(END):
            if event.startswith(EVENT + b"{"):
                yield json.loads(event.removeprefix(EVENT))


def _choice(event: Mapping[str, Any]) -> Mapping[str, Any]:
    choices: list[dict[str, Any]] = event.get("choices") or [{}]
    return choices[0]


def _text(event: Mapping[str, Any]) -> str:
    choice = _choice(event)
    return str((choice.get("delta") or {}).get("content") or choice.get("text") or "")


def _has_role(event: Mapping[str, Any]) -> bool:
    return "role" in (_choice(event).get("delta") or {})


def _may_stop(said: str, stops: list[str]) -> bool:
    """Whether a text that is to end the answer may have begun, which the next engine would not know."""
    return any(said.endswith(stop[:length]) for stop in stops for length in range(1, len(stop)))


def _is_more(event: Mapping[str, Any]) -> bool:
    """Whether it says something beside text: that the answer is over, or a call of a tool."""
    choice = _choice(event)
    said = {name for name, value in (choice.get("delta") or {}).items() if value} - {"role", "content"}
    return bool(said or choice.get("finish_reason") or choice.get("logprobs"))
