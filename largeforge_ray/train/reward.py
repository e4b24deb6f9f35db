"""A reward model on preference pairs: Bradley and Terry 1952, as in Ouyang et al. 2022 (arXiv:2203.02155).

    L = -log sigma(r(chosen) - r(rejected)) + centering (r(chosen) + r(rejected))^2

``r`` is a linear head on the hidden state of the last token.
"""

from __future__ import annotations

from typing import Any

from largeforge_ray.train.batch import Batch, Tensor
from largeforge_ray.train.dpo import preference_figures
from largeforge_ray.train.objective import Known, LossSum, Objective, pairs


def reward_losses(chosen_R: Tensor, rejected_R: Tensor, *, centering: float) -> Tensor:
    """Loss of each pair from the rewards of its answers."""
    import torch.nn.functional as F

    return -F.logsigmoid(chosen_R - rejected_R) + centering * (chosen_R + rejected_R) ** 2


class RewardObjective(Objective):
    def forward(self, model: Any, batch: Batch) -> Tensor:
        """Rewards ``(S,)``: the backbone runs packed, the head on last tokens only."""
        classifier = model.get_base_model() if hasattr(model, "get_base_model") else model
        backbone = getattr(classifier, classifier.base_model_prefix)
        hidden_BTD = backbone(**batch.inputs()).last_hidden_state
        return classifier.score(hidden_BTD.flatten(0, 1)[batch.last_S]).float().squeeze(-1)

    def loss(self, output: Tensor, known: Known) -> LossSum:
        chosen_R, rejected_R = pairs(output)
        losses_R = reward_losses(chosen_R, rejected_R, centering=self.options.centering)
        return LossSum(losses_R.sum(), preference_figures(chosen_R, rejected_R))
