"""Keywords where they are sure, meaning where it is, and both where neither is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from largeforge_ray.routing.keyword import KeywordScorer

if TYPE_CHECKING:
    from largeforge_ray.routing.neural import NeuralScorer

KEYWORD_SURE, NEURAL_SURE, NEURAL_UNSURE = 0.8, 0.9, 0.6
"""Above the first the keyword scores stand, above the second the neural ones; below the third nothing is
blended, because what neither knows is the general expert's."""


class HybridScorer:
    """One of the two scorers speaks for all experts, so that their scores can be compared."""

    name = "hybrid"

    def __init__(self, keyword: KeywordScorer, neural: NeuralScorer) -> None:
        self._keyword, self._neural = keyword, neural

    def score(self, text: str) -> tuple[dict[str, float], Callable[[str], str]]:
        """0..1 for every expert, and what an expert's score stands on.

        A blend is the mean. An expert without keywords has nothing to blend with: its neural score stands.
        """
        by_word, why_word = self._keyword.score(text)
        if max(by_word.values()) > KEYWORD_SURE:
            return by_word, why_word
        by_meaning, why_meaning = self._neural.score(text)
        if not NEURAL_UNSURE <= max(by_meaning.values()) <= NEURAL_SURE:
            return by_meaning, why_meaning
        blended = {
            name: round((score + by_word[name]) / 2, 4) if self._keyword.knows(name) else score
            for name, score in by_meaning.items()
        }
        return blended, lambda expert: f"{why_word(expert)}, {why_meaning(expert)}"
