"""Kahneman-Tversky optimisation, Ethayarajh et al. 2024 (arXiv:2402.01306): answers judged one by one.

r  = log p(y) - log p_ref(y)
z0 = max(0, mean over the step of r for answers to other prompts)      no gradient
L  = w_good (1 - sigma(beta (r - z0)))  or  w_bad (1 - sigma(beta (z0 - r)))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from largeforge_ray.data.forms import prompt_turns
from largeforge_ray.train.batch import Encoded, Scores, Tensor
from largeforge_ray.train.objective import Known, LossSum, Objective, Render


def kto_losses(
    ratio_R: Tensor, good_R: Tensor, z0: Tensor, *, beta: float, good_weight: float, bad_weight: float
) -> Tensor:
    """Loss of each answer from its log-ratio and its label (bool)."""
    import torch

    signed_R = torch.where(good_R, ratio_R - z0, z0 - ratio_R)
    weight_R = torch.where(good_R, good_weight, bad_weight)
    return weight_R * (1 - torch.sigmoid(beta * signed_R))


class KtoObjective(Objective):
    """Sequence 0 of a row is its answer, sequence 1 its prompt with the neighbour's answer."""

    trained = (0,)
    figures = ("accuracy",)
    observed = (1,)

    def sequences(self, row: dict[str, Any], other: dict[str, Any], render: Render) -> list[Encoded | None]:
        prompt, asked = prompt_turns(row["messages"]), prompt_turns(other["messages"])
        answers = row["messages"][len(prompt) :], other["messages"][len(asked) :]
        return [render([*prompt, *answer], len(prompt)) for answer in answers]

    def context(self, observed: Sequence[tuple[Scores, Known]], total: Callable[[Tensor], Tensor]) -> Any:
        import torch

        sums = torch.zeros(2)
        for scores, known in observed:
            ratios_S = scores.sums_S() - known.reference_S
            sums += torch.stack([ratios_S.sum(), torch.tensor(float(scores.sequences))]).cpu()
        sums = total(sums)
        return (sums[0] / sums[1]).clamp(min=0)

    def loss(self, output: Scores, known: Known) -> LossSum:
        o = self.options
        ratio_R = output.sums_S() - known.reference_S
        losses_R = kto_losses(
            ratio_R,
            known.label_R,
            known.context,
            beta=o.beta,
            good_weight=o.desirable_weight,
            bad_weight=o.undesirable_weight,
        )
        right_R = (ratio_R > known.context) == known.label_R
        return LossSum(losses_R.sum(), {"accuracy": right_R.float().sum()})
