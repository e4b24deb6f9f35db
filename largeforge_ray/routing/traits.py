"""What a learned policy reads of a text beside its meaning: its words, and what it looks like."""

from __future__ import annotations

import re
import zlib
from itertools import pairwise
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
    words = sequence(clipped(text, MAX_CHARS))
    grams = {*words, *(f"{a} {b}" for a, b in pairwise(words))}
    return np.array(
        sorted({zlib.crc32(gram.encode("utf-8", "replace")) % BUCKETS for gram in grams}), np.int64
    )


def surface(text: str) -> Floats:
    """Logarithms of counts: how long, how many lines, numbers, signs and sentences."""
    clip = clipped(text, MAX_CHARS)
    words, lines = clip.split(), clip.split("\n")
    counts: list[Any] = [
        len(text),
        len(words),
        len(lines),
        max(map(len, lines)),
        sum(map(len, words)) / max(1, len(words)),
        len(_NUMBERS.findall(clip)),
        len(_SENTENCES.findall(clip)),
        sum(map(str.isdigit, clip)),
        sum(map(str.isupper, clip)),
        len(clip) - sum(map(str.isalnum, clip)) - sum(map(str.isspace, clip)),
        *(clip.count(sign) for sign in "_$%?"),
    ]
    return np.log1p(np.array(counts, np.float32))
