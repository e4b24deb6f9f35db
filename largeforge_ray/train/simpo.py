"""Simple preference optimisation, Meng et al. 2024 (arXiv:2405.14734): mean log-probability as reward.

L = -log sigma(beta [l(chosen) - l(rejected)] - gamma)
"""

from __future__ import annotations

from largeforge_ray.train.batch import Scores, Tensor
from largeforge_ray.train.dpo import preference_figures
from largeforge_ray.train.objective import Known, LossSum, Objective, pairs


def simpo_losses(chosen_R: Tensor, rejected_R: Tensor, *, beta: float, gamma: float) -> Tensor:
    """Loss of each pair from the mean token log-probabilities of its answers."""
    import torch.nn.functional as F

    return -F.logsigmoid(beta * (chosen_R - rejected_R) - gamma)


class SimpoObjective(Objective):
    def loss(self, output: Scores, known: Known) -> LossSum:
        o = self.options
        chosen_R, rejected_R = pairs(output.means_S())
        losses_R = simpo_losses(chosen_R, rejected_R, beta=o.beta, gamma=o.gamma)
        return LossSum(losses_R.sum(), preference_figures(o.beta * chosen_R, o.beta * rejected_R))
