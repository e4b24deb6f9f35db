"""Distilling step by step, Hsieh et al. 2023 (arXiv:2305.02301): answer and reasoning as two tasks.

L = -l(answer | prompt) - weight * l(rationale | prompt, ask),  l the mean log-probability of a text's tokens

The answer's prompt is the row's own, so that what is served needs no prefix; ``ask`` is put behind it for the
rationale.
"""

from __future__ import annotations

from typing import Any

from largeforge_ray.data.forms import prompt_turns
from largeforge_ray.train.batch import Encoded, Scores
from largeforge_ray.train.objective import Known, LossSum, Objective, Render, pairs


class RationaleObjective(Objective):
    figures = ("answer_loss", "rationale_loss")

    def sequences(self, row: dict[str, Any], other: dict[str, Any], render: Render) -> list[Encoded | None]:
        asked = prompt_turns(row["messages"])
        why = [*asked[:-1], asked[-1] | {"content": f"{asked[-1]['content']}\n\n{self.options.ask}"}]
        told = {"role": "assistant", "content": row["rationale"]}
        return [render(row["messages"], len(asked)), render([*why, told], len(why))]

    def loss(self, output: Scores, known: Known) -> LossSum:
        answer_R, rationale_R = pairs(-output.means_S())
        figures = {"answer_loss": answer_R.detach().sum(), "rationale_loss": rationale_R.detach().sum()}
        return LossSum((answer_R + self.options.weight * rationale_R).sum(), figures)
