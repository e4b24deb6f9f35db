"""Distillation from a teacher's stored probabilities, Hinton et al. 2015 (arXiv:1503.02531).

``reverse`` is Gu et al. 2023 (arXiv:2306.08543), ``jsd`` Agarwal et al. 2023 (arXiv:2306.13649).

L = mean over tokens of  alpha * -log q(y)  +  (1 - alpha) * T^2 * D(p, q)
D = KL(p || q)  forward,  KL(q || p)  reverse,  (KL(p || m) + KL(q || m)) / 2  with m = (p + q) / 2  jsd

y are the teacher's own tokens. p and q, teacher and student, have K + 1 classes: the teacher's K likeliest
tokens, and all others as one; q is softmax(z / T) summed so, and q(y) is at T = 1. Of the teacher,
probabilities t_i and the others' mass r are stored at T = 1; at T the others are taken to share r evenly:

p_i ~ t_i^(1/T)        p_others ~ (V - K) * (r / (V - K))^(1/T)

At T = 1 that assumes nothing. For T > 1 the others' true mass is not larger than this, for T < 1 not
smaller (Jensen).

Taking the others as one never adds to D (data processing). What D misses of the full divergence is, by the
chain rule, with p' and q' the distributions among the others:

forward  p_others * KL(p' || q')        at most  p_others * log(1 / min q')
reverse  q_others * KL(q' || p')        at most  q_others * log(1 / min p')
jsd                                     at most  (p_others + q_others) / 2 * log 2

With K = V nothing is missed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

from largeforge_ray.data.rows import SIGNALS
from largeforge_ray.errors import DataError
from largeforge_ray.train.batch import Batch, Encoded, Scores, Tensor, learned_logits
from largeforge_ray.train.objective import Known, LossSum, Objective, Render

LEAST_TAIL = -16.6
"""log 2^-24: float32 cannot tell a smaller mass beside the K likeliest from none."""
LEAST_SUM = 1e-30
"""Of exponentials that are 1 at the largest logit: keeps logarithm and gradient finite where all vanish."""


@dataclass(frozen=True, slots=True)
class Signals:
    """The teacher at N learned tokens: K likeliest ids, their log-probabilities, log of the rest's mass."""

    ids_NK: Tensor
    logps_NK: Tensor
    tail_N: Tensor


class DistillObjective(Objective):
    """A row is a prompt and the ids of the teacher's answer; its text is not tokenised again."""

    per_token = True
    trained = (0,)
    figures = ("hard", "soft")

    def sequences(self, row: dict[str, Any], other: dict[str, Any], render: Render) -> list[Encoded | None]:
        check_signals(row)
        return [taught_sequence(row, render)]

    def forward(self, model: Any, batch: Batch) -> tuple[Tensor, Batch]:
        return learned_logits(model, batch), batch

    def loss(self, output: tuple[Tensor, Batch], known: Known) -> LossSum:
        o, (logits_NV, batch) = self.options, output
        hard_N, soft_N = hard_and_soft(
            logits_NV,
            batch.targets_N,
            as_signals(known.signals),
            temperature=o.temperature,
            kind=o.divergence,
        )
        losses_N = o.alpha * hard_N + (1 - o.alpha) * o.temperature**2 * soft_N
        figures = {"hard": hard_N.detach(), "soft": soft_N.detach()}
        by_row = {n: Scores(v, batch.sequence_N, batch.sequences).means_S().sum() for n, v in figures.items()}
        return LossSum(losses_N.sum(), by_row)


def taught_sequence(row: dict[str, Any], render: Render) -> Encoded | None:
    """The prompt of a taught row and the ids of the answer as the teacher drew them."""
    answer, turns = [int(i) for i in row["token_ids"]], row["messages"][:-1]
    prompt = render(turns, len(turns))
    if prompt is None:
        return None
    return Encoded(prompt.ids + answer, [False] * len(prompt.ids) + [True] * len(answer))


def as_signals(columns: dict[str, Tensor]) -> Signals:
    """What a token table holds of N learned tokens, each column end to end."""
    tail_N = columns["tail_logprob"].float()
    ids_NK, logps_NK = (columns[name].view(len(tail_N), -1) for name in ("topk_ids", "topk_logprobs"))
    return Signals(ids_NK.long(), logps_NK.float(), tail_N)


def check_signals(row: dict[str, Any]) -> None:
    """Raises ``DataError`` if the signals of a taught answer are missing or do not fit together."""
    tokens, ids, logps, tail = (row.get(name) for name in SIGNALS)
    if tokens is None or ids is None or logps is None or tail is None:
        raise DataError("no probabilities of a teacher; set topk on the teach stage, or use algorithm: sft")
    n = len(tokens)
    if not n or not len(ids) or len(ids) % n or len(logps) != len(ids) or len(tail) != n:
        raise DataError(
            f"{n} token_ids have {len(ids)} topk_ids, {len(logps)} topk_logprobs and {len(tail)} "
            "tail_logprob, and k, k and 1 belong to each; teach the rows again"
        )


