"""Odds ratio preference optimisation, Hong et al. 2024 (arXiv:2403.07691): no reference model.

log odds(y) = l - log(1 - e^l),  l the mean log-probability of the answer's tokens
L = -l(chosen) - weight * log sigma(log odds(chosen) - log odds(rejected))
"""

from __future__ import annotations

from largeforge_ray.train.batch import Scores, Tensor
from largeforge_ray.train.dpo import preference_figures
from largeforge_ray.train.objective import Known, LossSum, Objective, pairs


def orpo_losses(chosen_R: Tensor, rejected_R: Tensor, *, weight: float) -> Tensor:
    """Loss of each pair from the mean token log-probabilities of its answers."""
    import torch
    import torch.nn.functional as F

    # 1 - e^l in the form that keeps its digits when l is close to 0.
    odds_R = (chosen_R - rejected_R) - (
        torch.log(-torch.expm1(chosen_R)) - torch.log(-torch.expm1(rejected_R))
    )
    return -chosen_R - weight * F.logsigmoid(odds_R)


class OrpoObjective(Objective):
    def loss(self, output: Scores, known: Known) -> LossSum:
        chosen_R, rejected_R = pairs(output.means_S())
        losses_R = orpo_losses(chosen_R, rejected_R, weight=self.options.weight)
        return LossSum(losses_R.sum(), preference_figures(chosen_R, rejected_R))
