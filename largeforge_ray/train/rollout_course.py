"""The way of a lane that learns from its own answers: draw, judge, update.

R prompts of a step, G answers each; an answer is a row of the step's own token table.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from largeforge_ray.train.batch import Encoded
from largeforge_ray.train.bench import Bench
from largeforge_ray.train.checkpoint import Progress
from largeforge_ray.train.grpo import Drawn, advantages
from largeforge_ray.train.judge import Judge, RewardModel, by_check
from largeforge_ray.train.loop import Course, TrainJob
from largeforge_ray.train.rollout import Answer, EngineSampler, LocalSampler, Prompt, Sampler
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


class RolloutCourse(Course):
    """As its base, but a row is a prompt and a step learns from ``group`` answers to each of its prompts.

    The loss it reports is the mean reward with its sign changed: what is minimised is 0 at every first
    update, whatever the answers, and says nothing.
    """

    def __init__(self, bench: Bench, lane: Any, tokens: Path, sampler: Sampler, judge: Judge) -> None:
        super().__init__(bench, lane, tokens)
        self._sampler, self._judge = sampler, judge

    def take_step(self, progress: Progress) -> dict[str, float]:
        """Draw, judge, update. Figures: reward, its spread, the share of groups that teach nothing."""
        import torch

        o, step = self.lane.stage.algorithm, progress.step
        rows = self.order.step_rows(step)
        self.seed(step)
        answers, rewards_RG = self._draw(self.rows, rows, step)
        table = self._table(rows, answers, advantages(rewards_RG).flatten().tolist())
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
            "answer_tokens": float(torch.tensor([len(a.ids) for a in answers]).float().mean()),
            "learning_rate": rate,
            "grad_norm": norm,
            "tokens": int(table.lengths.sum()),
        }

    def held_out_figures(
        self, progress: Progress, table: TokenTable, rows: Sequence[int]
    ) -> dict[str, float]:
        """The mean reward of the most likely answers."""
        answers, rewards_R1 = self._draw(table, rows, None)
        reward = float(rewards_R1.mean())
        return {
            "loss": -reward,
            "reward": reward,
            "answer_tokens": sum(len(a.ids) for a in answers) / len(answers),
        }

    def _draw(self, table: TokenTable, rows: Sequence[int], step: int | None) -> tuple[list[Answer], Any]:
        """Answers in the order of the rows and their rewards ``(R, G)``; without a step the likeliest."""
        import torch
        import torch.distributed as dist

        self.bench.activate(self.lane)
        groups = self._sampler.draw([Prompt(table.row(r)[0].ids, self._seeds(step, r)) for r in rows])
        judged: list[Any] = [None]
        if self.bench.rank == 0:
            by_row = zip(rows, groups, strict=True)
            tasks = [(table.task(r), answer) for r, group in by_row for answer in group]
            judged = [self._judge(tasks)]
        if self.bench.workers > 1:
            dist.broadcast_object_list(judged)
        return [a for group in groups for a in group], torch.tensor(judged[0]).view(len(rows), -1)

    def _seeds(self, step: int | None, row: int) -> tuple[int, ...]:
        import numpy as np

        if step is None:
            return ()
        stage = self.lane.stage
        drawn = np.random.SeedSequence([stage.seed, step, row]).generate_state(stage.algorithm.group)
        return tuple(int(s) for s in drawn)

    def _table(self, rows: Sequence[int], answers: list[Answer], advantage: list[float]) -> RolloutTable:
        o = self.lane.stage.algorithm
        prompts = [self.rows.row(r)[0].ids for r in rows for _ in range(o.group)]
        sequences = [
            Encoded(ids + a.ids, [False] * len(ids) + [True] * len(a.ids))
            for ids, a in zip(prompts, answers, strict=True)
        ]
        table = RolloutTable(sequences, answers, advantage)
        if o.updates > 1:
            table.old = self.bench.token_logps(self.lane, table)
        if o.beta:
            table.reference = self.bench.token_logps(self.lane, table, adapter=False)
        return table


def course_for(job: TrainJob, bench: Bench, lane: Any) -> Course:
    """The course of a job: through given rows, or through answers of its own."""
    tokens = Path(job.tokens_dir)
    if lane.stage.algorithm.form != "prompt":
        return Course(bench, lane, tokens)
    sampler: Sampler = LocalSampler(bench, lane)
    if job.engine is not None:
        sampler = EngineSampler(bench, lane, job.engine)
    judge: Judge = by_check
    if job.reward_dir and bench.rank == 0:
        judge = RewardModel(job.model_dir, job.reward_dir, job.stage.precision, bench.device)
    return RolloutCourse(bench, lane, tokens, sampler, judge)
