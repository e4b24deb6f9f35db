"""What a policy may look at: the user's turns, as words."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

MAX_TEXT_CHARS = 32_768
"""Longer prompts are read at both ends: an instruction stands before or after the material it is about."""


def user_turns(messages: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The texts of the user's turns. Content parts are joined by newlines."""
    return tuple(content_text(m.get("content")) for m in messages if m.get("role") == "user")


def content_text(content: Any) -> str:
    """A message's content, which OpenAI allows to be a string, a list of text parts, or null."""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return ""


def words(text: str) -> frozenset[str]:
    """The distinct words of a text, case-folded and NFKC-normalised.

    A word is a longest run of letters, digits and combining marks, so "JSON-Schlüssel" is two words and
    "bestellung" is not found inside "vorbestellungen". Scripts written without spaces come out as
    whole clauses: keyword routing does not suit them.
    """
    if len(text) > MAX_TEXT_CHARS:
        half = MAX_TEXT_CHARS // 2
        text = f"{text[:half]} {text[-half:]}"
    folded = unicodedata.normalize("NFKC", text).casefold()
    return frozenset(folded.translate(_BETWEEN_WORDS).split())


class _Between(dict[int, str]):
    """What ``str.translate`` puts in the place of a character: itself, or a space. Filled as they are met."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        # Vowel signs of Indic scripts are marks, not letters; without them one word would fall apart.
        kept = char.isalnum() or unicodedata.category(char)[0] == "M"
        self[code] = char if kept else " "
        return self[code]


_BETWEEN_WORDS = _Between()
