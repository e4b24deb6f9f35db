"""Scores by the meaning of a text: how near it lies to an expert's training prompts.

E experts, P prompts of one of them, N prompts of the background, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from largeforge_ray.routing.encoder import Floats
from largeforge_ray.routing.experts import Expert

NEAREST = 3
"""Prompts whose mean similarity counts: one alone may be an outlier."""
FEWEST = 4
"""Prompts that show how much the prompts of a territory are alike."""
LEAST_SPREAD = 0.02
"""Of similarities. Prompts of one template are so alike that the next one would be found too unlike them."""
UNUSUAL = 0.1
"""A text less like the territory than all but this share of its own prompts loses its score by degrees: what
is nearer to it than to the background may still be something that neither has seen."""


class Embed(Protocol):
    """What turns text into vectors of length 1, so that a product is a cosine."""

    def embed(self, text: str) -> Floats: ...

    def embed_all(self, texts: Sequence[str]) -> Floats: ...


@dataclass(frozen=True, slots=True)
class Background:
    """Prompts of any kind, and the expert each is for: what a territory has to be told from."""

    labels: tuple[str, ...]
    vectors_ND: Floats


class _Territory:
    """An expert's prompts, and how much nearer than the background a text is that is as likely in as out."""

    def __init__(self, name: str, vectors_PD: Floats, background: Background) -> None:
        self.vectors_PD = vectors_PD
        own_PP = vectors_PD @ vectors_PD.T
        np.fill_diagonal(own_PP, -1.0)
        self._own_P = np.sort(_nearest(own_PP))
        toward_N = _nearest(background.vectors_ND @ vectors_PD.T)
        # What lies in the middle of a territory is no outside of it, whichever expert had it before.
        others_N = np.array([label != name for label in background.labels], bool)
        self._outside_N = others_N & (toward_N < np.median(self._own_P))
        beyond_ND = background.vectors_ND[self._outside_N]
        beyond_NN = beyond_ND @ beyond_ND.T
        np.fill_diagonal(beyond_NN, -1.0)
        inside, inside_spread = _middle(_nearest(own_PP) - _nearest(vectors_PD @ beyond_ND.T))
        beyond, beyond_spread = _middle(toward_N[self._outside_N] - _nearest(beyond_NN))
        self._middle = (inside + beyond) / 2
        # Of two normal distributions with one spread the logarithm of the odds is a straight line.
        self._slope = max(inside - beyond, 0.0) / max(inside_spread, beyond_spread, LEAST_SPREAD) ** 2

    def chance(self, vector_D: Floats, background_N: Any) -> tuple[float, float]:
        """0..1 that a text is one for this expert, and how alike they are; ``background_N`` is how alike the
        background's prompts are to the text."""
        near = float(_nearest((self.vectors_PD @ vector_D)[None])[0])
        nearer = near - float(_nearest(background_N[None, self._outside_N])[0])
        odds = np.exp(np.clip(self._slope * (nearer - self._middle), -30, 30))
        # A hair's width, or a prompt of the territory itself would be unlike it by rounding.
        usual = np.searchsorted(self._own_P, near + 1e-5) / len(self._own_P)
        return round(float(odds / (1 + odds) * min(1.0, usual / UNUSUAL)), 4), near


class NeuralScorer:
    """The chance that a text is one for an expert rather than any other, both taken as equally likely.

    Nothing is trained: an expert's prompts alone say how much alike they are, and the background what others
    are like: it should be a sample of all that is asked. An expert with fewer than ``FEWEST`` prompts scores
    0.
    """

    name = "neural"

    def __init__(self, experts: Sequence[Expert], embed: Embed, background: Background) -> None:
        self._embed, self._background_ND = embed, background.vectors_ND
        self._names = tuple(expert.name for expert in experts)
        self._territories = {
            expert.name: _Territory(expert.name, embed.embed_all(expert.territory.prompts), background)
            for expert in experts
            if len(expert.territory.prompts) >= FEWEST
        }

    def score(self, text: str) -> tuple[dict[str, float], Callable[[str], str]]:
        """0..1 for every expert, and what an expert's score stands on."""
        return self.score_vector(self._embed.embed(text))

    def score_vector(self, vector_D: Floats) -> tuple[dict[str, float], Callable[[str], str]]:
        """As ``score``, of a text that is embedded already."""
        scores, near = dict.fromkeys(self._names, 0.0), dict.fromkeys(self._names, 0.0)
        background_N = self._background_ND @ vector_D
        for name, territory in self._territories.items():
            scores[name], near[name] = territory.chance(vector_D, background_N)
        return scores, lambda expert: f"similarity {near[expert]:.2f} to the prompts of '{expert}'"


def _nearest(similarity_XP: Any) -> Any:
    """The mean of each row's largest, 0 of rows without any."""
    if not similarity_XP.shape[1]:
        return np.zeros(len(similarity_XP))
    kept = min(NEAREST, similarity_XP.shape[1])
    return np.partition(similarity_XP, -kept, axis=1)[:, -kept:].mean(axis=1)


def _middle(values: Any) -> tuple[float, float]:
    """Median, and the spread that a normal distribution with this median deviation has; 0, 0 of nothing."""
    if not len(values):
        return 0.0, 0.0
    median = float(np.median(values))
    return median, 1.4826 * float(np.median(np.abs(values - median)))
