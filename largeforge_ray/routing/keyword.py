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
        self._totals = {expert: sum(keywords.values()) for expert, keywords in self._keywords.items()}
        # By word, so that many experts cost what their words in the text cost, and not all of theirs.
        self._whose: dict[str, list[tuple[str, float]]] = {}
        for expert, keywords in self._keywords.items():
            for word, weight in keywords.items():
                self._whose.setdefault(word, []).append((expert, weight))
        self._known = frozenset(self._whose)

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

        met: dict[str, float] = {}
        for word in self._known & found:
            for expert, weight in self._whose[word]:
                met[expert] = met.get(expert, 0.0) + weight
        scores = dict.fromkeys(self._keywords, 0.0)
        for expert, weight in met.items():
            scores[expert] = round(weight / self._totals[expert], 4)
        return scores, why


def _folded(keywords: dict[str, float]) -> dict[str, float]:
    """Keywords as ``words`` would find them. A phrase counts as its words, each with the phrase's weight."""
    return {word: weight for keyword, weight in keywords.items() for word in words(keyword) if weight > 0}
