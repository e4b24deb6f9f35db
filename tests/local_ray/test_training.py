"""Training through Ray Train with a model of two layers: the same result on two workers and after a kill."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import yaml

from largeforge_ray.store import Artifact, open_store
from tests.local_ray._chaos import Attempt, attempt, strike
from tests.unit._tiny import make_rows, tiny_model

ROWS, STEPS, STRUCK_AT = 48, 900, 400


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model and rows of each form."""
    folder = tmp_path_factory.mktemp("training")
    tiny_model(folder)
    for form in ("chat", "preference"):
        rows = [{k: v for k, v in r.items() if k != "item_id"} for r in make_rows(form, ROWS)]
        rows = [{k: v for k, v in r.items() if v is not None} for r in rows]
        (folder / f"{form}.json").write_text(json.dumps(rows))
    return folder


def write_manifest(home: Path, folder: Path, form: str, **settings: object) -> Path:
    manifest = {
        "name": "training",
        "model": {"source": str(home / "tiny"), "max_model_len": 512},
        "stages": [
            {
                "name": "given",
                "kind": "dataset",
                "source": str(home / f"{form}.json"),
                "split": {"test": 0.2},
            },
            {
                "name": "tuned",
                "kind": "train",
                "data": "given",
                "precision": "float32",
                "learning_rate": 0.01,
                "probe": False,  # a model this small has heads that no engine has a kernel for
            }
            | settings,
        ],
    }
    path = folder / "m.yaml"
    path.write_text(yaml.safe_dump(manifest, sort_keys=False))
    return path


def adapter(run: Attempt) -> Artifact:
    assert run.finish() == 0, run.log.read_text()
    assert "Traceback" not in run.log.read_text()
    return open_store(run.store).get("tuned")


def weights(artifact: Artifact) -> list[str]:
    return [f.sha256 for f in artifact.files if f.path == "adapter_model.safetensors"]


WAYS = {
    "one": {"workers": 1},
    "ddp": {"workers": 2},
    "zero3": {"workers": 2, "strategy": "zero3", "checkpoint_every": 2},
    "best": {"workers": 1, "keep": "best", "checkpoint_every": 2},
}


@pytest.fixture(scope="module")
def ways(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Artifact]:
    """One training in each of the ``WAYS``, made when it is first asked for."""

    @cache
    def made(name: str) -> Artifact:
        folder = tmp_path_factory.mktemp(name)
        settings = {"algorithm": "dpo", "batch_size": 8, "epochs": 2} | WAYS[name]
        return adapter(attempt(folder, write_manifest(home, folder, "preference", **settings)))

    return made


@pytest.mark.parametrize("way", ["ddp", pytest.param("zero3", marks=pytest.mark.slow)])
def test_two_workers_learn_what_one_does(way: str, ways: Callable[[str], Artifact]) -> None:
    """The same rows, the same seed, the same losses: only the order of sums differs."""
    metrics = [ways(name).metrics for name in ("one", way)]
    one, two = ([loss for _, loss in m["losses"]] for m in metrics)
    assert one[0] == pytest.approx(0.6931, abs=1e-4), "the reference is the base, so the first loss is log 2"
    assert one[-1] < 0.5
    assert two == pytest.approx(one, rel=2e-3)
    after = [m["held_out"]["after"] for m in metrics]
    assert after[0]["loss"] == pytest.approx(after[1]["loss"], rel=2e-3)
    assert ways(way).key == ways("one").key, "how the work is laid out is not part of the key"


@pytest.mark.slow
def test_of_checkpoints_the_best_on_held_out_rows_is_the_adapter(ways: Callable[[str], Artifact]) -> None:
    best, one = ways("best").metrics, ways("one").metrics
    curve = dict(best["curve"])
    assert curve[best["steps"]] == min(curve.values())
    whole = dict(map(tuple, one["losses"]))
    assert dict(map(tuple, best["losses"])) == {s: whole[s] for s in whole if s <= best["steps"]}


@pytest.fixture(scope="module")
def unbroken(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("unbroken")
    return adapter(attempt(folder, long_manifest(home, folder)))


def long_manifest(home: Path, folder: Path) -> Path:
    settings = {"batch_size": 4, "epochs": STEPS * 4 / ROWS, "checkpoint_every": 50}
    return write_manifest(home, folder, "chat", **settings)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["driver", "ray::RayTrainWorker"])
def test_a_killed_training_ends_with_the_bits_of_an_unbroken_one(
    victim: str, home: Path, unbroken: Artifact, tmp_path: Path
) -> None:
    manifest = long_manifest(home, tmp_path)
    run = attempt(tmp_path, manifest)
    run.wait_for(lambda e: e["numbers"].get("step", 0) >= STRUCK_AT)
    strike(run, victim)
    if victim == "driver":
        run = attempt(tmp_path, manifest)
    found = adapter(run)
    assert re.search(r"resumed at step \d+0\b", run.log.read_text()), "nothing was resumed"
    assert weights(found) == weights(unbroken)
    assert found.metrics["losses"] == unbroken.metrics["losses"]
