"""What a training survives on a cluster: lost, drained and returning nodes, and a disk that fills up."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from largeforge_ray.store import Artifact, open_store
from tests.local_ray import _chaos
from tests.local_ray.test_training import (
    STRUCK_AT,
    adapter,
    home,
    long_manifest,
    unbroken,
    weights,
    write_manifest,
)

__all__ = ["home", "unbroken"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@contextlib.contextmanager
def cluster_of(monkeypatch: pytest.MonkeyPatch, head_cpus: int, *others: int) -> Iterator[tuple[Any, list]]:
    """A cluster of raylets on this machine, which the runs of the test are sent to."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": head_cpus})
    try:
        nodes = [cluster.add_node(num_cpus=cpus) for cpus in others]
        monkeypatch.setitem(_chaos.ENVIRONMENT, "RAY_ADDRESS", cluster.address)
        monkeypatch.setitem(_chaos.ENVIRONMENT, "RAY_AUTH_MODE", os.environ.get("RAY_AUTH_MODE", "disabled"))
        yield cluster, nodes
    finally:
        cluster.shutdown()


def test_a_training_that_loses_a_node_goes_on_with_one_and_then_with_two(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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

    with cluster_of(monkeypatch, 1, 1) as (cluster, (second,)):
        run = _chaos.attempt(tmp_path, write_manifest(home, tmp_path, "chat", **settings))
        run.wait_for(lambda e: e["numbers"].get("step", 0) >= 600)
        assert workers_said(run) == ["2 worker(s)"]
        cluster.remove_node(second, allow_graceful=False)
        told.append(f"node lost at {time.monotonic() - began:.0f} s")
        run.wait_for(lambda e: "1 worker(s)" in e["message"])
        told.append(f"one worker at {time.monotonic() - began:.0f} s")
        cluster.add_node(num_cpus=1)
        deadline = time.monotonic() + 180
        while workers_said(run) != ["2 worker(s)", "1 worker(s)", "2 worker(s)"]:
            assert time.monotonic() < deadline, run.log.read_text()
            assert run.process.poll() is None, run.log.read_text()
            time.sleep(0.5)
        told.append(f"two workers again at {time.monotonic() - began:.0f} s")
        assert run.finish(400) == 0, run.log.read_text()
    print("; ".join(told))
    facts = open_store(run.store).get("tuned").metrics
    assert [step for step, _ in facts["losses"]] == list(range(1, facts["steps"] + 1))


def kill_raylet(cluster: Any, node: Any) -> None:
    cluster.remove_node(node, allow_graceful=False)


def drain(cluster: Any, node: Any) -> None:
    """The notice of a machine that is about to be taken away, and its end at the deadline."""
    notice = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot instance is taken back"]
    ray = str(Path(sys.executable).with_name("ray"))
    where = ["--address", cluster.address, "--node-id", node.node_id, "--deadline-remaining-seconds", "5"]
    subprocess.run([ray, "drain-node", *where, *notice], check=True, env=_chaos.ENVIRONMENT)
    time.sleep(5)
    cluster.remove_node(node, allow_graceful=False)


@pytest.mark.parametrize("end", [kill_raylet, drain])
def test_a_training_whose_node_goes_ends_with_the_bits_of_an_unbroken_one(
    end: Callable[[Any, Any], None],
    home: Path,
    unbroken: Artifact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with cluster_of(monkeypatch, 0, 1, 1) as (cluster, nodes):
        run = _chaos.attempt(tmp_path, long_manifest(home, tmp_path))
        run.wait_for(lambda e: e["numbers"].get("step", 0) >= STRUCK_AT)
        (worker,) = (a for a in ray_workers(nodes) if "ray::RayTrainWorker" in a[1])
        struck = time.monotonic()
        end(cluster, worker[0])
        run.wait_for(lambda e: "resumed at step" in e["message"])
        print(f"resumed {time.monotonic() - struck:.0f} s after the node was struck")
        found = adapter(run)
    assert weights(found) == weights(unbroken)
    assert found.metrics["losses"] == unbroken.metrics["losses"]


def ray_workers(nodes: list[Any]) -> Iterator[tuple[Any, str]]:
    """Every worker process as its node and its title."""
    import psutil

    for node in nodes:
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        for process in raylet.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                yield node, " ".join(process.cmdline())


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A store on a disk just large enough that a run starts."""
    folder = tmp_path / "forge"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2300m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_between_checkpoints_is_named_and_the_run_goes_on_when_there_is_room(
    home: Path, unbroken: Artifact, disk: Path
) -> None:
    manifest = long_manifest(home, disk.parent)
    run = _chaos.attempt(disk.parent, manifest)
    run.wait_for(lambda e: e["numbers"].get("step", 0) >= STRUCK_AT)
    fill(disk / "filler")
    try:
        assert run.finish() == 1
        console = run.log.read_text()
        assert "Traceback" not in console
        assert "No space left on device" in console.splitlines()[-1]
    finally:
        (disk / "filler").unlink()
    again = _chaos.attempt(disk.parent, manifest)
    found = adapter(again)
    assert "resumed at step" in again.log.read_text()
    assert weights(found) == weights(unbroken)
    assert found.metrics["losses"] == unbroken.metrics["losses"]


def fill(file: Path) -> None:
    with file.open("wb", buffering=0) as out, contextlib.suppress(OSError):
        while out.write(bytes(1 << 20)):
            pass
