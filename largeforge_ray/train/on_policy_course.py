"""The way of a lane that learns from its own answers what a teacher thinks of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from largeforge_ray.errors import StageError
from largeforge_ray.train.batch import Encoded
from largeforge_ray.train.bench import Bench
from largeforge_ray.train.checkpoint import Progress
from largeforge_ray.train.rollout import Sampler
from largeforge_ray.train.rollout_course import DrawingCourse, mean_length, with_answers
from largeforge_ray.train.tokens import TokenTable, in_memory
from largeforge_ray.types import ScoreRequest


class Scorer:
    """The teacher in an engine. ``adapter`` is its folder if it is one."""

    def __init__(self, engine: Any, adapter: str | None) -> None:
        self._engine, self._adapter = engine, adapter

    def score(self, sequences: Sequence[Encoded]) -> list[list[float]]:
        """Log-probabilities of the learned tokens of each sequence."""
        import ray

        requests = [ScoreRequest(f"taught-{i}", tuple(s.ids), self._adapter) for i, s in enumerate(sequences)]
        scored = ray.get(self._engine.score.remote(requests))
        for one in scored:
            if one.error:
                raise StageError(f"the teacher cannot score an answer: {one.error}")
        return [list(one.logprobs[-sum(s.learn) :]) for s, one in zip(sequences, scored, strict=True)]


class ScoredTable(TokenTable):
    """Prompts with answers and what the teacher finds of each of the answers' tokens."""

    def __init__(self, sequences: Sequence[Encoded], teacher: list[list[float]]) -> None:
        super().__init__(in_memory(sequences))
        self._teacher = teacher

    def signals(self, rows: Sequence[int], device: Any) -> Any:
        import torch

        return torch.tensor([logp for r in rows for logp in self._teacher[r]], device=device)


class OnPolicyCourse(DrawingCourse):
    """Learns to find likely what the teacher finds likely, of its own answers. The loss is the divergence."""

    def __init__(self, bench: Bench, lane: Any, tokens: Path, sampler: Sampler, scorer: Scorer) -> None:
        super().__init__(bench, lane, tokens, sampler)
        self._scorer = scorer

    def take_step(self, progress: Progress) -> dict[str, float]:
        """Draw, score, update."""
        step = progress.step
        rows = self.order.step_rows(step)
        self.seed(step)
        table, length = self._scored(self.rows, rows, step)
        figures = self.bench.accumulate(self.lane, table, range(len(table)), None)
        rate = self.rate(step)
        norm = self.lane.step(rate)
        progress.step = step + 1
        progress.losses.append([progress.step, round(figures["loss"], 5)])
        drawn = {"answer_tokens": length, "learning_rate": rate, "grad_norm": norm}
        return figures | drawn | {"tokens": int(table.lengths.sum())}

    def held_out_figures(
        self, progress: Progress, table: TokenTable, rows: Sequence[int]
    ) -> dict[str, float]:
        """Of the likeliest answers."""
        scored, length = self._scored(table, rows, None)
        figures = self.bench.accumulate(self.lane, scored, range(len(scored)), None, learn=False)
        return figures | {"answer_tokens": length}

    def _scored(self, table: TokenTable, rows: Sequence[int], step: int | None) -> tuple[ScoredTable, float]:
        groups = self.drawn(table, rows, step)
        sequences = with_answers(table, rows, groups)
        teacher = self.from_first_worker(lambda: self._scorer.score(sequences))
        return ScoredTable(sequences, teacher), mean_length(groups)
