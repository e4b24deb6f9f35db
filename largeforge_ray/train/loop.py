"""The worker loop that every algorithm shares: load, take steps, checkpoint, report."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from largeforge_ray.config.training import TrainStage
from largeforge_ray.errors import DataError
from largeforge_ray.models.hardware import give_way, threads_per_worker
from largeforge_ray.store import local_folder
from largeforge_ray.train.bench import Bench
from largeforge_ray.train.checkpoint import Progress, load_checkpoint, load_reference, save_checkpoint
from largeforge_ray.train.order import Order, learning_rate
from largeforge_ray.train.probe import reference_probe
from largeforge_ray.train.tokens import TokenTable

LEAVE = "leave"
"""What the driver pins to the board when others need the workers' room."""


@dataclass(frozen=True, slots=True)
class TrainJob:
    """What a worker needs to know. ``board`` is an actor handle that takes progress notes, or None. Folders
    are addresses (``store.local_folder``).

    ``tokens_dir`` holds ``train.arrow`` and perhaps ``test.arrow``; ``reference_dir`` the reference
    log-probabilities of an earlier run, or None. What learns from its own answers asks ``engine`` for them,
    an actor handle, or without one draws them itself; the reward model in ``reward_dir`` judges them, or
    without one the rows' checks; or ``teacher``, an engine's actor handle, scores them, with its adapter.
    """

    stage: TrainStage
    model_dir: str
    tokens_dir: str
    reference_dir: str | None = None
    board: Any = None
    engine: Any = None
    reward_dir: str | None = None
    teacher: Any = None
    teacher_adapter: str | None = None


def worker_loop(config: dict[str, Any]) -> None:
    """Train on one worker. Ray Train passes ``config`` only to a function with a required parameter."""
    import torch
    from ray import train

    from largeforge_ray.train.courses import course_for  # it builds on the course below

    job: TrainJob = config["job"]
    world = train.get_context()
    quiet()
    give_way()
    torch.set_num_threads(threads_per_worker(world.get_world_size()))
    bench = Bench(job.stage, job.model_dir, rank=world.get_world_rank(), workers=world.get_world_size())
    lane = bench.add_lane(job.stage)
    course = course_for(job, bench, lane)
    progress = resume(lane)
    reporter = Reporter(job, course)
    reporter.begin(progress)

    course.prepare(progress, job.reference_dir, reporter.referenced)
    course.measure(progress, "before")
    while progress.step < course.order.steps:
        reporter.stepped(progress, course.take_step(progress))
        last = progress.step == course.order.steps
        if last or progress.step % job.stage.checkpoint_every == 0:
            course.measure(progress, "after" if last else "on the way")
            if last or job.stage.keep == "best":
                progress.probe = course.probe()
            left = not last and told_to_leave(job.board)
            report_checkpoint(bench, lane, progress, left)
            if left:
                break
    reporter.close()


class Course:
    """The way of one lane through the rows, from its first step to its last."""

    def __init__(self, bench: Bench, lane: Any, tokens: Path) -> None:
        self.bench, self.lane = bench, lane
        self.rows = TokenTable(tokens / "train.arrow")
        held_out = tokens / "test.arrow"
        self.held_out = TokenTable(held_out) if held_out.exists() and lane.stage.held_out_rows else None
        if self.held_out is None and lane.stage.keep == "best":
            raise DataError(
                "keep 'best' goes by held-out rows and the dataset holds none out; "
                "set keep: newest or raise the dataset's split.test"
            )
        self.order = Order(len(self.rows), lane.stage.batch_size, lane.stage.epochs, lane.stage.seed)
        self.lengths = self.rows.lengths[:, lane.objective.trained].sum(1)

    def prepare(self, progress: Progress, reference_dir: str | None, on_rows: Any) -> None:
        """The reference log-probabilities, if they are to be cached and are not known yet."""
        if not self.lane.stage.algorithm.caches_reference or progress.reference is not None:
            return
        if self.held_out is not None and self.lane.stage.lora is None:
            # After the first step the model is not its own reference any more.
            measured = self.lane.stage.held_out_rows
            progress.held_reference = self.bench.reference_logps(self.held_out, lambda rows: None, measured)
        progress.reference = load_reference(local_folder(reference_dir) if reference_dir else None)
        if progress.reference is None:
            progress.reference = self.bench.reference_logps(self.rows, on_rows)

    def take_step(self, progress: Progress) -> dict[str, float]:
        """One update. Returns the loss, the algorithm's figures, rate, norm and number of tokens."""
        step = progress.step
        self.seed(step)
        rows = self.order.step_rows(step)
        figures = self.bench.accumulate(self.lane, self.rows, rows, progress.reference)
        rate = self.rate(step)
        norm = self.lane.step(rate)
        progress.step = step + 1
        progress.losses.append([progress.step, round(figures["loss"], 5)])
        tokens = int(self.lengths[rows].sum())
        return figures | {"learning_rate": rate, "grad_norm": norm, "tokens": tokens}

    def seed(self, step: int) -> None:
        """A step draws (dropout) what it would draw in a run that was never stopped."""
        import torch

        torch.manual_seed(hash((self.lane.stage.seed, step, self.bench.rank)))

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        s = self.lane.stage
        return learning_rate(
            step, self.order.steps, peak=s.learning_rate, warmup=s.warmup, schedule=s.schedule
        )

    def measure(self, progress: Progress, when: str) -> None:
        """Loss and figures on held-out rows, if the dataset holds any out; no gradient.

        ``before`` and ``after`` are kept whole; on the way the loss alone, and only to keep the best.
        """
        ends = when in ("before", "after")
        if self.held_out is None or when in progress.held_out or not (ends or self.lane.stage.keep == "best"):
            return
        rows = range(min(len(self.held_out), self.lane.stage.held_out_rows))
        self.bench.model.eval()
        figures = self.held_out_figures(progress, self.held_out, rows)
        self.bench.model.train()
        if when != "before":
            progress.curve.append([progress.step, round(figures["loss"], 5)])
        if ends:
            progress.held_out[when] = {k: round(v, 5) for k, v in figures.items()} | {"rows": len(rows)}

    def held_out_figures(
        self, progress: Progress, table: TokenTable, rows: Sequence[int]
    ) -> dict[str, float]:
        """What ``measure`` keeps; the first figure is the loss."""
        # With an adapter the reference of few rows is computed on the way and not kept.
        return self.bench.accumulate(self.lane, table, rows, progress.held_reference, learn=False)

    def probe(self) -> Any:
        """What the adapter does, for the engine to be compared with; None of what no engine loads as one."""
        stage = self.lane.stage
        if stage.lora is None or stage.algorithm.name == "reward":
            return None
        return reference_probe(self.bench, self.lane, self.rows)


