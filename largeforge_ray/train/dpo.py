"""Direct preference optimisation, Rafailov et al. 2023 (arXiv:2305.18290).

h = [log p(chosen) - log p_ref(chosen)] - [log p(rejected) - log p_ref(rejected)]
sigmoid:  -(1 - s) log sigma(beta h) - s log sigma(-beta h)        s: label smoothing
hinge:    max(0, 1 - beta h)                                       arXiv:2305.10425
ipo:      (h' - 1 / (2 beta))^2, h' from means over tokens         arXiv:2310.12036
"""

from __future__ import annotations

from largeforge_ray.train.batch import Scores, Tensor
from largeforge_ray.train.objective import Known, LossSum, Objective, pairs


def dpo_losses(h_R: Tensor, *, beta: float, loss: str, label_smoothing: float = 0.0) -> Tensor:
    """Loss of each pair from its difference of log-ratios (means over tokens for ``ipo``)."""
    import torch.nn.functional as F

    if loss == "hinge":
        return (1 - beta * h_R).clamp(min=0)
    if loss == "ipo":
        return (h_R - 1 / (2 * beta)) ** 2
    swapped = label_smoothing * F.logsigmoid(-beta * h_R)
    return -(1 - label_smoothing) * F.logsigmoid(beta * h_R) - swapped


class DpoObjective(Objective):
    def loss(self, output: Scores, known: Known) -> LossSum:
        o = self.options
        ratios_S = output.sums_S() - known.reference_S
        chosen_R, rejected_R = pairs(ratios_S)
        compared_S = ratios_S / output.counts_S() if o.loss == "ipo" else ratios_S
        first_R, second_R = pairs(compared_S)
        losses_R = dpo_losses(first_R - second_R, beta=o.beta, loss=o.loss, label_smoothing=o.label_smoothing)
        return LossSum(losses_R.sum(), preference_figures(o.beta * chosen_R, o.beta * rejected_R))


def preference_figures(chosen_R: Tensor, rejected_R: Tensor) -> dict[str, Tensor]:
    """Share of pairs whose chosen answer has the higher reward, and by how much."""
    return {
        "accuracy": (chosen_R > rejected_R).float().sum(),
        "margin": (chosen_R - rejected_R).detach().sum(),
    }
