"""Token sequences that share beginnings, as one row of tokens and a mask; which of them go together.

A node is a token after all the tokens before it. N nodes of a tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tree:
    """``ids`` and ``depths`` by node; ``paths`` are the nodes of each sequence."""

    ids: list[int]
    depths: list[int]
    paths: list[list[int]]

    @classmethod
    def of(cls, sequences: Sequence[Ids]) -> Tree:
        """Of sequences that are sorted: what neighbours begin with alike becomes one."""
        tree = cls([], [], [])
        path: list[int] = []
        last: Ids = ()
        for ids in sequences:
            alike = common(last, ids)
            path = [*path[:alike], *range(len(tree.ids), len(tree.ids) + len(ids) - alike)]
            tree.paths.append(path)
            tree.ids.extend(ids[alike:])
            tree.depths.extend(range(alike, len(ids)))
            last = ids
        return tree

    def mask(self, dtype: Any) -> Any:
        """What is added to attention scores, (1, 1, N, N): 0 for a node itself and those before it on its
        path, for others the least number."""
        import torch

        hidden = torch.finfo(dtype).min
        mask_NN = torch.full((len(self.ids), len(self.ids)), hidden, dtype=dtype)
        start = 0
        for path in self.paths:
            end = max(start, path[-1] + 1)
            mask_NN[start:end, path[: len(path) - (end - start)]] = 0
            mask_NN[start:end, start:end].triu_(1)
            start = end
        return mask_NN[None, None]


def lay_out(sequences: Sequence[Ids], full: int, most: int) -> list[list[int]]:
    """Parts of numbers of ``sequences``, each part in sorted order, for one tree each.

    A part of ``full`` nodes takes only sequences that share half of their tokens with it, and has ``most``
    nodes at the end. A longer sequence has a part of its own.
    """
    parts: list[list[int]] = []
    nodes = 0
    last: Ids = ()
    for i in sorted(range(len(sequences)), key=sequences.__getitem__):
        ids = sequences[i]
        fresh = len(ids) - common(last, ids)
        if not parts or nodes + fresh > (most if 2 * fresh <= len(ids) else full):
            parts.append([])
            nodes, fresh = 0, len(ids)
        parts[-1].append(i)
        nodes, last = nodes + fresh, ids
    return parts


def common(a: Ids, b: Ids) -> int:
    """How many tokens both begin with."""
    least = min(len(a), len(b))
    return next((i for i in range(least) if a[i] != b[i]), least)
