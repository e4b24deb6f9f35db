"""What a policy may look at: the user's turns, as words."""

from __future__ import annotations

import re
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
    "bestellung" is not found inside "vorbestellungen". Of scripts written without spaces every two
    neighbouring characters are one: they find what a dictionary's words would (Nie et al. 2000).
    """
    return frozenset(sequence(text))


def sequence(text: str) -> list[str]:
    """As ``words``, in their order and as often as they stand there."""
    folded = unicodedata.normalize("NFKC", clipped(text, MAX_TEXT_CHARS)).casefold()
    found = folded.translate(_BETWEEN_WORDS).split()
    if folded.isascii() or _UNSPACED.search(folded) is None:
        return found
    return [part for word in found for run in _RUNS.findall(word) for part in _parts(run)]


def clipped(text: str, chars: int) -> str:
    """The text, or both of its ends with ``chars`` characters in all."""
    half = chars // 2
    return text if len(text) <= chars else f"{text[:half]} {text[-half:]}"


def _parts(run: str) -> list[str]:
    if len(run) < 3 or _UNSPACED.match(run) is None:
        return [run]
    return [run[i : i + 2] for i in range(len(run) - 1)]


class _Between(dict[int, str]):
    """What ``str.translate`` puts in the place of a character: itself, or a space. Filled as they are met."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        # Vowel signs of Indic scripts are marks, not letters; without them one word would fall apart.
        kept = char.isalnum() or unicodedata.category(char)[0] == "M"
        self[code] = char if kept else " "
        return self[code]


_BETWEEN_WORDS = _Between()
# Thai, Lao, Myanmar, Khmer, Kana, Han.
_SCRIPTS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_UNSPACED = re.compile(f"[{_SCRIPTS}]")
_RUNS = re.compile(f"[{_SCRIPTS}]+|[^{_SCRIPTS}]+")
