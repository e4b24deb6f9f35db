"""A pack: several trials in one process on one frozen base.

One model load, one copy of the base in memory, one set of tokens and reference log-probabilities.
Each trial is a lane with its own adapter, optimizer and schedule, and takes the same steps to the bit
as it takes alone.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from largeforge_ray.config.sweeping import SweepStage
from largeforge_ray.config.training import TrainStage
from largeforge_ray.models.hardware import give_way, threads_per_worker
from largeforge_ray.store import local_folder
from largeforge_ray.sweep.files import read_files, write_files
from largeforge_ray.train.bench import Bench
from largeforge_ray.train.checkpoint import Progress, load_checkpoint, load_reference, save_checkpoint
from largeforge_ray.train.loop import Course, quiet


@dataclass(frozen=True, slots=True)
class PackJob:
    """What a pack needs to know; folders as in ``TrainJob``."""

    stage: SweepStage
    model_dir: str
    tokens_dir: str
    reference_dir: str | None = None


@dataclass(slots=True)
class _Runner:
    course: Course
    progress: Progress = field(default_factory=Progress)


class Pack:
    """Trials by name. Calls come one at a time; each names its trial's whole state, so a restarted pack
    goes on from what its callers hold."""

    def __init__(self, job: PackJob) -> None:
        import torch

        quiet()
        give_way()
        torch.set_num_threads(threads_per_worker(job.stage.processes))
        self._job = job
        self._bench = Bench(job.stage, job.model_dir)
        self._reference = load_reference(local_folder(job.reference_dir) if job.reference_dir else None)
        self._runners: dict[str, _Runner] = {}

    def ready(self) -> None:
        """Answered once the model is there."""

    def join(self, name: str, stage: TrainStage, files: dict[str, bytes] | None = None) -> None:
        """Take a trial in, new or as its checkpoint's ``files`` left it."""
        self.leave(name)
        lane = self._bench.add_lane(stage, name)
        runner = _Runner(Course(self._bench, lane, local_folder(self._job.tokens_dir)))
        if files:
            with tempfile.TemporaryDirectory(prefix="largeforge-lane-") as folder:
                write_files(Path(folder), files)
                runner.progress = load_checkpoint(Path(folder), lane)
        runner.progress.reference = self._reference
        runner.course.prepare(runner.progress, None, lambda rows: None)
        self._reference = runner.progress.reference
        self._runners[name] = runner

    def advance(self, name: str) -> tuple[dict[str, Any], dict[str, bytes]]:
        """Train up to the trial's next measurement and measure; returns the figures and a checkpoint's files.

        Raises ``KeyError`` if the pack does not know the trial, as after a restart.
        """
        runner = self._runners[name]
        course, progress = runner.course, runner.progress
        steps, measures = course.order.steps, self._job.stage.measures
        course.measure(progress, "before")
        until = next(u for u in _marks(steps, measures) if u > progress.step)
        tokens = 0.0
        while progress.step < until:
            tokens += course.take_step(progress)["tokens"]
        progress.held_out.pop("after", None)
        course.measure(progress, "after")
        if progress.step == steps:
            progress.probe = course.probe()
        figures = {
            "held_out": progress.held_out["after"]["loss"],
            "loss": progress.losses[-1][1],
            "step": progress.step,
            "steps": steps,
            "tokens": tokens,
            "done": progress.step == steps,
        }
        return figures, self._files(runner)

    def _files(self, runner: _Runner) -> dict[str, bytes]:
        with tempfile.TemporaryDirectory(prefix="largeforge-lane-") as folder:
            # The reference is the pack's; every trial would bring the same along.
            kept = replace(runner.progress, reference=None)
            save_checkpoint(Path(folder), self._bench, runner.course.lane, kept)
            return read_files(Path(folder))

    def leave(self, name: str) -> None:
        """Let a trial go; the others notice nothing."""
        if self._runners.pop(name, None) is not None:
            self._bench.remove_lane(name)


def _marks(steps: int, measures: int) -> list[int]:
    """After which steps to measure: evenly spread, the last one included."""
    return sorted({max(1, round(steps * (i + 1) / measures)) for i in range(measures)})
