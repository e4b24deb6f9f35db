"""What comes out of a model token by token: its text, where it stops, and how likely each token was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

CONTEXT_TOKENS = 6
"""Of the prompt, so that the first token keeps the space a tokenizer writes only between words."""
UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""How tokenizers show a character whose last bytes are still to come."""

Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class TokenChance:
    """A token's text and log-probability before any temperature, and the likeliest in its place."""

    token: str
    logprob: float
    likeliest: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """What one token adds to choice ``index``. ``finish`` is set on the choice's last piece."""

    index: int
    text: str
    finish: Finish | None = None
    chance: TokenChance | None = None


class GeneratedText:
    """Text of tokens as they come, up to the first of the ``stop`` strings.

    What is given out is never taken back: bytes of an unfinished character wait for the rest, and so does
    what may become a stop string. ``decode`` turns token ids into text.
    """

    def __init__(
        self, decode: Callable[[list[int]], str], prompt_ids: Sequence[int], stop: Sequence[str]
    ) -> None:
        self._decode, self._stop, self._held = decode, stop, ""
        self._ids = list(prompt_ids[-CONTEXT_TOKENS:])
        # Text up to _end is out. It is decoded again from _start on: tokens may read differently alone.
        self._start, self._end = 0, len(self._ids)

    def add(self, token: int) -> tuple[str, bool]:
        """What may be given out now, and whether a stop string ended the text."""
        self._ids.append(token)
        before = self._decode(self._ids[self._start : self._end])
        after = self._decode(self._ids[self._start :])
        if len(after) <= len(before) or after.endswith(UNFINISHED):
            return "", False
        self._start, self._end = self._end, len(self._ids)
        self._held += after[len(before) :]
        if found := [at for stop in self._stop if (at := self._held.find(stop)) >= 0]:
            return self._held[: min(found)], True
        keep = max((self._begun(stop) for stop in self._stop), default=0)
        return self._release(len(self._held) - keep), False

    def rest(self) -> str:
        """What was held back, once no token follows. Bytes that are no character are left out."""
        return self._release(len(self._held))

    def _begun(self, stop: str) -> int:
        """How many characters of ``stop`` stand at the end."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)

    def _release(self, characters: int) -> str:
        out, self._held = self._held[:characters], self._held[characters:]
        return out
