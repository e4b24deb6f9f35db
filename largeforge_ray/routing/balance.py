"""Which replica of an engine a request goes to: the one that has computed its beginning, unless it is busy.

Pure but for what it remembers; no clock, no I/O.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping

BLOCK_BYTES = 256
"""A beginning is known by the whole blocks it has; engines cache blocks of 16 to 128 tokens."""
MOST_BLOCKS = 64
REMEMBERED = 65_536
"""Blocks, the least recently used are forgotten first: 10 MB."""


def beginnings(body: bytes, seed: str = "") -> list[int]:
    """A hash for every whole block of a request's body and all before it, the longest last. ``seed`` sets
    apart what shares no cache, such as adapters.

    Of a conversation each body begins with the one before, up to where its messages ended.
    """
    hashes, value = [], zlib.crc32(seed.encode())
    for end in range(BLOCK_BYTES, min(len(body), MOST_BLOCKS * BLOCK_BYTES) + 1, BLOCK_BYTES):
        value = hash((value, body[end - BLOCK_BYTES : end]))
        hashes.append(value)
    return hashes


class Balancer:
    """Remembers which replica was given which beginnings."""

    def __init__(self) -> None:
        self._homes: OrderedDict[int, str] = OrderedDict()

    def choose(self, loads: Mapping[str, int], slots: int, blocks: Iterable[int] = ()) -> str:
        """A replica's name, of those in ``loads`` (requests given to each and not ended).

        The one that was given the longest beginning is kept as long as it has a free slot, or no more than
        half its slots above the least loaded. Else it is the least loaded, the first name among equals.
        """
        least = min(loads, key=lambda name: (loads[name], name))
        blocks = list(blocks)
        homes = (self._homes.get(block) for block in reversed(blocks))
        home = next((name for name in homes if name in loads), None)
        if home is not None and (loads[home] < slots or loads[home] - loads[least] <= slots // 2):
            least = home
        for block in blocks:
            self._homes[block] = least
            self._homes.move_to_end(block)
        while len(self._homes) > REMEMBERED:
            self._homes.popitem(last=False)
        return least
