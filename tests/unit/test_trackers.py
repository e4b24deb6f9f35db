"""A running training's numbers in event files, MLflow and W&B: each step once, whatever the trackers do."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from largeforge_ray.config.tracking import Mlflow, Tracking, Wandb
from largeforge_ray.errors import ConfigError
from largeforge_ray.flow import tracking
from largeforge_ray.observe import trackers as module
from largeforge_ray.observe.hosted import MlflowRun, WandbRun, check_tracking
from largeforge_ray.observe.trackers import TensorBoard, Tracked, Trackers, describe, last_step
from largeforge_ray.store import open_store

OF = Tracked("20260102-090000-ab12", "tuned", settings={"lora": {"rank": 4}, "epochs": 1})
STEPS = {step: {"loss": 2.0 / step, "learning_rate": 0.01 * step} for step in range(1, 9)}


def board(folder: Path, said: list[str] | None = None, **others: Any) -> Trackers:
    """Trackers with event files and ``others``, as a run has them, but for Ray."""
    openers = {"TensorBoard": lambda of: TensorBoard(folder / of.trial), **others}
    say = (said if said is not None else []).append
    return Trackers(OF, openers, last_step=lambda trial: last_step(folder / trial), say=say)


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    read = EventAccumulator(str(folder), size_guidance={"tensors": 0, "scalars": 0})
    read.Reload()
    return [(event.step, event.value) for event in read.Scalars(tag)]


class Recorder:
    """A tracker that remembers, or fails at a step."""

    def __init__(self, of: Tracked, fails_at: int = 0) -> None:
        self.of, self.fails_at = of, fails_at
        self.steps: list[int] = []

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        if step == self.fails_at:
            raise ConnectionError("no route to tracker.example\nand a long trace")
        self.steps.append(step)

    def close(self) -> None:
        pass


def test_event_files_say_what_was_logged(tmp_path: Path) -> None:
    with board(tmp_path) as trackers:
        for step, numbers in STEPS.items():
            trackers.log(step, numbers)
    for tag in ("loss", "learning_rate"):
        assert curve(tmp_path, tag) == [(s, pytest.approx(n[tag])) for s, n in STEPS.items()]


def test_a_resumed_training_goes_on_in_the_folder_and_doubles_no_step(tmp_path: Path) -> None:
    with board(tmp_path) as trackers:
        for step in range(1, 6):
            trackers.log(step, STEPS[step])
        # A worker that was replaced repeats what came after its checkpoint.
        for step in range(4, 7):
            trackers.log(step, STEPS[step])
    with board(tmp_path) as trackers:
        for step in range(5, 9):
            trackers.log(step, STEPS[step])
    assert len(list(tmp_path.iterdir())) == 2
    assert [step for step, _ in curve(tmp_path, "loss")] == list(STEPS)


def test_what_a_killed_run_left_half_written_is_no_step(tmp_path: Path) -> None:
    with board(tmp_path) as trackers:
        for step in range(1, 6):
            trackers.log(step, STEPS[step])
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-7])
    assert last_step(tmp_path) == 4


def test_trials_have_folders_of_their_own(tmp_path: Path) -> None:
    with board(tmp_path) as trackers:
        trackers.log(4, {"held_out": 1.5}, "00000", {"point": {"rank": 4}})
        trackers.log(2, {"held_out": 1.75}, "00001", {"point": {"rank": 8}})
    assert curve(tmp_path / "00000", "held_out") == [(4, 1.5)]
    assert curve(tmp_path / "00001", "held_out") == [(2, 1.75)]


def test_a_tracker_that_fails_is_off_with_one_message_and_the_others_go_on(tmp_path: Path) -> None:
    made: list[Recorder] = []

    def opener(of: Tracked) -> Recorder:
        made.append(Recorder(of, fails_at=3))
        return made[-1]

    said: list[str] = []
    with board(tmp_path, said, MLflow=opener) as trackers:
        for trial in ("00000", "00001"):
            for step, numbers in STEPS.items():
                trackers.log(step, numbers, trial)
    assert said == ["MLflow is off for the rest of stage tuned: ConnectionError: no route to tracker.example"]
    assert [(r.of.trial, r.steps) for r in made] == [("00000", [1, 2])]
    assert [step for step, _ in curve(tmp_path / "00001", "loss")] == list(STEPS)


def test_only_numbers_are_tracked(tmp_path: Path) -> None:
    with board(tmp_path) as trackers:
        trackers.log(1, {"loss": 1, "done": True, "point": {"rank": 4}, "trial": "00000"})
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    assert read.Tags()["scalars"] == ["loss"]


def test_a_metric_is_described_with_its_unit() -> None:
    assert describe("tokens_per_s") == "tokens processed per second, tokens/s"
    assert describe("entropy_tokens") == "entropy tokens, tokens"


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (Tracking(mlflow=Mlflow(uri="http://localhost:5000")), "pip install mlflow-skinny"),
        (Tracking(wandb=Wandb()), "pip install wandb"),
    ],
)
def test_a_missing_package_is_told_with_its_command(
    wanted: Tracking, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=said):
        check_tracking(wanted)


def test_wandb_online_needs_its_key_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    check_tracking(Tracking(wandb=Wandb(mode="offline")))
    with pytest.raises(ConfigError, match=r"set it, or set tracking\.wandb\.mode: offline"):
        check_tracking(Tracking(wandb=Wandb()))
    monkeypatch.setenv("WANDB_API_KEY", "k")
    check_tracking(Tracking(wandb=Wandb()))


@pytest.fixture
def fake_mlflow(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """A module in place of mlflow that records the calls; the real one is no dependency."""
    calls: list[tuple] = []
    runs: dict[str, str] = {}

    class MlflowClient:
        def __init__(self, tracking_uri: str) -> None:
            calls.append(("client", tracking_uri))

        def get_experiment_by_name(self, name: str) -> Any:
            return SimpleNamespace(experiment_id="7")

        def search_runs(self, experiments: list[str], filter_string: str, max_results: int) -> list[Any]:
            found = [i for tag, i in runs.items() if f"= '{tag}'" in filter_string]
            return [SimpleNamespace(info=SimpleNamespace(run_id=i)) for i in found]

        def create_run(self, experiment: str, run_name: str, tags: dict[str, str]) -> Any:
            runs[tags["largeforge.tracked"]] = "r1"
            return SimpleNamespace(info=SimpleNamespace(run_id="r1"))

        def log_batch(self, run_id: str, metrics: tuple = (), params: tuple = ()) -> None:
            calls.append(("batch", run_id, list(metrics), list(params)))

        def set_terminated(self, run_id: str) -> None:
            calls.append(("ended", run_id))

    mlflow, entities = ModuleType("mlflow"), ModuleType("mlflow.entities")
    mlflow.MlflowClient = MlflowClient
    entities.Param = lambda name, value: (name, value)
    entities.Metric = lambda name, value, time_ms, step: (name, value, step)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    return calls


def test_mlflow_gets_settings_once_and_every_number_and_the_same_run_again(fake_mlflow: list[tuple]) -> None:
    for steps in ((1, 2), (3,)):
        run = MlflowRun(Mlflow(uri="http://localhost:5000", experiment="e"), OF)
        for step in steps:
            run.log(step, {"loss": 1.0 / step})
        run.close()
    batches = [call[1:] for call in fake_mlflow if call[0] == "batch"]
    assert [b for b in batches if b[2]] == [("r1", [], [("lora.rank", "4"), ("epochs", "1")])]
    assert [m for b in batches for m in b[1]] == [("loss", 1.0, 1), ("loss", 0.5, 2), ("loss", 1 / 3, 3)]
    assert fake_mlflow[-1] == ("ended", "r1")


def test_wandb_is_asked_for_the_same_run_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[dict] = []
    logged: list[tuple] = []
    fake = ModuleType("wandb")
    fake.Settings = dict
    run = SimpleNamespace(log=lambda n, step: logged.append((step, n)), finish=lambda: logged.append("end"))
    fake.init = lambda **given: asked.append(given) or run
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for _ in range(2):
        made = WandbRun(Wandb(project="p", mode="offline"), OF, tmp_path)
        made.log(1, {"loss": 1.0})
        made.close()
    assert asked[0] == asked[1]
    assert (asked[0]["project"], asked[0]["mode"], asked[0]["resume"]) == ("p", "offline", "allow")
    assert asked[0]["id"] == "20260102-090000-ab12-tuned"
    assert asked[0]["config"] == {"lora.rank": 4, "epochs": 1}
    assert logged == [(1, {"loss": 1.0}), "end"] * 2


def test_the_manifest_s_trackers_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    for name in ("RayGauges", "MlflowRun", "WandbRun"):
        monkeypatch.setattr(module, name, lambda *given, name=name: opened.append(name) or Recorder(OF))
    wanted = Tracking(mlflow=Mlflow(uri="u"), wandb=Wandb())
    with module.open_trackers(wanted, OF, tmp_path, say=opened.append) as trackers:
        trackers.log(1, {"loss": 1.0})
    assert opened == ["RayGauges", "MlflowRun", "WandbRun"]
    assert curve(tmp_path / "tensorboard" / "tuned", "loss") == [(1, 1.0)]


@pytest.mark.parametrize("local", [True, False])
def test_a_stage_that_a_later_run_goes_on_with_is_tracked_where_it_began(
    local: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RayGauges", Recorder)
    monkeypatch.setattr(tracking, "scratch_root", lambda store: tmp_path / "here")
    store = open_store(tmp_path / "here" if local else f"memory://{tmp_path.name}")
    stage = SimpleNamespace(name="tuned", config={}, key="0" * 64)
    for run, steps in (("first", (1, 2, 3)), ("second", (2, 3, 4))):
        context = SimpleNamespace(
            run=run,
            store=store,
            manifest=SimpleNamespace(tracking=Tracking()),
            work_folder=lambda stage: tmp_path / "work",
        )
        with tracking.tracked(context, stage) as trackers:
            for step in steps:
                trackers.log(step, STEPS[step])
    names = store.list("runs/first/tensorboard/tuned")
    assert len(names) == 2
    assert not store.exists("runs/second/tensorboard")
    for name in names:
        (tmp_path / "read").mkdir(exist_ok=True)
        (tmp_path / "read" / name.rpartition("/")[2]).write_bytes(store.read_bytes(name))
    assert [step for step, _ in curve(tmp_path / "read", "loss")] == [1, 2, 3, 4]
