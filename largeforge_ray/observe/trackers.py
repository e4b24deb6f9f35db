"""The numbers of a running training, step by step: Ray's metrics, TensorBoard files, MLflow, W&B.

with open_trackers(Tracking(), Tracked(run, "tuned"), runs / run, say=print) as trackers:
    trackers.log(12, {"loss": 1.8, "learning_rate": 2e-4})
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from largeforge_ray.observe.hosted import MlflowRun, WandbRun
from largeforge_ray.observe.metrics import METRICS, unit_of

if TYPE_CHECKING:
    from types import TracebackType

    from largeforge_ray.config.tracking import Tracking


@dataclass(frozen=True, slots=True)
class Tracked:
    """What is tracked: the run it began in, its stage, and which trial if it is one of a sweep's."""

    run: str
    stage: str
    trial: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return "/".join(filter(None, (self.run, self.stage, self.trial)))


class Tracker(Protocol):
    """Where numbers go. Both methods may raise whatever the library behind them raises."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Trackers:
    """All of a stage's trackers. One that fails is off from then on, with one message to ``say``.

    ``openers`` make a tracker by its name; ``last_step`` says up to which step a trial is already tracked.
    """

    def __init__(
        self,
        of: Tracked,
        openers: Mapping[str, Callable[[Tracked], Tracker]],
        *,
        last_step: Callable[[str], int],
        say: Callable[[str], None],
    ) -> None:
        self._of, self._last_step, self._say = of, last_step, say
        self._openers = dict(openers)
        self._open: dict[tuple[str, str], Tracker] = {}
        self._last: dict[str, int] = {}

    def log(
        self,
        step: int,
        numbers: Mapping[str, Any],
        trial: str = "",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Track the numbers of one step; what else is in ``numbers``, and a step that came before, is not."""
        if trial not in self._last:
            self._last[trial] = self._last_step(trial)
        if step <= self._last[trial]:
            return  # repeated by a training that was resumed
        self._last[trial] = step
        kept = {k: v for k, v in numbers.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        of = replace(self._of, trial=trial, settings={**self._of.settings, **(settings or {})})
        for name in list(self._openers):
            self._guarded(name, partial(self._log, name, of, step, kept))

    def _log(self, name: str, of: Tracked, step: int, numbers: Mapping[str, float]) -> None:
        place = (name, of.trial)
        if place not in self._open:
            self._open[place] = self._openers[name](of)
        self._open[place].log(step, numbers)

    def _guarded(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            if self._openers.pop(name, None):
                reason = str(error).strip().splitlines() or [""]
                said = f"{type(error).__name__}: {reason[0][:200]}"
                self._say(f"{name} is off for the rest of stage {self._of.stage}: {said}")

    def close(self) -> None:
        """Write what is not written yet."""
        while self._open:
            (name, _), tracker = self._open.popitem()
            if name in self._openers:
                self._guarded(name, tracker.close)

    def __enter__(self) -> Trackers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class TensorBoard:
    """An event file more in a folder; TensorBoard reads all files of a folder as one curve.

    It is written here, record by record: the library's own writer does so in a thread that a full disk ends
    with a trace.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        # Those of a run that goes on come later, and may come within a second.
        name = f"events.out.tfevents.{time.time_ns():020d}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter((folder / name).open("wb", buffering=0))
        self._records.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=number) for name, number in numbers.items()]
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=values))
        self._records.write(event.SerializeToString())

    def close(self) -> None:
        self._records.close()


def last_step(folder: Path) -> int:
    """The last step in the event files of a folder, 0 if there are none."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    files = sorted(folder.glob("events.out.tfevents.*"))
    return max((event.step for file in files for event in EventFileLoader(str(file)).Load()), default=0)


class RayGauges:
    """Gauges ``ray_largeforge_<name>`` of this process, tagged with run, stage and trial."""

    def __init__(self, of: Tracked) -> None:
        self._tags = {"run": of.run, "stage": of.stage, "trial": of.trial}
        self._gauges: dict[str, Any] = {}

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        from ray.util.metrics import Gauge

        for name, number in {"step": step, **numbers}.items():
            if name not in self._gauges:
                self._gauges[name] = Gauge(f"largeforge_{name}", describe(name), tuple(self._tags))
            self._gauges[name].set(number, self._tags)

    def close(self) -> None:
        """A gauge keeps its last value as long as the process lives."""


def describe(name: str) -> str:
    """A metric's meaning with its unit, in words."""
    meaning = METRICS[name].meaning if name in METRICS else name.replace("_", " ")
    unit = unit_of(name)
    return f"{meaning}, {unit}" if unit else meaning


def open_trackers(tracking: Tracking, of: Tracked, folder: Path, *, say: Callable[[str], None]) -> Trackers:
    """Those that are always there and those the manifest names.

    ``folder`` is the run's; event files go into ``tensorboard/<stage>`` in it, W&B's own into ``wandb``.
    """
    events = folder / "tensorboard" / of.stage
    openers: dict[str, Callable[[Tracked], Tracker]] = {
        "Ray metrics": RayGauges,
        "TensorBoard": lambda of: TensorBoard(events / of.trial),
    }
    if mlflow := tracking.mlflow:
        openers["MLflow"] = lambda of: MlflowRun(mlflow, of)
    if wandb := tracking.wandb:
        openers["W&B"] = lambda of: WandbRun(wandb, of, folder)
    return Trackers(of, openers, last_step=lambda trial: last_step(events / trial), say=say)
