"""What a stage may use while it runs: the store, its inputs, the engine, and a place to say how far it is."""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

from largeforge_ray.config.manifest import Manifest
from largeforge_ray.config.stages import PromoteStage
from largeforge_ray.config.sweeping import SweepStage
from largeforge_ray.config.teaching import Endpoint
from largeforge_ray.flow.ledger import Ledger
from largeforge_ray.flow.plan import Plan, PlannedStage
from largeforge_ray.models.hardware import gpus_each
from largeforge_ray.models.room import Place, Room, who_waits
from largeforge_ray.observe import EventLog
from largeforge_ray.store import Artifact, Store
from largeforge_ray.types import RunEvent

STRAGGLERS_S = 10.0
"""For those that start beside the first; who takes longer waits for room."""


@dataclass(frozen=True, slots=True)
class Tools:
    """Actor starters that the library does not import itself, and a listener for events."""

    connect: Callable[[], None]
    start_engine: Callable[..., Any]
    start_scorer: Callable[..., Any]
    start_endpoint: Callable[[Any, float], Any]
    start_board: Callable[[Place], Any]
    start_pack: Callable[[Any, Place], Any]
    listen: Callable[[RunEvent], None]


@dataclass(slots=True)
class RunContext:
    """One run in progress. An engine is started by the first stage that asks and kept for those after it."""

    run: str
    plan: Plan
    manifest: Manifest
    store: Store
    tools: Tools
    log: EventLog
    phases: dict[str, float] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)
    place: Place = field(default_factory=lambda: Place("", ""))
    _engines: list[Any] = field(default_factory=list)
    _what: tuple[Any, ...] = ()
    _charged: int = 0
    _start: Callable[[], Any] = field(default=lambda: None)
    _board: Any = None

    def emit(self, stage: str, kind: str, numbers: dict[str, Any] | None = None, message: str = "") -> None:
        event = RunEvent(time.time(), self.run, stage, kind, numbers or {}, message)
        self.log.append(event)
        self.tools.listen(event)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a part of a stage; the sums are printed and go into the report."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.phases[name] = round(self.phases.get(name, 0.0) + time.monotonic() - started, 2)

    def connect(self) -> None:
        """Join Ray, or find it joined; say so if the present stage will have to wait for a node."""
        import ray

        with self.phase("ray start"):
            self.tools.connect()
        for name in self.place.resources:
            if name not in cast(Any, ray).cluster_resources():
                said = f"no node offers '{name}': the stage waits for one (ray start --resources)"
                self.emit(self.place.stage, "progress", {}, said)

    def artifact(self, name: str) -> Artifact:
        """The artifact of a stage that has run or was cached."""
        planned = self.plan[name]
        found = self.store.find(planned.artifact_kind, planned.key)
        assert found is not None, f"stage {name} is ordered before what it reads"
        return found

    def folder(self, reference: str) -> Path:
        """The local, verified folder of the artifact a reference names."""
        return self.store.fetch(self.artifact(reference.split(".")[0]))

    def address(self, reference: str) -> str:
        """Where the artifact a reference names is, for a process on any machine (``store.local_folder``)."""
        return self.store.address(self.artifact(reference.split(".")[0]))

    def engine(self, model: str | None = None) -> Any:
        """An engine's actor handle, ready for requests: of the base and its adapters, or of another model,
        by its address."""
        return self.engines(model, 1)[0]

    def engines(self, model: str | None, number: int, **drafting: Any) -> list[Any]:
        """As ``engine``, several of one model, which may draft.

        There are engines of one model at a time, because two do not fit a small machine: asking for another
        model stops them, and so does asking for scorers.
        """
        start = partial(
            self.tools.start_engine,
            model or self.address("base"),
            max_model_len=self.manifest.model.max_model_len,
            max_lora_rank=self._max_lora_rank() if model is None else None,
            **drafting,
        )
        return self._workers(("engine", model, str(drafting)), start, number)

    def scorers(self, model: str | None, number: int) -> list[Any]:
        """Actors that score given texts, of the base and its adapters or of another model; as ``engines``."""
        start = partial(
            self.tools.start_scorer,
            model or self.address("base"),
            max_model_len=self.manifest.model.max_model_len,
        )
        return self._workers(("scorer", model), start, number)

    def start_board(self) -> Any:
        """The board of the present stage."""
        self._board = self.tools.start_board(self.place)
        return self._board

    def stop_board(self) -> None:
        """Its name tells a priority, which no later stage has."""
        import ray

        if self._board is not None:
            ray.kill(self._board)
            self._board = None

    def endpoint(self, config: Endpoint, spent_usd: float) -> Any:
        """The actor that asks an endpoint; ``spent_usd`` is what finished rows have cost."""
        self.connect()
        return self.tools.start_endpoint(config, spent_usd)

    def _workers(self, what: tuple[Any, ...], start: Callable[..., Any], number: int) -> list[Any]:
        what = (*what, self.place.resources)
        if what != self._what:
            self.close_engines()
        # Those that are kept may be an earlier stage's; whoever comes for one that leaves is this one's.
        self._start = start = partial(start, place=self.place)
        # Who has nothing to do holds no place.
        idle, self._engines = self._engines[number:], self._engines[:number]
        for engine in idle:
            stop_engine(engine)
        self._charge(len(self._engines))
        if len(self._engines) < number:
            self._what = what
            self.connect()
            with self.phase("engine start"):
                self._charge(number)
                self._engines += [start() for _ in range(number - len(self._engines))]
                self._engines = _first_up(self._engines)
        return list(self._engines)

    def room(self) -> Room:
        """Who else needs what each process of the present stage takes of the cluster."""
        held = {"GPU": float(gpus_each())} if gpus_each() else {"CPU": 1.0}
        return Room(partial(who_waits, held, self.place.priority))

    def start_another(self) -> Any:
        """One more of the engines or scorers that were asked for last; it may have to wait for room."""
        return self._start()

    def some_left(self, asked: Sequence[Any], up: int) -> None:
        """Of those that were asked only so many are up, and are charged for."""
        self._charge(len(self._engines) - len(asked) + up)

    def keep_engines(self, asked: Sequence[Any], up: Sequence[Any]) -> None:
        """What has become of those that were asked; whoever wants more starts them."""
        others = [each for each in self._engines if not any(each is one for one in asked)]
        self._engines = [*up, *others]
        self._charge(len(self._engines))

    def _charge(self, engines: int) -> None:
        self.ledger.hold(engines - self._charged)
        self._charged = engines

    def _max_lora_rank(self) -> int | None:
        ranks = [s.config["lora"]["rank"] for s in self.plan.stages if s.kind == "train" and s.config["lora"]]
        ranks += [s.largest_rank for s in self.manifest.stages if isinstance(s, SweepStage)]
        ranks += [s.max_lora_rank for s in self.manifest.stages if isinstance(s, PromoteStage)]
        return max(ranks, default=0) or None

    def close_engines(self) -> None:
        """Stop the engines and wait until their processes are gone."""
        engines, self._engines = self._engines, []
        for engine in engines:
            stop_engine(engine)
        self._charge(0)

    def make_room(self, processes: int) -> None:
        """Stop the engines if ``processes`` would wait for ever for the CPUs or GPUs that those hold."""
        import ray

        device, resources = "GPU" if gpus_each() else "CPU", cast(Any, ray).cluster_resources
        if self._engines and resources().get(device, 0.0) < processes + len(self._engines):
            self.close_engines()

    def work_folder(self, stage: PlannedStage) -> Path:
        """A folder on this machine that outlives a killed run, for a stage that resumes from files."""
        return scratch_root(self.store) / "work" / stage.key[:16]

    def work_address(self, stage: PlannedStage) -> str:
        """The same for what processes on other machines write."""
        return (
            str(self.work_folder(stage)) if self.store.is_local else f"{self.store.url}/work/{stage.key[:16]}"
        )

    def shared(self, stage: PlannedStage, file: Path) -> str:
        """The address of a file that other machines read until ``end_work``."""
        if self.store.is_local:
            return str(file)
        rel = f"work/{stage.key[:16]}/{file.name}"
        self.store.write_bytes(rel, file.read_bytes())
        return f"{self.store.url}/{rel}"

    def end_work(self, stage: PlannedStage) -> None:
        """Remove both folders."""
        shutil.rmtree(self.work_folder(stage), ignore_errors=True)
        if not self.store.is_local:
            self.store.remove(f"work/{stage.key[:16]}")


