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
        self.own_P = np.sort(_nearest(own_PP))
        toward_N = _nearest(background.vectors_ND @ vectors_PD.T)
        # What lies in the middle of a territory is no outside of it, whichever expert had it before.
        others_N = np.array([label != name for label in background.labels], bool)
        self.outside_N = others_N & (toward_N < np.median(self.own_P))
        beyond_ND = background.vectors_ND[self.outside_N]
        beyond_NN = beyond_ND @ beyond_ND.T
        np.fill_diagonal(beyond_NN, -1.0)
        inside, inside_spread = _middle(_nearest(own_PP) - _nearest(vectors_PD @ beyond_ND.T))
        beyond, beyond_spread = _middle(toward_N[self.outside_N] - _nearest(beyond_NN))
        self.middle = (inside + beyond) / 2
        # Of two normal distributions with one spread the logarithm of the odds is a straight line.
        self.slope = max(inside - beyond, 0.0) / max(inside_spread, beyond_spread, LEAST_SPREAD) ** 2


class _Map:
    """All territories side by side, so that a text is compared with them in a few array operations."""

    def __init__(self, territories: Sequence[_Territory], background: Background) -> None:
        sizes_E = [len(t.vectors_PD) for t in territories]
        self._there_EP = np.arange(max(sizes_E))[None] < np.array(sizes_E)[:, None]
        self._vectors_XD = np.concatenate([t.vectors_PD for t in territories])
        self._own_EP = np.full(self._there_EP.shape, np.inf)
        self._own_EP[self._there_EP] = np.concatenate([t.own_P for t in territories])
        self._sizes_E = np.array(sizes_E)
        self._background_ND = background.vectors_ND
        self._outside_EN = np.stack([t.outside_N for t in territories])
        self._middle_E = np.array([t.middle for t in territories])
        self._slope_E = np.array([t.slope for t in territories])

    def chances(self, vector_D: Floats) -> tuple[Any, Any]:
        """For each territory 0..1 that a text is one for it, and how alike they are, E and E."""
        alike_EP = np.full(self._there_EP.shape, -np.inf, np.float32)
        alike_EP[self._there_EP] = self._vectors_XD @ vector_D
        near_E = _nearest(alike_EP)
        background_EN = np.where(self._outside_EN, self._background_ND @ vector_D, -np.inf)
        nearer_E = near_E - _nearest(background_EN)
        odds_E = np.exp(np.clip(self._slope_E * (nearer_E - self._middle_E), -30, 30))
        # A hair's width, or a prompt of the territory itself would be unlike it by rounding.
        usual_E = (self._own_EP < near_E[:, None] + 1e-5).sum(axis=1) / self._sizes_E
        return odds_E / (1 + odds_E) * np.minimum(1.0, usual_E / UNUSUAL), near_E


class NeuralScorer:
    """The chance that a text is one for an expert rather than any other, both taken as equally likely.

    Nothing is trained: an expert's prompts alone say how much alike they are, and the background what others
    are like: it should be a sample of all that is asked. An expert with fewer than ``FEWEST`` prompts scores
    0.
    """

    name = "neural"

    def __init__(self, experts: Sequence[Expert], embed: Embed, background: Background) -> None:
        self._embed = embed
        self._names = tuple(expert.name for expert in experts)
        known = [expert for expert in experts if len(expert.territory.prompts) >= FEWEST]
        self._known = tuple(expert.name for expert in known)
        made = [_Territory(e.name, embed.embed_all(e.territory.prompts), background) for e in known]
        self._map = _Map(made, background) if made else None

    def score(self, text: str) -> tuple[dict[str, float], Callable[[str], str]]:
        """0..1 for every expert, and what an expert's score stands on."""
        return self.score_vector(self._embed.embed(text))

    def score_vector(self, vector_D: Floats) -> tuple[dict[str, float], Callable[[str], str]]:
        """As ``score``, of a text that is embedded already."""
        scores, near = dict.fromkeys(self._names, 0.0), dict.fromkeys(self._names, 0.0)
        if self._map is not None:
            chance_E, near_E = self._map.chances(vector_D)
            scores |= zip(self._known, np.round(chance_E, 4).tolist(), strict=True)
            near |= zip(self._known, near_E.tolist(), strict=True)
        return scores, lambda expert: f"similarity {near[expert]:.2f} to the prompts of '{expert}'"


def _nearest(similarity_XP: Any) -> Any:
    """The mean of each row's largest that are not minus infinity, 0 of rows without any."""
    if not similarity_XP.shape[1]:
        return np.zeros(len(similarity_XP))
    kept = min(NEAREST, similarity_XP.shape[1])
    largest_XK = np.partition(similarity_XP, -kept, axis=1)[:, -kept:]
    there_XK = np.isfinite(largest_XK)
    return np.where(there_XK, largest_XK, 0.0).sum(axis=1) / np.maximum(1, there_XK.sum(axis=1))


def _middle(values: Any) -> tuple[float, float]:
    """Median, and the spread that a normal distribution with this median deviation has; 0, 0 of nothing."""
    if not len(values):
        return 0.0, 0.0
    median = float(np.median(values))
    return median, 1.4826 * float(np.median(np.abs(values - median)))
