"""Scores by keywords of the experts' territories."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from largeforge_ray.routing.experts import Expert
from largeforge_ray.routing.features import words


class KeywordScorer:
    """How much of an expert's keywords a text has: the weight of those found over the weight of them all."""

    name = "keyword"

    def __init__(self, experts: Iterable[Expert]) -> None:
        # Folded once here, because keywords are compared with folded words on every request.
        self._keywords = {expert.name: _folded(expert.territory.keywords) for expert in experts}

    def knows(self, expert: str) -> bool:
        """Whether the expert has keywords at all."""
        return bool(self._keywords[expert])

    def score(self, text: str) -> tuple[dict[str, float], Callable[[str], str]]:
        """0..1 for every expert, and what an expert's score stands on."""
        found = words(text)

        def why(expert: str) -> str:
            # Counts only: the words themselves would carry a piece of the prompt into logs and headers.
            keywords = self._keywords[expert]
            return f"{len(keywords.keys() & found)} of {len(keywords)} keywords of '{expert}'"

        return {name: _coverage(keywords, found) for name, keywords in self._keywords.items()}, why


def _folded(keywords: dict[str, float]) -> dict[str, float]:
    """Keywords as ``words`` would find them. A phrase counts as its words, each with the phrase's weight."""
    return {word: weight for keyword, weight in keywords.items() for word in words(keyword) if weight > 0}


def _coverage(keywords: dict[str, float], found: frozenset[str]) -> float:
    total = sum(keywords.values())
    return round(sum(w for word, w in keywords.items() if word in found) / total, 4) if total else 0.0
