"""Feature distillation: hidden states that become a teacher's, Romero et al. 2014 (arXiv:1412.6550).

L = mean over tokens of  -log q(y)  +  weight * mean over pairs of |W h_s / rms(h_s) - h_t / rms(h_t)|^2 / H

y are the teacher's own tokens, h_s and h_t the states of a pair of layers where y is predicted, H is the
teacher's width, rms the root of a state's mean square. W, (H, width of the student), is learned with the
student and left behind with the training; it begins as the identity, so that layers taken from the teacher
begin where they were. The last layer's state is the one after the model's last norm.
"""

from __future__ import annotations

from typing import Any

from largeforge_ray.data.rows import HIDDEN
from largeforge_ray.errors import DataError
from largeforge_ray.models.states import unit
from largeforge_ray.train.batch import Batch, Encoded, Scores, Tensor
from largeforge_ray.train.distill import taught_sequence
from largeforge_ray.train.objective import Known, LossSum, Objective, Render


class FeaturesObjective(Objective):
    """``options.layers`` and ``options.width`` are known, as ``words.match_layers`` finds them."""

    per_token = True
    trained = (0,)
    figures = ("hard", "features")

    def own(self, model: Any, lane: str) -> dict[str, Any]:
        import torch

        like = next(model.parameters())
        eye_HS = torch.eye(self.options.width, model.config.hidden_size, device=like.device)
        self._projections = [torch.nn.Parameter(eye_HS.clone()) for _ in self.options.layers]
        return {f"projections.{lane}.{i}": p for i, p in enumerate(self._projections)}

    def sequences(self, row: dict[str, Any], other: dict[str, Any], render: Render) -> list[Encoded | None]:
        tokens, states = row.get("token_ids"), row.get(HIDDEN)
        if tokens is None or states is None:
            raise DataError(
                "no hidden states of a teacher; set hidden on the teach stage, or use algorithm: sft"
            )
        if not len(tokens) or not len(states) or len(states) % len(tokens):
            raise DataError(
                f"{len(tokens)} token_ids have {len(states)} numbers of hidden_states, and each has the same "
                "number of them; teach the rows again"
            )
        return [taught_sequence(row, render)]

    def forward(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor, Batch]:
        """Log-probabilities of the tokens ``(N,)`` and the projected states ``(N, layers, H)``."""
        import torch
        import torch.nn.functional as F

        packed = batch.borders is not None
        head = {"logits_to_keep": batch.at_N} if packed else {}
        made = model(**batch.inputs(), output_hidden_states=True, **head)
        logits_NV = made.logits[0] if packed else made.logits.flatten(0, 1)[batch.at_N]
        logps_N = -F.cross_entropy(logits_NV.float(), batch.targets_N, reduction="none")
        projected = []
        for layer, projection_HS in zip(self.options.layers, self._projections, strict=True):
            # The first of hidden_states is what goes into the first layer.
            state_NS = made.hidden_states[layer + 1].flatten(0, 1)[batch.at_N]
            projected.append(F.linear(unit(state_NS), projection_HS.float()))
        return logps_N, torch.stack(projected, 1), batch

    def loss(self, output: tuple[Tensor, Tensor, Batch], known: Known) -> LossSum:
        logps_N, student_NLH, batch = output
        teacher_NLH = known.signals[HIDDEN].float().view_as(student_NLH)
        apart_N = (student_NLH - teacher_NLH).square().mean((1, 2))
        losses_N = self.options.weight * apart_N - logps_N
        figures = {"hard": -logps_N.detach(), "features": apart_N.detach()}
        by_row = {n: Scores(v, batch.sequence_N, batch.sequences).means_S().sum() for n, v in figures.items()}
        return LossSum(losses_N.sum(), by_row)
