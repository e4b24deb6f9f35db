"""What counts as a word, for every filter that counts or compares words."""

from __future__ import annotations

import unicodedata

import regex

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
_LETTERS = rf"[\p{{L}}\p{{M}}\p{{N}}--[{_UNSPACED}]]+"
_WORD = rf"[{_UNSPACED}]|{_LETTERS}(?:['’]{_LETTERS})*"
WORDS = regex.compile(_WORD, regex.V1)
TOKENS = regex.compile(rf"{_WORD}|[\p{{S}}\p{{Pd}}/*%]", regex.V1)


def words(text: str) -> list[str]:
    """Words without case and punctuation. In scripts that put no spaces, each character is a word."""
    return [m.group() for m in WORDS.finditer(_folded(text))]


def tokens(text: str) -> list[str]:
    """Words, and between them the signs that tell 5 + 3 from 5 - 3."""
    return [m.group() for m in TOKENS.finditer(_folded(text))]


def ngrams(items: list[str], n: int) -> list[str]:
    """Every run of ``n`` items, joined; one run of all where there are fewer, none of nothing."""
    if len(items) <= n:
        return ["\x1f".join(items)] if items else []
    return ["\x1f".join(items[i : i + n]) for i in range(len(items) - n + 1)]


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()