def divergence(
    student_logits_NV: Tensor,
    topk_ids_NK: Tensor,
    topk_logps_NK: Tensor,
    tail_N: Tensor,
    *,
    temperature: float,
    kind: str,
) -> Tensor:
    """D of each token in nats, ``(N,)``; log-probabilities are the teacher's at temperature 1.

    ``kind`` is ``forward``, ``reverse`` or ``jsd``. A tail of -inf is read as one that float32 cannot see.
    """
    picked_NK, rest_N = split(student_logits_NV, topk_ids_NK, topk_ids_NK.shape[1], temperature)
    signals = Signals(topk_ids_NK, topk_logps_NK, tail_N)
    return _between(_teacher(signals, student_logits_NV.shape[1], temperature), picked_NK, rest_N, kind)


def hard_and_soft(
    logits_NV: Tensor, targets_N: Tensor, signals: Signals, *, temperature: float, kind: str
) -> tuple[Tensor, Tensor]:
    """The cross-entropy with the targets at temperature 1, and ``divergence``: ``(N,)`` each.

    One pass over the logits gives both at temperature 1, two do at another.
    """
    import torch
    import torch.nn.functional as F

    wanted_NI = torch.cat([signals.ids_NK, targets_N[:, None]], 1)
    picked_NI, rest_N = split(logits_NV, wanted_NI, signals.ids_NK.shape[1], temperature)
    inside_NK, target_N = picked_NI[:, :-1], picked_NI[:, -1]
    soft_N = _between(_teacher(signals, logits_NV.shape[1], temperature), inside_NK, rest_N, kind)
    if temperature == 1:
        return torch.logaddexp(inside_NK.logsumexp(1), rest_N) - target_N, soft_N
    target_N1, others_N = split(logits_NV, targets_N[:, None], 1, 1.0)
    return F.softplus(others_N - target_N1[:, 0]), soft_N


def _teacher(signals: Signals, vocabulary: int, temperature: float) -> Tensor:
    """Log-probabilities of the classes at ``temperature``: ``(N, K + 1)``, or ``(N, K)`` without others."""
    import torch

    others = vocabulary - signals.ids_NK.shape[1]
    inside_NK = signals.logps_NK / temperature
    if others == 0:
        return inside_NK.log_softmax(1)
    even = math.log(others)
    tail_N = even + (signals.tail_N.clamp(min=LEAST_TAIL) - even) / temperature
    return torch.cat([inside_NK, tail_N[:, None]], 1).log_softmax(1)


def _between(teacher_NC: Tensor, inside_NK: Tensor, rest_N: Tensor, kind: str) -> Tensor:
    import torch

    student_NC = torch.cat([inside_NK, rest_N[:, None]], 1)[:, : teacher_NC.shape[1]].log_softmax(1)
    if kind == "forward":
        return _kl(teacher_NC, student_NC)
    if kind == "reverse":
        return _kl(student_NC, teacher_NC)
    middle_NC = torch.logaddexp(teacher_NC, student_NC) - math.log(2)
    return (_kl(teacher_NC, middle_NC) + _kl(student_NC, middle_NC)) / 2


def _kl(p_NC: Tensor, q_NC: Tensor) -> Tensor:
    return (p_NC.exp() * (p_NC - q_NC)).sum(1)


def split(logits_NV: Tensor, ids_NI: Tensor, inside: int, temperature: float) -> tuple[Tensor, Tensor]:
    """``z / T`` at the ids ``(N, I)``, and log sum exp of ``z / T`` over all but the first ``inside`` of them
    ``(N,)``; in float32, or in float64 where the logits are.

    The others are summed and not subtracted from 1, so a small mass has all its digits. One float32 copy
    of the logits is kept for the gradient, as cross-entropy does.
    """
    made: tuple[Tensor, Tensor] = _split().apply(logits_NV, ids_NI, inside, temperature)
    return made


@cache
def _split() -> Any:
    import torch

    class Split(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, logits_NV: Tensor, ids_NI: Tensor, inside: int, temperature: float) -> Any:
            kind = torch.promote_types(logits_NV.dtype, torch.float32)
            top_N1 = logits_NV.amax(1, keepdim=True).to(kind)
            exp_NV = (logits_NV - top_N1).div_(temperature).exp_().scatter_(1, ids_NI[:, :inside], 0.0)
            sum_N1 = exp_NV.sum(1, keepdim=True).clamp_(min=LEAST_SUM)
            ctx.save_for_backward(exp_NV, sum_N1, ids_NI)
            ctx.temperature, ctx.dtype = temperature, logits_NV.dtype
            rest_N = (top_N1 / temperature + sum_N1.log())[:, 0]
            return logits_NV.gather(1, ids_NI).to(kind) / temperature, rest_N

        @staticmethod
        def backward(ctx: Any, picked_NI: Tensor, rest_N: Tensor) -> Any:
            exp_NV, sum_N1, ids_NI = ctx.saved_tensors
            # In place: a second copy of the logits would double the memory, and nobody goes back twice.
            gradient_NV = exp_NV.mul_(rest_N[:, None] / sum_N1).scatter_add_(1, ids_NI, picked_NI)
            return gradient_NV.div_(ctx.temperature).to(ctx.dtype), None, None, None

    return Split
