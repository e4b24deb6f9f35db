"""Chats as token ids with a loss mask: only what the assistant says is learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from largeforge_ray.errors import DataError
from largeforge_ray.types import Message

IGNORED = -100
"""The label that cross-entropy passes over (torch's ``ignore_index``)."""


def render_chat(
    tokenizer: Any, messages: Sequence[Message], *, max_tokens: int, learn_from: int = 0
) -> dict[str, list[int]] | None:
    """``input_ids`` and ``labels`` of equal length; labels are ``IGNORED`` outside assistant turns.

    Each assistant turn is learned from its first token through the token that ends the turn, so
    the model also learns to stop; turns before number ``learn_from`` are not learned. None if the
    chat is longer than ``max_tokens``: cutting it would teach an answer without its end. Raises
    ``DataError`` if a template renders a prefix of a chat differently from the chat (then the mask
    cannot be placed).
    """
    if not any(m["role"] == "assistant" for m in messages[learn_from:]):
        raise DataError("a chat without an assistant turn teaches nothing; add an answer or drop the row")
    ids = chat_ids(tokenizer, messages)
    labels = [IGNORED] * len(ids)
    for i, message in enumerate(messages):
        if message["role"] != "assistant" or i < learn_from:
            continue
        before = chat_ids(tokenizer, messages[:i], prompt=True)
        after = chat_ids(tokenizer, messages[: i + 1])
        if ids[: len(before)] != before or ids[: len(after)] != after:
            raise DataError(
                "the chat template renders earlier turns differently once later ones exist; "
                "use another template"
            )
        end = _turn_end(tokenizer, after, len(before))
        labels[len(before) : end] = ids[len(before) : end]
    return {"input_ids": ids, "labels": labels} if len(ids) <= max_tokens else None


def render_prompt(tokenizer: Any, messages: Sequence[Message], *, max_tokens: int) -> list[int] | None:
    """Ids of what a chat asks, through the words after which the assistant begins; None if too long."""
    ids = chat_ids(tokenizer, messages, prompt=True)
    return ids if len(ids) <= max_tokens else None


def _turn_end(tokenizer: Any, ids: list[int], start: int) -> int:
    """One past the end-of-turn token: templates may write a newline after it that nobody generates."""
    for position in range(len(ids) - 1, start - 1, -1):
        if ids[position] == tokenizer.eos_token_id:
            return position + 1
    return len(ids)


def chat_ids(tokenizer: Any, messages: Sequence[Message], *, prompt: bool = False) -> list[int]:
    """Ids of a chat as it stands, with ``prompt`` through the words after which the assistant begins."""
    rendered = tokenizer.apply_chat_template(list(messages), add_generation_prompt=prompt, return_dict=False)
    return [int(i) for i in rendered]
