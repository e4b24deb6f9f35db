"""Every job of ``train_jobs`` over two nodes that share no disk, with the manifest that comes with it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.local_ray._nodes import Nodes, possible
from tests.local_ray.conftest import ROOT, SHIPPED
from tests.local_ray.test_cluster import STORE, s3, three, watched

__all__ = ["s3", "three"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(possible() is not None, reason=str(possible())),
]
ROWS = 24
JOBS = sorted(
    path.stem
    for path in (ROOT / "train_jobs").glob("*.py")
    if "from train_jobs.training import main" in path.read_text()
)
PROCESSES = ("TrainWorker", "VLLM")
"""What those that hold a model call themselves."""


def shortened(stage: dict[str, Any]) -> dict[str, Any]:
    """Two processes, few steps, and one engine's start less."""
    if stage["kind"] == "train":
        drawn = isinstance(stage["algorithm"], dict) and stage["algorithm"]["name"] == "grpo"
        # What draws its answers has an engine beside its worker.
        return stage | {"workers": 1 if drawn else 2, "epochs": 1, "batch_size": 8, "probe": False}
    return stage | ({"engines": 2, "samples": 2} if stage["kind"] == "teach" else {})


@pytest.fixture(scope="module")
def work(three: Nodes) -> Path:
    folder = three.head.folder / "work"
    folder.mkdir()
    for rows in SHIPPED.glob("*.jsonl"):
        (folder / rows.name).write_text("\n".join(rows.read_text().splitlines()[:ROWS]) + "\n")
    for job in JOBS:
        manifest = yaml.safe_load((SHIPPED / f"{job}.yaml").read_text())
        manifest["stages"] = [shortened(s) for s in manifest["stages"] if s["kind"] != "evaluate"]
        (folder / f"{job}.yaml").write_text(yaml.safe_dump(manifest, sort_keys=False))
    return folder


def test_there_are_the_jobs_that_are_named() -> None:
    assert {"sft", "dpo", "orpo", "qlora", "teach"} <= set(JOBS)


@pytest.mark.parametrize("job", JOBS)
def test_a_job_runs_over_two_nodes_and_not_on_the_head(job: str, three: Nodes, work: Path) -> None:
    with watched(three) as seen:
        done = three.submit(f"train_jobs.{job}", "--config", f"{job}.yaml", "--store", STORE, work=work)
    print("\n".join(done.out.splitlines()[-4:]))
    assert done.code == 0, done.out + done.err
    ended = re.findall(r"^  (\S+) +(?:done|cached)", done.out, re.MULTILINE)
    stages = yaml.safe_load((work / f"{job}.yaml").read_text())["stages"]
    assert {stage["name"] for stage in stages} <= set(ended), done.out
    ran = {node: {p for p in PROCESSES for title in titles if p in title} for node, titles in seen.items()}
    assert ran.pop(three.head.name) == set()
    assert all(ran.values()), seen
