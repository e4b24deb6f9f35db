"""Group relative policy optimisation, Shao et al. 2024 (arXiv:2402.03300): answers judged against each other.

A  = (r - mean of the group's r) / (std of the group's r + 1e-4)
p  = pi(y_t) / pi_old(y_t)
w  = min(pi_old(y_t) / pi_sampler(y_t), cap)       no gradient; Yao et al. 2025, truncated importance sampling
k  = pi_base / pi - log(pi_base / pi) - 1          Schulman's k3 estimate of the divergence from the base
L  = mean over all tokens of a step of  -w min(p A, clip(p, 1 - clip, 1 + clip_high) A) + beta k

The mean over tokens and the wider upper clip are DAPO's, Yu et al. 2025 (arXiv:2503.14476). There is no value
model: a group's mean stands in for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from largeforge_ray.errors import DataError
from largeforge_ray.train.batch import Encoded, Scores, Tensor
from largeforge_ray.train.objective import Known, LossSum, Objective, Render

STD_FLOOR = 1e-4


@dataclass(frozen=True, slots=True)
class Drawn:
    """What is known of drawn answers, S of them with N tokens together.

    Log-probabilities of the tokens when they were drawn: ``old_N`` by this model, None if it takes one update
    on them only; ``sampler_N`` by the engine, None if this model drew them; ``reference_N`` by the base,
    None without ``beta``.
    """

    advantage_S: Tensor
    old_N: Tensor | None = None
    sampler_N: Tensor | None = None
    reference_N: Tensor | None = None


def advantages(rewards_RG: Tensor) -> Tensor:
    """Each answer's reward against its group's, ``(R, G)``; 0 in a group of equal rewards."""
    import torch

    spread_R1 = rewards_RG.std(1, keepdim=True)
    made_RG = (rewards_RG - rewards_RG.mean(1, keepdim=True)) / (spread_R1 + STD_FLOOR)
    # Rounding of the mean is no signal.
    return torch.where((rewards_RG == rewards_RG[:, :1]).all(1, keepdim=True), 0.0, made_RG)


def grpo_losses(
    logps_N: Tensor, old_N: Tensor, advantage_N: Tensor, *, clip: float, clip_high: float
) -> Tensor:
    """The clipped loss of each token, without correction and divergence."""
    import torch

    ratio_N = (logps_N - old_N).exp()
    clipped_N = ratio_N.clamp(1 - clip, 1 + clip_high)
    return -torch.minimum(ratio_N * advantage_N, clipped_N * advantage_N)


def divergences(logps_N: Tensor, reference_N: Tensor) -> Tensor:
    """The k3 estimate of each token: never negative, and without bias over tokens drawn from the model."""
    log_ratio_N = reference_N - logps_N
    return log_ratio_N.exp() - log_ratio_N - 1


class GrpoObjective(Objective):
    """A row is a prompt; the sequences that are learned are drawn in every step (``rollout_course``)."""

    per_token = True
    trained = (0,)
    figures = ("kl", "clipped", "engine_gap")

    def sequences(self, row: dict[str, Any], other: dict[str, Any], render: Render) -> list[Encoded | None]:
        if row["check"] is None and self.options.reward_model is None:
            raise DataError("no check, so nothing judges an answer; give answer and check, or a reward_model")
        return [render(row["messages"], len(row["messages"]))]

    def loss(self, output: Scores, known: Known) -> LossSum:
        o, drawn, logps_N = self.options, known.signals, output.logps_N
        old_N = logps_N.detach() if drawn.old_N is None else drawn.old_N
        losses_N = grpo_losses(
            logps_N, old_N, drawn.advantage_S[output.sequence_N], clip=o.clip, clip_high=o.clip_high
        )
        ratio_N = (logps_N.detach() - old_N).exp()
        outside_N = (ratio_N < 1 - o.clip) | (ratio_N > 1 + o.clip_high)
        figures = {"clipped": self._by_answer(output, outside_N.float())}
        if drawn.sampler_N is not None:
            losses_N = losses_N * (old_N - drawn.sampler_N).exp().clamp(max=o.max_correction)
            figures["engine_gap"] = self._by_answer(output, (old_N - drawn.sampler_N).abs())
        if drawn.reference_N is not None:
            kl_N = divergences(logps_N, drawn.reference_N)
            losses_N = losses_N + o.beta * kl_N
            figures["kl"] = self._by_answer(output, kl_N.detach())
        return LossSum(losses_N.sum(), figures)

    @staticmethod
    def _by_answer(output: Scores, values_N: Tensor) -> Tensor:
        """The sum over answers of each one's mean over its tokens."""
        return Scores(values_N, output.sequence_N, output.sequences).means_S().sum()
