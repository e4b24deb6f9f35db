"""The worker loop that every algorithm shares: load, take steps, checkpoint, report."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from largeforge_ray.config.training import TrainStage
from largeforge_ray.models.hardware import threads_per_worker
from largeforge_ray.train.bench import Bench
from largeforge_ray.train.checkpoint import Progress, load_checkpoint, load_reference, save_checkpoint
from largeforge_ray.train.lane import Lane
from largeforge_ray.train.order import Order, learning_rate
from largeforge_ray.train.tokens import TokenTable


@dataclass(frozen=True, slots=True)
class TrainJob:
    """What a worker needs to know. ``board`` is an actor handle that takes progress notes, or None.

    ``tokens_dir`` holds ``train.arrow`` and perhaps ``test.arrow``; ``reference_dir`` the reference
    log-probabilities of an earlier run, or None.
    """

    stage: TrainStage
    model_dir: str
    tokens_dir: str
    reference_dir: str | None = None
    board: Any = None


def worker_loop(config: dict[str, Any]) -> None:
    """Train on one worker. Ray Train passes ``config`` only to a function with a required parameter."""
    import torch
    from ray import train

    job: TrainJob = config["job"]
    world = train.get_context()
    quiet()
    torch.set_num_threads(threads_per_worker(world.get_world_size()))
    bench = Bench(job.stage, job.model_dir, rank=world.get_world_rank(), workers=world.get_world_size())
    lane = bench.add_lane(job.stage)
    course = Course(bench, lane, Path(job.tokens_dir))
    progress = resume(lane)
    reporter = Reporter(job, course)
    reporter.begin(progress)

    course.prepare(progress, job.reference_dir, reporter.referenced)
    course.measure(progress, "before")
    while progress.step < course.order.steps:
        reporter.stepped(progress, course.take_step(progress))
        last = progress.step == course.order.steps
        if last:
            course.measure(progress, "after")
        if last or progress.step % job.stage.checkpoint_every == 0:
            report_checkpoint(bench, lane, progress)
    reporter.close()


class Course:
    """The way of one lane through the rows, from its first step to its last."""

    def __init__(self, bench: Bench, lane: Lane, tokens: Path) -> None:
        self.bench, self.lane = bench, lane
        self.rows = TokenTable(tokens / "train.arrow")
        held_out = tokens / "test.arrow"
        self.held_out = TokenTable(held_out) if held_out.exists() and lane.stage.held_out_rows else None
        self.order = Order(len(self.rows), lane.stage.batch_size, lane.stage.epochs, lane.stage.seed)
        self.lengths = self.rows.lengths[:, lane.objective.trained].sum(1)

    def prepare(self, progress: Progress, reference_dir: str | None, on_rows: Any) -> None:
        """The reference log-probabilities, if they are to be cached and are not known yet."""
        if not self.lane.stage.algorithm.caches_reference or progress.reference is not None:
            return
        progress.reference = load_reference(Path(reference_dir) if reference_dir else None)
        if progress.reference is None:
            progress.reference = self.bench.reference_logps(self.rows, on_rows)

    def take_step(self, progress: Progress) -> dict[str, float]:
        """One update. Returns the loss, the algorithm's figures, rate, norm and number of tokens."""
        import torch

        stage, step = self.lane.stage, progress.step
        # A step draws (dropout) what it would draw in a run that was never stopped.
        torch.manual_seed(hash((stage.seed, step, self.bench.rank)))
        rows = self.order.step_rows(step)
        figures = self.bench.accumulate(self.lane, self.rows, rows, progress.reference)
        rate = learning_rate(
            step, self.order.steps, peak=stage.learning_rate, warmup=stage.warmup, schedule=stage.schedule
        )
        norm = self.lane.step(rate)
        progress.step = step + 1
        progress.losses.append([progress.step, round(figures["loss"], 5)])
        tokens = int(self.lengths[rows].sum())
        return figures | {"learning_rate": rate, "grad_norm": norm, "tokens": tokens}

    def measure(self, progress: Progress, when: str) -> None:
        """Loss and figures on held-out rows, if the dataset holds any out; no gradient."""
        if self.held_out is None or when in progress.held_out:
            return
        rows = range(min(len(self.held_out), self.lane.stage.held_out_rows))
        self.bench.model.eval()
        # Held-out rows are few, so their reference is computed on the way and not kept.
        figures = self.bench.accumulate(self.lane, self.held_out, rows, None, learn=False)
        self.bench.model.train()
        progress.held_out[when] = {k: round(v, 5) for k, v in figures.items()} | {"rows": len(rows)}


def quiet() -> None:
    """Progress is the driver's to show: bars of several workers would overwrite each other."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def resume(lane: Lane) -> Progress:
    """The lane as the newest committed checkpoint left it, or as new."""
    from ray import train

    checkpoint = train.get_checkpoint()
    if checkpoint is None:
        return Progress()
    with checkpoint.as_directory() as folder:
        return load_checkpoint(Path(folder), lane)


def report_checkpoint(bench: Bench, lane: Lane, progress: Progress) -> None:
    """Hand a checkpoint to Ray Train, which copies it to the run's storage while training goes on."""
    from ray import train

    metrics = {"step": progress.step, "loss": progress.losses[-1][1]}
    if bench.rank:
        # Only rank 0 writes, but every rank must report or the others wait for ever.
        train.report(metrics, checkpoint_upload_mode=train.CheckpointUploadMode.ASYNC)
        return
    folder = Path(tempfile.mkdtemp(prefix="largeforge-checkpoint-"))
    save_checkpoint(folder, bench, lane, progress)
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
            trainable_parameters=c.lane.weights.numel(),
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
