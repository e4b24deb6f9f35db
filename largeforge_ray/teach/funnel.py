"""How many teacher rows there are, how many stay, and why the others do not."""

from __future__ import annotations

from collections import Counter
from typing import Any

from largeforge_ray.teach.recipe import reason, stays

Row = dict[str, Any]


class Funnel:
    """Counts rows one after another; ``near`` is for whoever finds near duplicates among what is made."""

    def __init__(self, keep: str) -> None:
        self._keep = keep
        self.counts: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._usd = 0.0
        self._prompt, self._said = "", set[str]()
        self.near = 0

    def add(self, row: Row) -> None:
        kept = stays(row, self._keep)
        if kept:
            self._count_duplicate(row)
        self.counts["kept" if kept else "failed" if row["error"] is not None else "dropped"] += 1
        self.counts["tokens"] += row["completion_tokens"]
        self.counts["prompt_tokens"] += row["prompt_tokens"]
        self.counts["cached_tokens"] += row["cached_tokens"]
        self._usd += row["usd"]
        if why := reason(row, self._keep):
            self._reasons[why] += 1

    def _count_duplicate(self, row: Row) -> None:
        # A prompt's rows come one after another, so only its own answers are held.
        if row["item_hash"] != self._prompt:
            self._prompt, self._said = row["item_hash"], set()
        text = row["text"].strip()
        self.counts["duplicates"] += text in self._said
        self._said.add(text)

    def common(self) -> str:
        """The commonest reasons, for an error."""
        return ", ".join(f"{why} ({n})" for why, n in self._reasons.most_common(3))

    def numbers(self) -> dict[str, Any]:
        """``duplicates`` are rows that stay and say what another one says."""
        names = ("kept", "dropped", "failed", "tokens", "prompt_tokens", "cached_tokens")
        numbers: dict[str, Any] = {name: self.counts[name] for name in names}
        numbers |= {"duplicates": self.counts["duplicates"], "near_duplicates": self.near}
        numbers["reasons"] = dict(self._reasons.most_common(20))
        return numbers | ({"usd": round(self._usd, 6)} if self._usd else {})
