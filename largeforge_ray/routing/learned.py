"""Scores by outcomes: the quality each expert is predicted to have for a text.

B buckets of words, D dimensions of an embedding, S signs of the surface, N prompts learnt from, E experts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from largeforge_ray.routing import traits
from largeforge_ray.routing.encoder import Floats
from largeforge_ray.routing.experts import Expert
from largeforge_ray.routing.neural import Embed, NeuralScorer

FILE = "learned.safetensors"
EMBEDDING_SCALE, SURFACE_SCALE = 0.5, 0.05
"""Beside words of length 1 together, so that one penalty suits all three."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A text as the predictors see it: its buckets, its meaning and its surface."""

    buckets: NDArray[np.int64]
    vector_D: Floats
    surface_S: Floats


def see(text: str, embed: Embed) -> Seen:
    """All that is read of a text, once."""
    return Seen(traits.buckets(text), embed.embed(text), traits.surface(text))


@dataclass(frozen=True, slots=True)
class Linear:
    """A logistic model for each expert; rarity, centre and spread set the features to scale."""

    rarity_B: Floats
    words_BE: Floats
    centre_D: Floats
    meaning_DE: Floats
    surface_centre_S: Floats
    surface_spread_S: Floats
    surface_SE: Floats
    bias_E: Floats

    def predict(self, seen: Seen) -> Any:
        """E qualities, 0..1."""
        return 1 / (1 + np.exp(-self._logits(seen)))

    def _logits(self, seen: Seen) -> Any:
        weights = self.rarity_B[seen.buckets]
        length = np.linalg.norm(weights) or 1.0
        signs = (seen.surface_S - self.surface_centre_S) / self.surface_spread_S
        return (
            (weights / length) @ self.words_BE[seen.buckets]
            + (seen.vector_D - self.centre_D) @ self.meaning_DE * EMBEDDING_SCALE
            + signs @ self.surface_SE * SURFACE_SCALE
            + self.bias_E
        )


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The outcomes of the prompts most like a text in meaning and surface."""

    rows_NX: Any
    quality_NE: Floats
    centre_D: Floats
    surface_centre_S: Floats
    surface_spread_S: Floats
    count_1: Any

    def __post_init__(self) -> None:
        # Half precision is for the file; products of it are slow.
        object.__setattr__(self, "rows_NX", self.rows_NX.astype(np.float32))

    def predict(self, seen: Seen) -> Any:
        """E qualities, 0..1."""
        signs = (seen.surface_S - self.surface_centre_S) / self.surface_spread_S * SURFACE_SCALE
        row_X = np.concatenate([(seen.vector_D - self.centre_D) * EMBEDDING_SCALE, signs])
        likeness_N = self.rows_NX @ row_X
        kept = min(int(self.count_1[0]), len(likeness_N))
        return self.quality_NE[np.argpartition(-likeness_N, kept - 1)[:kept]].mean(axis=0)


@dataclass(frozen=True, slots=True)
class Column:
    """An expert that outcomes are known of. ``artifact`` is its 16 hex digits, None where labels name it."""

    name: str
    artifact: str | None

    def is_of(self, expert: Expert) -> bool:
        """Whether it speaks of this expert; of another adapter under the same name it does not."""
        return self.name == expert.name and self.artifact in (None, expert.artifact)


@dataclass(frozen=True, slots=True)
class Learned:
    """Predictors whose mean counts, and whom their columns are about."""

    columns: tuple[Column, ...]
    predictors: tuple[Linear | Neighbours, ...]

    def predict(self, seen: Seen) -> Any:
        """E qualities, 0..1."""
        return np.mean([predictor.predict(seen) for predictor in self.predictors], axis=0)

    def save(self, folder: Path) -> None:
        """Write ``FILE``."""
        from safetensors.numpy import save_file

        tensors = {
            f"{type(predictor).__name__}.{name}": np.ascontiguousarray(value)
            for predictor in self.predictors
            for name, value in asdict(predictor).items()
        }
        columns = json.dumps([asdict(column) for column in self.columns])
        save_file(tensors, folder / FILE, metadata={"columns": columns})


def load_learned(folder: Path) -> Learned:
    """Read what ``Learned.save`` wrote."""
    from safetensors import safe_open

    # Annotated as Any because the package ships no types for its handle.
    with safe_open(folder / FILE, "numpy") as opened:
        file: Any = opened
        columns = tuple(Column(**column) for column in json.loads(file.metadata()["columns"]))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    predictors = []
    for kind in (Linear, Neighbours):
        mine = {name.partition(".")[2]: t for name, t in tensors.items() if name.startswith(kind.__name__)}
        if mine:
            predictors.append(kind(**mine))
    return Learned(columns, tuple(predictors))


class LearnedScorer:
    """Predicted quality; an expert that came after the outcomes is worth its territory's chance."""

    name = "learned"

    def __init__(
        self, experts: Sequence[Expert], learned: Learned, embed: Embed, neural: NeuralScorer
    ) -> None:
        self._learned, self._embed, self._neural = learned, embed, neural
        self._places = {
            expert.name: place
            for expert in experts
            for place, column in enumerate(learned.columns)
            if column.is_of(expert)
        }
        self._newer = len(self._places) < len(experts)

    def score(self, text: str) -> tuple[dict[str, float], Callable[[str], str]]:
        """0..1 for every expert, and what an expert's score stands on."""
        seen = see(text, self._embed)
        quality_E = self._learned.predict(seen)
        scores, why_newer = self._neural.score_vector(seen.vector_D) if self._newer else ({}, str)
        scores = scores | {name: round(float(quality_E[place]), 4) for name, place in self._places.items()}

        def why(expert: str) -> str:
            if expert not in self._places:
                return why_newer(expert)
            return f"predicted quality {scores[expert]:.2f} of '{expert}'"

        return scores, why
