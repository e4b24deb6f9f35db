"""Workers as processes on this machine that sum over gloo: what Ray Train sets up, without Ray."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

STEPS = 5


def course_of(rank: int, workers: int, model: str, folder: str, settings: dict[str, Any]) -> tuple[Any, Any]:
    """A course on this worker, and its progress: new, or as the checkpoint in ``folder`` left it."""
    from largeforge_ray.train.bench import Bench
    from largeforge_ray.train.checkpoint import Progress, load_checkpoint
    from largeforge_ray.train.loop import Course
    from tests.unit._tiny import stage_of

    given = dict(settings)
    stage = stage_of(given.pop("algorithm"), batch_size=5, epochs=20.0, learning_rate=0.01, **given)
    bench = Bench(stage, model, rank=rank, workers=workers)
    course, progress = Course(bench, bench.add_lane(stage), Path(folder)), Progress()
    if (Path(folder) / "kept").exists():
        progress = load_checkpoint(Path(folder) / "kept", course.lane)
    course.prepare(progress, None, lambda rows: None)
    return course, progress


def work(rank: int, workers: int, port: int, model: str, cases: list[tuple[str, dict[str, Any]]]) -> None:
    """Of each case (folder, settings): some steps, then ``losses.json`` and a checkpoint in the folder."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": workers, "MASTER_PORT": port}
    os.environ.update({"MASTER_ADDR": "127.0.0.1"} | {name: str(value) for name, value in place.items()})
    if workers > 1:
        dist.init_process_group("gloo", rank=rank, world_size=workers)
    for folder, settings in cases:
        take_case(rank, workers, model, Path(folder), settings)
    if workers > 1:
        dist.barrier()
        dist.destroy_process_group()


def take_case(rank: int, workers: int, model: str, folder: Path, settings: dict[str, Any]) -> None:
    from largeforge_ray.train.checkpoint import save_checkpoint

    course, progress = course_of(rank, workers, model, str(folder), settings)
    until = progress.step + STEPS
    while progress.step < until:
        figures = course.take_step(progress)
    course.measure(progress, "after")
    save_checkpoint(folder / "made", course.bench, course.lane, progress)
    if rank == 0:
        made = {"losses": progress.losses, "norm": figures["grad_norm"], "held_out": progress.held_out}
        (folder / "losses.json").write_text(json.dumps(made))


def run_workers(workers: int, model: Path, cases: dict[Path, dict[str, Any]]) -> list[dict[str, Any]]:
    """Start the workers, let them take every case, and return what the first one wrote of each."""
    import torch.multiprocessing as mp

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    given = [(str(folder), settings) for folder, settings in cases.items()]
    if workers == 1:
        work(0, 1, port, str(model), given)
    else:
        mp.spawn(work, (workers, port, str(model), given), nprocs=workers)
    return [json.loads((folder / "losses.json").read_text()) for folder in cases]
