"""What an algorithm is to the worker loop: sequences from a row, and a loss from scores.

A loss is a *sum* over the sequences of a pass; the loop divides by the weight of the whole step, so
neither the number of passes nor of workers changes a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from largeforge_ray.train.batch import Batch, Encoded, Scores, Tensor, score

Render = Callable[[Sequence[dict[str, str]], int], Encoded | None]
"""``render(turns, first)``: a chat's tokens, assistant turns from ``first`` on learned; None if too long.

Without turns from ``first`` on it is a prompt, through the words after which the assistant begins.
"""


@dataclass(frozen=True, slots=True)
class LossSum:
    """``total`` carries the gradient; ``figures`` are sums over rows of what is worth watching."""

    total: Tensor
    figures: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a pass beside its tokens. R rows of k sequences each: S = R * k.

    ``reference_S`` are summed log-probabilities of the reference, None if the algorithm compares
    with none; ``label_R`` whether a row's answer is good; ``context`` what ``Objective.context`` returned;
    ``signals`` what the rows' source knows of their learned tokens: of taught rows, columns by name.
    """

    reference_S: Tensor | None = None
    label_R: Tensor | None = None
    context: Any = None
    signals: Any = None


class Objective:
    """Base of the algorithms. ``options`` is the algorithm's own configuration."""

    per_token: ClassVar[bool] = False
    """Whether a row weighs as much as its learned tokens, or every row the same."""
    trained: ClassVar[tuple[int, ...]] = (0, 1)
    """Which of a row's sequences the loss is computed on."""
    figures: ClassVar[tuple[str, ...]] = ("accuracy", "margin")
    """Names of what ``loss`` returns beside the loss."""
    observed: ClassVar[tuple[int, ...]] = ()
    """Which of a row's sequences ``context`` looks at, without a gradient."""

    def __init__(self, options: Any) -> None:
        self.options = options

    def own(self, model: Any, lane: str) -> dict[str, Any]:
        """Fresh parameters by name that are trained beside the model's, and are no part of the product."""
        return {}

    def sequences(self, row: dict[str, Any], other: dict[str, Any], render: Render) -> list[Encoded | None]:
        """A row's sequences; ``other`` is its neighbour. None stands for one that is too long."""
        prompt = row["messages"]
        return [render([*prompt, *row[side]], len(prompt)) for side in ("chosen", "rejected")]

    def forward(self, model: Any, batch: Batch) -> Any:
        """The model's judgement of a pass, with a gradient."""
        return score(model, batch)

    def context(self, observed: Sequence[tuple[Scores, Known]], total: Callable[[Tensor], Tensor]) -> Any:
        """What the loss has to know of the whole step; ``total`` sums a tensor over the workers."""
        return None

    def loss(self, output: Any, known: Known) -> LossSum:
        """The loss of a pass from what ``forward`` returned."""
        raise TypeError(f"{type(self).__name__} does not say what its loss is")


def pairs(values_S: Tensor) -> tuple[Tensor, Tensor]:
    """Sequences of R pairs as their first and second halves, each ``(R,)``."""
    values_R2 = values_S.view(-1, 2)
    return values_R2[:, 0], values_R2[:, 1]
