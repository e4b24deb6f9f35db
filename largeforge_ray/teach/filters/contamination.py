"""How much of a text stands in items that nothing may train on."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from hashlib import blake2b

import numpy as np

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
            found.extend(self._hashes(text))
        self._known = np.unique(np.array(found, dtype=np.uint64))

    def overlap(self, text: str) -> float:
        """Share, 0 to 1, of the text's n-grams that are known; 0 for a text too short to compare."""
        hashes = np.array(self._hashes(text), dtype=np.uint64)
        if not hashes.size or not self._known.size:
            return 0.0
        places = np.searchsorted(self._known, hashes)
        return float(np.mean(self._known[np.minimum(places, self._known.size - 1)] == hashes))

    def _hashes(self, text: str) -> list[int]:
        found = words(text)
        if len(found) < self.n / 2:
            return []
        return [int.from_bytes(blake2b(g.encode(), digest_size=8).digest()) for g in ngrams(found, self.n)]


def contamination(config: Contamination, index: ContaminationIndex, prompt: str, answer: str) -> str | None:
    """Why the row is refused, if its prompt or its answer overlaps too much."""
    if max(index.overlap(prompt), index.overlap(answer)) <= config.max_overlap:
        return None
    return f"over {config.max_overlap} of its {config.n}-grams are in {', '.join(config.against)}"
