"""Sets and streams of rows that are larger than memory."""

from __future__ import annotations

import hashlib
import pickle
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

BITS = 128


class KeyIndex:
    """A set of texts as sorted 128-bit hashes, 32 bytes each; in Ray's object store it is mapped, not copied.

    Two different texts count as one with a chance of n^2 / 2^129: 10^-27 among a million.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        import numpy as np

        hashes = np.fromiter((_digest(key) for key in keys), dtype=f"S{BITS // 4}")
        self._hashes = np.unique(hashes)

    def __len__(self) -> int:
        return len(self._hashes)

    def __contains__(self, key: str) -> bool:
        digest = _digest(key)
        at = int(self._hashes.searchsorted(digest))
        return at < len(self._hashes) and bool(self._hashes[at] == digest)


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=BITS // 8).hexdigest().encode()


def split_by_hash(rows: Iterable[Any], hash_of: Callable[[Any], str], parts: int) -> Iterator[Iterator[Any]]:
    """The rows in ``parts`` portions, by a hexadecimal hash in rising order; one portion is in memory at a
    time, if the reader lets go of it. The others are pickled in a temporary folder."""
    if parts <= 1:
        yield iter(rows)
        return
    with tempfile.TemporaryDirectory(prefix="largeforge-sort-") as folder, ExitStack() as stack:
        paths = [Path(folder) / f"{part:05d}" for part in range(parts)]
        files = [stack.enter_context(path.open("wb")) for path in paths]
        for row in rows:
            pickle.dump(row, files[int(hash_of(row)[:8], 16) * parts >> 32])
        stack.close()
        for path in paths:
            yield _unpickled(path)
            path.unlink()


def _unpickled(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        while True:
            try:
                yield pickle.load(file)
            except EOFError:
                return