def _first_up(engines: list[Any]) -> list[Any]:
    """The engines in the order they came up; those that find no room yet, last."""
    import ray

    refs = [engine.start_seconds.remote() for engine in engines]
    ray.wait(refs, num_returns=1)
    up, late = ray.wait(refs, num_returns=len(refs), timeout=STRAGGLERS_S)
    # Whoever could not start says why.
    ray.get(up)
    return [engines[refs.index(ref)] for ref in (*up, *late)]


def stop_engine(engine: Any) -> None:
    """Stop an engine's actor and wait until its processes are gone."""
    import ray
    from ray.exceptions import RayActorError

    # It may be dead already, or not stop by itself; the kill below settles both.
    with suppress(RayActorError, TimeoutError):
        ray.get(engine.stop.remote(), timeout=15)
    ray.kill(engine)


def scratch_root(store: Store) -> Path:
    """Beside a local store's artifacts, or in the user's cache for a remote store."""
    if store.local_root is not None:
        return store.local_root
    return Path.home() / ".cache" / "largeforge" / "scratch"


@contextmanager
def stage_lock(store: Store, key: str) -> Iterator[None]:
    """One process of this machine makes an artifact at a time; the next one finds it made."""
    path = scratch_root(store) / "locks" / f"{key[:16]}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
