"""Trainings and sweeps that hold what serving, or a stage of a higher priority, waits for; a farm that does
is in ``test_farm_room``."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.local_ray._chaos import Attempt, attempt
from tests.local_ray.test_sweep import SWEEP, outcome
from tests.local_ray.test_training import adapter, home, weights, write_manifest

__all__ = ["home"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TRAINING = {"batch_size": 4, "epochs": 300, "checkpoint_every": 300, "workers": 2}


class Expert:
    def __call__(self) -> str:
        return "here"


@pytest.fixture(scope="module")
def two_cpus() -> Iterator[str]:
    """The address of a cluster that one stage of two processes fills."""
    import ray
    from ray import serve

    ray.init("local", num_cpus=2, resources={"trainer": 2}, include_dashboard=True, log_to_driver=False)
    try:
        # No proxy: nobody asks anything over HTTP.
        serve.start(proxy_location="Disabled")
        yield ray.get_runtime_context().gcs_address
    finally:
        serve.shutdown()
        ray.shutdown()


def serve_for(seconds: float) -> float:
    """Deploy a replica of one CPU and take it away again; returns how long it had to wait for its place."""
    from ray import serve

    asked = time.monotonic()
    serve.run(
        serve.deployment(ray_actor_options={"num_cpus": 1})(Expert).bind(), name="expert", route_prefix=None
    )
    waited = time.monotonic() - asked
    time.sleep(seconds)
    serve.delete("expert")
    return waited


def said(run: Attempt) -> list[str]:
    return [event["message"] for event in run.events() if event["stage"] == "tuned"]


def begun(run: Attempt, done: int) -> None:
    run.wait_for(lambda e: e["stage"] == "tuned" and max(e["numbers"].get("step", 0), at(e)) >= done)


def at(event: dict[str, Any]) -> int:
    return int(event["numbers"].get("done", 0))


@pytest.fixture(scope="module")
def unbroken(two_cpus: str, home: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    made = {}
    for name, settings in (("train", TRAINING), ("sweep", SWEEP | {"per_process": 2})):
        folder = tmp_path_factory.mktemp(name)
        made[name] = adapter(
            attempt(folder, write_manifest(home, folder, "chat", **settings), cluster=two_cpus)
        )
    return made


def test_a_training_goes_at_a_checkpoint_for_a_replica_and_comes_back(
    two_cpus: str, home: Path, tmp_path: Path, unbroken: dict[str, Any]
) -> None:
    run = attempt(tmp_path, write_manifest(home, tmp_path, "chat", **TRAINING), cluster=two_cpus)
    begun(run, 60)
    waited = serve_for(4)
    print(f"\nserved {waited:.1f} s after it was asked for")
    assert waited < 45
    assert weights(adapter(run)) == weights(unbroken["train"])
    words = said(run)
    gone, back = words.index("the workers have gone"), words.index("nobody waits any more: training goes on")
    assert gone < back
    (resumed,) = (w for w in words[back:] if w.startswith("resumed at step"))
    assert int(resumed.rsplit(" ", 1)[1]) % 300 == 0


def test_a_pack_of_a_sweep_goes_for_a_replica_and_comes_back(
    two_cpus: str, home: Path, tmp_path: Path, unbroken: dict[str, Any]
) -> None:
    manifest = write_manifest(home, tmp_path, "chat", **SWEEP, per_process=2)
    run = attempt(tmp_path, manifest, cluster=two_cpus)
    begun(run, 8)
    waited = serve_for(4)
    print(f"\nserved {waited:.1f} s after it was asked for")
    assert waited < 30
    assert outcome(adapter(run)) == outcome(unbroken["sweep"])
    assert "others need room: 1 of 2 packs go on" in said(run)


def test_a_stage_of_a_higher_priority_gets_the_place_of_a_lower_one(
    two_cpus: str, home: Path, tmp_path: Path
) -> None:
    import ray

    low, high = tmp_path / "low", tmp_path / "high"
    low.mkdir()
    high.mkdir()
    endless = SWEEP | {"per_process": 2, "epochs": 2000, "measures": 100, "priority": -5}
    below = attempt(low, write_manifest(home, low, "chat", **endless), cluster=two_cpus)
    begun(below, 4)
    settings = TRAINING | {"workers": 1, "epochs": 10, "resources": {"trainer": 1}}
    above = attempt(high, write_manifest(home, high, "chat", **settings), cluster=two_cpus)
    begun(above, 1)
    assert ray.available_resources().get("trainer") == 1.0
    assert above.finish() == 0, above.log.read_text()
    assert below.process.poll() is None, "the sweep ended first, so nobody had to wait"
    assert "others need room: 1 of 2 packs go on" in said(below)
    below.wait_for(lambda e: e["message"] == "all packs are back")
    below.process.send_signal(signal.SIGINT)
    assert below.finish(60) == 130
    assert not any("need room" in word for word in said(above))
