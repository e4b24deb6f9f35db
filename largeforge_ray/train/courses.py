"""Which course a job takes: through given rows, or through answers of its own."""

from __future__ import annotations

from typing import Any

from largeforge_ray.store import local_folder
from largeforge_ray.train.bench import Bench
from largeforge_ray.train.judge import Judge, RewardModel, by_check
from largeforge_ray.train.loop import Course, TrainJob
from largeforge_ray.train.on_policy_course import OnPolicyCourse, Scorer
from largeforge_ray.train.rollout import EngineSampler, LocalSampler, Sampler
from largeforge_ray.train.rollout_course import RolloutCourse


def course_for(job: TrainJob, bench: Bench, lane: Any) -> Course:
    """The course of a job."""
    tokens, algorithm = local_folder(job.tokens_dir), lane.stage.algorithm
    if algorithm.form != "prompt":
        return Course(bench, lane, tokens)
    sampler: Sampler = LocalSampler(bench, lane)
    if job.engine is not None:
        sampler = EngineSampler(bench, lane, job.engine)
    if algorithm.name == "on_policy":
        return OnPolicyCourse(bench, lane, tokens, sampler, Scorer(job.teacher, job.teacher_adapter))
    judge: Judge = by_check
    if job.reward_dir and bench.rank == 0:
        judge = RewardModel(job.model_dir, job.reward_dir, job.stage.precision, bench.device)
    return RolloutCourse(bench, lane, tokens, sampler, judge)
