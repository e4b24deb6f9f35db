"""The way of a lane that learns from its own answers: draw, judge, update.

R prompts of a step, G answers each; an answer is a row of the step's own token table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from largeforge_ray.train.batch import Encoded
from largeforge_ray.train.bench import Bench
from largeforge_ray.train.checkpoint import Progress
from largeforge_ray.train.grpo import Drawn, advantages
from largeforge_ray.train.judge import Judge
from largeforge_ray.train.loop import Course
from largeforge_ray.train.rollout import Answer, Prompt, Sampler
from largeforge_ray.train.tokens import TokenTable, in_memory


class RolloutTable(TokenTable):
    """Prompts with the answers drawn to them: learned are the answers' tokens."""

    def __init__(
        self, sequences: Sequence[Encoded], answers: Sequence[Answer], advantage: list[float]
    ) -> None:
        super().__init__(in_memory(sequences))
        self.advantage = advantage
        self.sampler = [answer.logps for answer in answers]
        self.old: dict[int, list[float]] | None = None
        self.reference: dict[int, list[float]] | None = None

    def signals(self, rows: Sequence[int], device: Any) -> Drawn:
        import torch

        def tokens(known: Any) -> Any:
            if known is None or known[rows[0]] is None:
                return None
            return torch.tensor([logp for r in rows for logp in known[r]], device=device)

        advantage_S = torch.tensor([self.advantage[r] for r in rows], device=device)
        return Drawn(advantage_S, tokens(self.old), tokens(self.sampler), tokens(self.reference))


class DrawingCourse(Course):
    """As its base, but a row is a prompt and a step learns from ``group`` answers to each of its prompts."""

    def __init__(self, bench: Bench, lane: Any, tokens: Path, sampler: Sampler) -> None:
        super().__init__(bench, lane, tokens)
        self._sampler = sampler

    def drawn(self, table: TokenTable, rows: Sequence[int], step: int | None) -> list[list[Answer]]:
        """Answers to each of the rows; without a step the likeliest one."""
        self.bench.activate(self.lane)
        return self._sampler.draw([Prompt(table.row(r)[0].ids, self._seeds(step, r)) for r in rows])

    def _seeds(self, step: int | None, row: int) -> tuple[int, ...]:
        import numpy as np

        if step is None:
            return ()
        stage = self.lane.stage
        drawn = np.random.SeedSequence([stage.seed, step, row]).generate_state(stage.algorithm.group)
        return tuple(int(s) for s in drawn)

    def from_first_worker(self, make: Callable[[], Any]) -> Any:
        """What ``make`` returns on the first worker, on every one."""
        import torch.distributed as dist

        made = [make() if self.bench.rank == 0 else None]
        if self.bench.workers > 1:
            dist.broadcast_object_list(made)
        return made[0]


def with_answers(table: TokenTable, rows: Sequence[int], groups: Sequence[Sequence[Answer]]) -> list[Encoded]:
    """Each row's prompt with each of its answers, of which the answers are learned."""
    made = []
    for r, group in zip(rows, groups, strict=True):
        ids = table.row(r)[0].ids
        made += [Encoded(ids + a.ids, [False] * len(ids) + [True] * len(a.ids)) for a in group]
    return made


def mean_length(groups: Sequence[Sequence[Answer]]) -> float:
    """Tokens of an answer."""
    lengths = [len(answer.ids) for group in groups for answer in group]
    return sum(lengths) / len(lengths)


class RolloutCourse(DrawingCourse):
    """Learns from rewards.

    The loss it reports is the mean reward with its sign changed: what is minimised is 0 at every first
    update, whatever the answers, and says nothing.
    """

    def __init__(self, bench: Bench, lane: Any, tokens: Path, sampler: Sampler, judge: Judge) -> None:
        super().__init__(bench, lane, tokens, sampler)
        self._judge = judge

    def take_step(self, progress: Progress) -> dict[str, float]:
        """Draw, judge, update. Figures: reward, its spread, the share of groups that teach nothing."""

        o, step = self.lane.stage.algorithm, progress.step
        rows = self.order.step_rows(step)
        self.seed(step)
        groups, rewards_RG = self._draw(self.rows, rows, step)
        table = self._table(rows, groups, advantages(rewards_RG).flatten().tolist())
        rate = self.rate(step)
        for _ in range(o.updates):
            figures = self.bench.accumulate(self.lane, table, range(len(table)), None)
            norm = self.lane.step(rate)
        if not o.beta:
            del figures["kl"]
        if table.sampler[0] is None:
            del figures["engine_gap"]
        progress.step = step + 1
        reward = float(rewards_RG.mean())
        progress.losses.append([progress.step, round(-reward, 5)])
        return figures | {
            "loss": -reward,
            "reward": reward,
            "reward_std": float(rewards_RG.std(1).mean()),
            "no_signal": float((rewards_RG == rewards_RG[:, :1]).all(1).float().mean()),
            "answer_tokens": mean_length(groups),
            "learning_rate": rate,
            "grad_norm": norm,
            "tokens": int(table.lengths.sum()),
        }

    def held_out_figures(
        self, progress: Progress, table: TokenTable, rows: Sequence[int]
    ) -> dict[str, float]:
        """The mean reward of the most likely answers."""
        groups, rewards_R1 = self._draw(table, rows, None)
        reward = float(rewards_R1.mean())
        return {
            "loss": -reward,
            "reward": reward,
            "answer_tokens": mean_length(groups),
        }

    def _draw(
        self, table: TokenTable, rows: Sequence[int], step: int | None
    ) -> tuple[list[list[Answer]], Any]:
        """Answers to each row and their rewards ``(R, G)``."""
        import torch

        groups = self.drawn(table, rows, step)
        by_row = zip(rows, groups, strict=True)
        tasks = [(table.task(r), answer) for r, group in by_row for answer in group]
        judged = self.from_first_worker(lambda: self._judge(tasks))
        return groups, torch.tensor(judged).view(len(rows), -1)

    def _table(self, rows: Sequence[int], groups: list[list[Answer]], advantage: list[float]) -> RolloutTable:
        o = self.lane.stage.algorithm
        answers = [a for group in groups for a in group]
        table = RolloutTable(with_answers(self.rows, rows, groups), answers, advantage)
        if o.updates > 1:
            table.old = self.bench.token_logps(self.lane, table)
        if o.beta:
            table.reference = self.bench.token_logps(self.lane, table, adapter=False)
        return table
