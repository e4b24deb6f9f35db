"""Near duplicates among texts that come one after another."""

from __future__ import annotations

from functools import cache
from hashlib import blake2b

from largeforge_ray.teach.filters.words import ngrams, tokens

PERMUTATIONS = 256


class NearDuplicates:
    """MinHash with locality-sensitive hashing, Broder 1997; Leskovec et al., Mining of Massive Datasets, 3.4.

    Two texts are compared by the Jaccard similarity of their sets of ``ngram`` words and signs in a row. At
    0.8 a pair of similarity 0.7 is found in 8 cases of 100, of 0.8 in 46, of 0.9 in 98. Texts of fewer words
    are alike only if nothing but case and punctuation differs.

    What is found depends on the texts and their order alone. It holds no text: some 1.5 KB for each one that
    was not seen, at ``threshold`` 0.8, and less above.
    """

    def __init__(self, threshold: float, ngram: int) -> None:
        from datasketch import MinHash

        self._bands, self._rows = _bands_and_rows(threshold)
        self._ngram = ngram
        self._empty = MinHash(num_perm=PERMUTATIONS)
        # One flat set, because MinHashLSH's own tables take some 5 KB a text.
        self._known: set[int] = set()

    def seen(self, text: str) -> bool:
        """Whether a text before was nearly this one; if not, later ones are compared with it, too."""
        bands = self._bands_of(text)
        if not self._known.isdisjoint(bands):
            return True
        self._known.update(bands)
        return False

    def _bands_of(self, text: str) -> list[int]:
        sketch = self._empty.copy()
        grams = set(ngrams(tokens(text), self._ngram)) or {text.strip()}
        sketch.update_batch([gram.encode() for gram in grams])
        values, width = sketch.hashvalues, self._rows
        parts = [values[band * width : (band + 1) * width].tobytes() for band in range(self._bands)]
        return [int.from_bytes(blake2b(part, digest_size=8).digest()) for part in parts]


@cache
def _bands_and_rows(threshold: float) -> tuple[int, int]:
    """What makes as many pairs above the threshold missed as pairs below it found."""
    from datasketch import MinHashLSH

    chosen = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS)
    return chosen.b, chosen.r
