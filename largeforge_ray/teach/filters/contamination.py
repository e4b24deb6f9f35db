"""How much of a text stands in items that nothing may train on."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from largeforge_ray.config.filters import Contamination
from largeforge_ray.teach.filters.words import ngrams, words


class ContaminationIndex:
    """The n-grams of ``n`` words of all ``texts``, 8 bytes for each different one; picklable.

    A text of fewer words is compared as a whole, and one of less than half as many not at all: a right
    answer is often a single word. One n-gram in 2^64 is taken for another by its hash.
    """

    def __init__(self, texts: Iterable[str], n: int) -> None:
        self.n = n
        found = array("Q")
        for text in texts:
            found.frombytes(hashed(self._grams(text)).tobytes())
        self._known = np.unique(np.array(found, dtype=np.uint64))

    def overlap(self, text: str) -> float:
        """Share, 0 to 1, of the text's n-grams that are known; 0 for a text too short to compare."""
        hashes = hashed(self._grams(text))
        return float(np.mean(is_in(self._known, hashes))) if hashes.size else 0.0

    def _grams(self, text: str) -> list[str]:
        found = words(text)
        return [] if len(found) < self.n / 2 else ngrams(found, self.n)


def hashed(grams: Iterable[str]) -> NDArray[np.uint64]:
    """64 bits of each n-gram, in order."""
    digests = (blake2b(gram.encode(), digest_size=8).digest() for gram in grams)
    return np.frombuffer(b"".join(digests), dtype=np.uint64)


def is_in(known: NDArray[np.uint64], hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which of the hashes are among the sorted ``known`` ones."""
    if not known.size:
        return np.zeros(hashes.shape, np.bool_)
    places = np.searchsorted(known, hashes)
    return np.asarray(known[np.minimum(places, known.size - 1)] == hashes)


def contamination(config: Contamination, index: ContaminationIndex, prompt: str, answer: str) -> str | None:
    """Why the row is refused, if its prompt or its answer overlaps too much."""
    if max(index.overlap(prompt), index.overlap(answer)) <= config.max_overlap:
        return None
    return f"over {config.max_overlap} of its {config.n}-grams are in {', '.join(config.against)}"
