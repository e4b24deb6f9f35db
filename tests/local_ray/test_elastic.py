"""A training with as many workers as there is room for, on a cluster that loses a node and gets one back."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from largeforge_ray.store import open_store
from tests.local_ray import _chaos
from tests.local_ray.test_training import home, write_manifest

__all__ = ["home"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_training_that_loses_a_node_goes_on_with_one_and_then_with_two(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    monkeypatch.setitem(_chaos.ENVIRONMENT, "RAY_ADDRESS", cluster.address)
    monkeypatch.setitem(_chaos.ENVIRONMENT, "RAY_AUTH_MODE", os.environ.get("RAY_AUTH_MODE", "disabled"))
    settings = {
        "batch_size": 8,
        "epochs": 900,
        "workers": {"min": 1, "max": 2},
        "checkpoint_every": 200,
        "learning_rate": 1e-4,
    }
    began = time.monotonic()
    told = []

    def workers_said(run: _chaos.Attempt) -> list[str]:
        return [e["message"].split(",")[0] for e in run.events() if "worker(s)" in e["message"]]

    try:
        run = _chaos.attempt(tmp_path, write_manifest(home, tmp_path, "chat", **settings))
        run.wait_for(lambda e: e["numbers"].get("step", 0) >= 600)
        assert workers_said(run) == ["2 worker(s)"]
        cluster.remove_node(second, allow_graceful=False)
        told.append(f"node lost at {time.monotonic() - began:.0f} s")
        run.wait_for(lambda e: "1 worker(s)" in e["message"])
        told.append(f"one worker at {time.monotonic() - began:.0f} s")
        cluster.add_node(num_cpus=1)
        run.wait_for(lambda e: "1 worker(s)" in e["message"])
        deadline = time.monotonic() + 180
        while workers_said(run) != ["2 worker(s)", "1 worker(s)", "2 worker(s)"]:
            assert time.monotonic() < deadline, run.log.read_text()
            assert run.process.poll() is None, run.log.read_text()
            time.sleep(0.5)
        told.append(f"two workers again at {time.monotonic() - began:.0f} s")
        assert run.finish(400) == 0, run.log.read_text()
    finally:
        cluster.shutdown()
    print("; ".join(told))
    facts = open_store(run.store).get("tuned").metrics
    assert [step for step, _ in facts["losses"]] == list(range(1, facts["steps"] + 1))
