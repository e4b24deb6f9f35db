"""A manifest as a Ray job on a running cluster, as `ray job submit` sends it."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from tests.local_ray.conftest import ENVIRONMENT, ROOT, Forge, free_port

pytestmark = pytest.mark.timeout(400)
RAY = Path(sys.executable).with_name("ray")
CLUSTER = ENVIRONMENT | {
    "PATH": f"{RAY.parent}:{os.environ['PATH']}",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """A head node of its own; yields the dashboard's address."""
    dashboard = free_port()
    options = [
        "--head",
        f"--port={free_port()}",
        f"--dashboard-port={dashboard}",
        # An agent that finds its port taken takes no jobs, and another cluster's holds the usual one.
        f"--dashboard-agent-listen-port={free_port()}",
        "--dashboard-host=127.0.0.1",
    ]
    process = subprocess.Popen(
        [RAY, "start", *options, "--num-cpus=2", "--disable-usage-stats", "--block"],
        env=CLUSTER,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{dashboard}"
    for _ in range(120):
        try:
            urllib.request.urlopen(f"{url}/api/jobs/", timeout=5).close()
        except urllib.error.HTTPError:
            break  # it answers, and wants the token
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    yield url
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    process.wait(30)
    for left in psutil.wait_procs(family, timeout=10)[1]:
        left.kill()


def submit(head: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [RAY, "job", "submit", "--address", head, "--working-dir", ".", "--", "python", "-m", *words]
    return subprocess.run(
        command, cwd=ROOT, env=CLUSTER, capture_output=True, text=True, timeout=300, check=False
    )


def test_a_job_runs_what_is_missing_on_the_cluster_it_was_sent_to(head: str, forge: Forge) -> None:
    manifest = yaml.safe_load(forge.manifest.read_text())
    next(s for s in manifest["stages"] if s["kind"] == "promote")["gate"]["min_gain"] = 0.01
    changed = forge.folder / "job.yaml"
    changed.write_text(yaml.safe_dump(manifest))
    job = submit(head, "train_jobs.run", "--manifest", str(changed), "--store", str(forge.store))
    assert job.returncode == 0, job.stdout + job.stderr
    assert "joined the Ray cluster" in job.stdout
    assert "1 of 6 stages to run" in job.stdout
    assert re.search(r"^  live +done", job.stdout, re.MULTILINE)
    assert "1 stages ran" in job.stdout


def test_a_job_that_cannot_work_fails_with_its_message(head: str, forge: Forge) -> None:
    job = submit(head, "train_jobs.run", "--manifest", str(forge.folder / "missing.yaml"))
    assert job.returncode != 0
    assert "missing.yaml" in job.stdout + job.stderr
    assert "Traceback" not in job.stdout
