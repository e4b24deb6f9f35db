"""Where a stage's trackers write, also when it is killed and a later run goes on with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from largeforge_ray.flow.context import RunContext, scratch_root
from largeforge_ray.flow.plan import PlannedStage
from largeforge_ray.observe.trackers import Tracked, Trackers, open_trackers


@contextmanager
def tracked(context: RunContext, stage: PlannedStage) -> Iterator[Trackers]:
    """The stage's trackers, named after the run in which its unfinished work began.

    Event files are in ``runs/<that run>/tensorboard/<stage>``; a remote store gets them at the end.
    """
    run = _began_in(context, stage)
    folder = scratch_root(context.store) / "runs" / run
    of = Tracked(run, stage.name, settings=stage.config)

    def say(message: str) -> None:
        context.emit(stage.name, "progress", {}, message)

    try:
        with open_trackers(context.manifest.tracking, of, folder, say=say) as trackers:
            yield trackers
    finally:
        if not context.store.is_local:
            for file in (folder / "tensorboard" / stage.name).rglob("events.out.tfevents.*"):
                context.store.write_bytes(f"runs/{run}/{file.relative_to(folder)}", file.read_bytes())


def _began_in(context: RunContext, stage: PlannedStage) -> str:
    mark = context.work_folder(stage) / "began_in"
    began = mark.read_text(encoding="utf-8") if mark.exists() else ""
    if not began:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text(context.run, encoding="utf-8")
    return began or context.run
