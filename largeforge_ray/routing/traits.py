"""What a learned policy reads of a text beside its meaning: its words, and what it looks like."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from largeforge_ray.routing.encoder import Floats
from largeforge_ray.routing.features import clipped, sequence

BUCKETS = 1 << 16
"""For words and pairs of neighbours, by hash (Weinberger et al. 2009): no vocabulary has to be kept."""
MAX_CHARS = 2048
"""Of a text are read, at both ends."""
_NUMBERS = re.compile(r"\d+(?:[.,]\d+)*")
_SENTENCES = re.compile(r"[.!?]\s")


def buckets(text: str) -> NDArray[np.int64]:
    """The distinct buckets of a text, ascending."""
    words = [word.encode("utf-8", "replace") for word in sequence(clipped(text, MAX_CHARS))]
    alone = list(map(zlib.crc32, words))
    # The hash of "a b" goes on from that of "a".
    pairs = map(zlib.crc32, (b" " + word for word in words[1:]), alone)
    return np.unique(np.array([*alone, *pairs], np.int64) % BUCKETS)


def surface(text: str) -> Floats:
    """Logarithms of counts: how long, how many lines, numbers, signs and sentences."""
    clip = clipped(text, MAX_CHARS)
    words, lines, chars = clip.split(), clip.split("\n"), Counter(clip)

    def count(kind: Callable[[str], bool]) -> int:
        return sum(number for char, number in chars.items() if kind(char))

    counts: list[Any] = [
        len(text),
        len(words),
        len(lines),
        max(map(len, lines)),
        sum(map(len, words)) / max(1, len(words)),
        len(_NUMBERS.findall(clip)),
        len(_SENTENCES.findall(clip)),
        count(str.isdigit),
        count(str.isupper),
        len(clip) - count(str.isalnum) - count(str.isspace),
        *(chars[sign] for sign in "_$%?"),
    ]
    return np.log1p(np.array(counts, np.float32))
