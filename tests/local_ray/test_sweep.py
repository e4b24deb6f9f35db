"""Sweeps on Ray Tune with a model of two layers: packed trials, early stopping, kills in the middle."""

from __future__ import annotations

from pathlib import Path

import pytest

from largeforge_ray.store import Artifact, Store, open_store
from tests.local_ray._chaos import attempt, strike
from tests.local_ray.test_training import adapter, home, weights, write_manifest

__all__ = ["home"]
SPACE = {"rank": [2, 4], "alpha_ratio": [1, 2], "learning_rate": [0.003, 0.02]}
SWEEP = {"kind": "sweep", "batch_size": 4, "epochs": 20, "space": SPACE, "measures": 8, "parallel": 4}


@pytest.fixture(scope="module")
def swept(home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Path]:
    folder = tmp_path_factory.mktemp("swept")
    run = attempt(folder, write_manifest(home, folder, "chat", **SWEEP))
    return adapter(run), folder


def outcome(artifact: Artifact) -> list[tuple]:
    return sorted((str(t["point"]), t["held_out"], t["step"], t["key"]) for t in artifact.metrics["trials"])


def test_every_point_is_a_trial_and_the_best_is_the_stage_s_adapter(swept: tuple[Artifact, Path]) -> None:
    artifact, folder = swept
    trials = artifact.metrics["trials"]
    assert len({str(t["point"]) for t in trials}) == 8
    best = min(trials, key=lambda t: t["held_out"])
    assert artifact.metrics["best"] == best["point"]
    store = open_store(folder / "forge")
    assert weights(store.get(best["key"])) == weights(artifact)
    assert artifact.metrics["held_out"]["after"]["loss"] < artifact.metrics["held_out"]["before"]["loss"]


@pytest.mark.slow
def test_a_trial_has_the_key_and_the_bits_of_the_same_training_alone(
    swept: tuple[Artifact, Path], home: Path, tmp_path: Path
) -> None:
    artifact, _ = swept
    point = {"rank": 4, "alpha_ratio": 2, "learning_rate": 0.003}
    trial = next(t for t in artifact.metrics["trials"] if t["point"] == point)
    settings = {"batch_size": 4, "epochs": 20, "learning_rate": 0.003, "lora": {"rank": 4, "alpha": 8}}
    alone = adapter(attempt(tmp_path, write_manifest(home, tmp_path, "chat", **settings)))
    together = open_store(swept[1] / "forge").get(trial["key"])
    assert alone.key == together.key
    assert weights(alone) == weights(together)
    assert alone.metrics["losses"] == together.metrics["losses"]


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["driver", "ray::Pack", "ray::LaneTrial"])
def test_a_killed_sweep_ends_where_an_unbroken_one_does(
    victim: str, swept: tuple[Artifact, Path], home: Path, tmp_path: Path
) -> None:
    manifest = write_manifest(home, tmp_path, "chat", **SWEEP)
    run = attempt(tmp_path, manifest)
    run.wait_for(lambda e: e["stage"] == "tuned" and e["numbers"].get("done", 0) >= 12)
    strike(run, victim)
    if victim == "driver":
        run = attempt(tmp_path, manifest)
    found = adapter(run)
    assert outcome(found) == outcome(swept[0])
    assert found.metrics["best"] == swept[0].metrics["best"]


POPULATION = SWEEP | {
    # At the first rate nothing is learned, so its trial is the worst from the second measurement on.
    "space": {"learning_rate": [1e-9, 0.003, 0.01, 0.02], "rank": [4]},
    "stopping": {"name": "pbt", "mutate": ["learning_rate"]},
}


def check_population(artifact: Artifact, store: Store) -> None:
    """The hopeless trial took another over, and what it made is that one's continued."""
    trials = {t["trial"]: t for t in artifact.metrics["trials"]}
    assert sorted(trials) == ["00000", "00001", "00002", "00003"]
    taker = trials["00000"]
    assert taker["history"], "the hopeless trial went on alone"
    kept = store.get(taker["key"])
    assert kept.config["history"] == taker["history"]
    losses = kept.metrics["losses"]
    assert [step for step, _ in losses] == list(range(1, taker["step"] + 1))
    leg = taker["history"][0]
    giver = trials[leg["trial"]]
    if not giver["history"]:
        whole = store.get(giver["key"]).metrics["losses"]
        assert losses[: leg["step"]] == whole[: leg["step"]], "the curve is the giver's until it was taken"
    before, after = (kept.metrics["held_out"][when]["loss"] for when in ("before", "after"))
    assert after < before - 0.1
    plain = [t for t in trials.values() if not t["history"]]
    assert all("history" not in store.get(t["key"]).config for t in plain)


@pytest.mark.slow
def test_in_a_population_a_hopeless_trial_goes_on_from_a_good_one(home: Path, tmp_path: Path) -> None:
    run = attempt(tmp_path, write_manifest(home, tmp_path, "chat", **POPULATION))
    artifact = adapter(run)
    check_population(artifact, open_store(run.store))
    assert "trial 00000 took over trial" in run.log.read_text()
    events = sorted((run.store / "runs").glob("*/tensorboard/tuned/*/events.out.tfevents.*"))
    assert [file.parent.name for file in events] == ["00000", "00001", "00002", "00003"]


@pytest.mark.slow
def test_a_killed_population_goes_on(home: Path, tmp_path: Path) -> None:
    manifest = write_manifest(home, tmp_path, "chat", **POPULATION)
    run = attempt(tmp_path, manifest)
    run.wait_for(lambda e: e["stage"] == "tuned" and "took over" in e["message"])
    strike(run, "driver")
    again = attempt(tmp_path, manifest)
    check_population(adapter(again), open_store(again.store))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("search", "stopping"),
    [
        ({"name": "random", "trials": 6}, {"name": "asha", "reduction": 2}),
        ({"name": "optuna", "trials": 4}, None),
    ],
)
def test_searchers_draw_and_asha_stops(
    home: Path, tmp_path: Path, search: dict, stopping: dict | None
) -> None:
    space = {"rank": [2, 4, 8], "learning_rate": {"low": 0.0001, "high": 0.1, "log": True}}
    settings = SWEEP | {"space": space, "search": search, "epochs": 8}
    if stopping:
        settings["stopping"] = stopping
    artifact = adapter(attempt(tmp_path, write_manifest(home, tmp_path, "chat", **settings)))
    trials = artifact.metrics["trials"]
    assert len(trials) == search["trials"]
    assert len({t["point"]["learning_rate"] for t in trials}) == len(trials)
    assert all(0.0001 <= t["point"]["learning_rate"] <= 0.1 for t in trials)
    stopped = [t for t in trials if t["stopped"]]
    assert bool(stopped) == bool(stopping)
    assert artifact.metrics["best"] not in [t["point"] for t in stopped]
