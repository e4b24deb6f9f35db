"""On-policy distillation: the student draws, the teacher scores what was drawn.

Gu et al. 2023 (arXiv:2306.08543), Agarwal et al. 2023 (arXiv:2306.13649). With y drawn from the student p and
scored by the teacher q, over the tokens of a step

g_t   = log p(y_t | y_<t) - log q(y_t | y_<t)
KL    = mean over t of g_t                       the reverse divergence, estimated without bias
grad  = mean over t of g_t grad log p(y_t | y_<t)

The gradient is that of each token's own divergence, with what was drawn before it held fixed; what a token
does to those after it is left out.
"""

from __future__ import annotations

from typing import Any

from largeforge_ray.train.batch import Encoded, Scores
from largeforge_ray.train.objective import Known, LossSum, Objective, Render


class OnPolicyObjective(Objective):
    """``Known.signals`` are the teacher's log-probabilities of the learned tokens, ``(N,)``."""

    per_token = True
    trained = (0,)
    figures = ()

    def sequences(self, row: dict[str, Any], other: dict[str, Any], render: Render) -> list[Encoded | None]:
        return [render(row["messages"], len(row["messages"]))]

    def loss(self, output: Scores, known: Known) -> LossSum:
        now_N = output.logps_N.detach()
        gap_N = now_N - known.signals
        # The first term is 0 and has the gradient, the second is the divergence and has none.
        return LossSum((gap_N * (output.logps_N - now_N) + gap_N).sum())