def quiet() -> None:
    """Progress is the driver's to show: bars of several workers would overwrite each other."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def resume(lane: Any) -> Progress:
    """The lane as the newest committed checkpoint left it, or as new."""
    from ray import train

    checkpoint = train.get_checkpoint()
    if checkpoint is None:
        return Progress()
    with checkpoint.as_directory() as folder:
        return load_checkpoint(Path(folder), lane)


def told_to_leave(board: Any) -> bool:
    """Whether the driver wants the workers' room. The first of them asks, and all do the same."""
    import ray
    from ray import train
    from ray.train.collective import broadcast_from_rank_zero

    if board is None:
        return False
    world = train.get_context()
    told = bool(ray.get(board.pinned.remote(LEAVE))) if world.get_world_rank() == 0 else False
    return bool(broadcast_from_rank_zero(told)) if world.get_world_size() > 1 else told


def report_checkpoint(bench: Bench, lane: Any, progress: Progress, left: bool) -> None:
    """Hand a checkpoint to Ray Train, which copies it to the run's storage while training goes on, or the
    workers have ``left``."""
    from ray import train

    metrics = {"step": progress.step, "loss": progress.losses[-1][1], "left": left}
    if progress.curve:
        metrics["held_out"] = progress.curve[-1][1]
    folder = Path(tempfile.mkdtemp(prefix="largeforge-checkpoint-"))
    save_checkpoint(folder, bench, lane, progress)
    if bench.rank:
        # Only rank 0 writes, but every rank must report or the others wait for ever.
        folder.rmdir()
        train.report(metrics, checkpoint_upload_mode=train.CheckpointUploadMode.ASYNC)
        return
    train.report(
        metrics,
        checkpoint=train.Checkpoint.from_directory(str(folder)),
        checkpoint_upload_mode=train.CheckpointUploadMode.ASYNC,
        delete_local_checkpoint_after_upload=True,
    )


class Reporter:
    """Rank 0's notes to the run board; the others are silent."""

    def __init__(self, job: TrainJob, course: Course) -> None:
        self._board = job.board if course.bench.rank == 0 else None
        self._course = course
        self._last: Any = None
        self._started, self._tokens, self._referenced = time.monotonic(), 0, 0

    def begin(self, progress: Progress) -> None:
        c = self._course
        self._post(
            kind="begin",
            step=progress.step,
            steps=c.order.steps,
            workers=c.bench.workers,
            trainable_parameters=c.lane.size,
            parameters=c.bench.parameters,
        )

    def referenced(self, rows: int) -> None:
        self._referenced += rows
        self._post(kind="reference", done=self._referenced, total=len(self._course.rows))

    def stepped(self, progress: Progress, figures: dict[str, float]) -> None:
        order, tokens = self._course.order, figures.pop("tokens")
        if not self._tokens:
            self._started = time.monotonic()  # the first step also pays for what is made once
        else:
            figures["tokens_per_s"] = round(self._tokens / (time.monotonic() - self._started), 1)
        self._tokens += int(tokens)
        epoch = round(progress.step / order.steps_per_epoch, 3)
        rounded = {k: v if k == "learning_rate" else round(v, 5) for k, v in figures.items()}
        self._post(kind="step", step=progress.step, steps=order.steps, epoch=epoch, **rounded)

    def _post(self, **note: Any) -> None:
        if self._board is not None:
            self._last = self._board.post.remote(note)

    def close(self) -> None:
        """Wait until the board has everything."""
        import ray

        if self._last is not None:
            ray.get(self._last)
