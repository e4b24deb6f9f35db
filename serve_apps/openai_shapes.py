"""OpenAI's response and chunk dictionaries around generated pieces, as vLLM's server shapes them."""

from __future__ import annotations

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from serve_apps.generated_text import Piece, TokenChance

DONE = b"data: [DONE]\n\n"
LOWEST = -9999.0
"""JSON has no minus infinity."""


class Reply(ABC):
    """The shapes of one reply; each choice's pieces come in their order."""

    prefix: ClassVar[str]
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __init__(self, model: str) -> None:
        self._facts = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, pieces: Sequence[Piece], prompt_tokens: int) -> bytes:
        """The JSON of a reply that is not streamed."""
        choices = []
        for index in sorted({piece.index for piece in pieces}):
            own = [piece for piece in pieces if piece.index == index]
            choices.append(self._choice(index, "".join(p.text for p in own), own))
        usage = _usage(prompt_tokens, len(pieces))
        reply = {**self._facts, "object": self.whole_object, "choices": choices, "usage": usage}
        return json.dumps(reply).encode()

    def opening(self, choices: int) -> list[bytes]:
        """The events before the first text."""
        return []

    def event(self, pieces: Sequence[Piece]) -> bytes:
        """One choice's next pieces as an event."""
        return self._event([self._delta(pieces[0].index, "".join(p.text for p in pieces), pieces)])

    def usage(self, prompt_tokens: int, completion_tokens: int) -> bytes:
        """The event after all choices."""
        return self._event([], usage=_usage(prompt_tokens, completion_tokens))

    def _event(self, choices: list[Any], **more: Any) -> bytes:
        chunk = {**self._facts, "object": self.chunk_object, "choices": choices, **more}
        return b"data: " + json.dumps(chunk).encode() + b"\n\n"

    @abstractmethod
    def _choice(self, index: int, text: str, pieces: Sequence[Piece]) -> dict[str, Any]: ...

    @abstractmethod
    def _delta(self, index: int, text: str, pieces: Sequence[Piece]) -> dict[str, Any]: ...


class ChatReply(Reply):
    prefix, whole_object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def opening(self, choices: int) -> list[bytes]:
        delta = {"role": "assistant", "content": ""}
        shape = {"delta": delta, "logprobs": None, "finish_reason": None}
        return [self._event([{"index": index, **shape}]) for index in range(choices)]

    def _choice(self, index: int, text: str, pieces: Sequence[Piece]) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, **_chat_facts(pieces)}

    def _delta(self, index: int, text: str, pieces: Sequence[Piece]) -> dict[str, Any]:
        return {"index": index, "delta": {"content": text}, **_chat_facts(pieces)}


class TextReply(Reply):
    prefix, whole_object, chunk_object = "cmpl", "text_completion", "text_completion"

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self._offsets: dict[int, int] = {}

    def _choice(self, index: int, text: str, pieces: Sequence[Piece]) -> dict[str, Any]:
        return self._delta(index, text, pieces)

    def _delta(self, index: int, text: str, pieces: Sequence[Piece]) -> dict[str, Any]:
        logprobs = None
        if chances := _chances(pieces):
            offsets = [self._offsets.get(index, 0)]
            for chance in chances:
                offsets.append(offsets[-1] + len(chance.token))
            self._offsets[index] = offsets.pop()
            logprobs = {
                "tokens": [chance.token for chance in chances],
                "token_logprobs": [max(chance.logprob, LOWEST) for chance in chances],
                "top_logprobs": [_by_token(chance) for chance in chances],
                "text_offset": offsets,
            }
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": pieces[-1].finish}


REPLIES: dict[str, type[Reply]] = {"/v1/chat/completions": ChatReply, "/v1/completions": TextReply}


def _usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def _chances(pieces: Sequence[Piece]) -> list[TokenChance]:
    return [piece.chance for piece in pieces if piece.chance is not None]


def _chat_facts(pieces: Sequence[Piece]) -> dict[str, Any]:
    content = [
        {
            **_token(chance.token, chance.logprob),
            "top_logprobs": [_token(*each) for each in chance.likeliest],
        }
        for chance in _chances(pieces)
    ]
    logprobs = {"content": content, "refusal": None} if content else None
    return {"logprobs": logprobs, "finish_reason": pieces[-1].finish}


def _token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": max(logprob, LOWEST), "bytes": list(text.encode("utf-8", "replace"))}


def _by_token(chance: TokenChance) -> dict[str, float]:
    likeliest = {token: max(logprob, LOWEST) for token, logprob in chance.likeliest}
    return {chance.token: max(chance.logprob, LOWEST)} | likeliest
