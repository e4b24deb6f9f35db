"""`largeforge submit` and `largeforge top` on a real cluster with a token."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.local_ray.conftest import ROOT, Forge
from tests.local_ray.test_jobs import CLUSTER, head

__all__ = ["head"]  # the fixture

pytestmark = pytest.mark.timeout(400)
LARGEFORGE = Path(sys.executable).with_name("largeforge")


def submit(head: str, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [LARGEFORGE, "submit", "--address", head, *words]
    return subprocess.run(
        command, cwd=ROOT, env=CLUSTER | more, capture_output=True, text=True, timeout=300, check=False
    )


def test_a_manifest_is_followed_to_its_end_and_again_does_nothing(head: str, forge: Forge) -> None:
    folder = forge.folder / "project"
    folder.mkdir()
    manifest = yaml.safe_load(forge.manifest.read_text())
    (folder / "orders.jsonl").write_text((forge.folder / "orders.jsonl").read_text())
    (folder / "job.yaml").write_text(yaml.safe_dump(manifest, sort_keys=False))
    words = [str(folder / "job.yaml"), "--working-dir", str(folder), "--store", str(forge.store)]
    words += ["--submission-id", "nightly", "--env", "PYTHONPATH"]
    job = submit(head, *words, PYTHONPATH=str(ROOT))
    assert job.returncode == 0, job.stdout + job.stderr
    assert "nothing to do: every stage was cached" in job.stdout
    assert f"job nightly: {head}/#/jobs/nightly" in job.stderr
    assert job.stderr.endswith("job nightly succeeded, exit code 0\n")
    again = submit(head, *words, PYTHONPATH=str(ROOT))
    assert (again.returncode, "as nightly-2" in again.stderr) == (0, True), again.stdout + again.stderr


@pytest.mark.parametrize("code", [0, 1, 3])
def test_the_exit_code_of_any_command_arrives(head: str, code: int, tmp_path: Path) -> None:
    script = f"import sys; print('said', flush=True); sys.exit({code})"
    job = submit(head, "--working-dir", str(tmp_path), "--", "python", "-c", script)
    assert job.returncode == code, job.stderr
    assert "\nsaid\n" in job.stdout


def test_ctrl_c_ends_the_job_where_it_runs(head: str, tmp_path: Path) -> None:
    mark = tmp_path / "ended"
    script = (
        "import pathlib, signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(mark)!r}).touch(), sys.exit(130)))\n"
        "print('under way', flush=True)\n"
        "time.sleep(300)\n"
    )
    (tmp_path / "job").mkdir()
    command = [LARGEFORGE, "submit", "--address", head, "--working-dir", str(tmp_path / "job")]
    following = subprocess.Popen(
        [*command, "--", "python", "-c", script],
        env=CLUSTER,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert following.stdout is not None
    while "under way" not in (line := following.stdout.readline()):
        assert line, "the job ended before it began"
    following.send_signal(signal.SIGINT)
    _, err = following.communicate(timeout=60)
    assert following.returncode == 130, err
    assert mark.exists()
    assert "Traceback" not in err


def test_a_wrong_token_is_one_line(head: str) -> None:
    job = submit(head, "--", "python", "-c", "1", RAY_AUTH_TOKEN="0" * 64)
    assert (job.returncode, len(job.stderr.splitlines())) == (1, 1)
    assert "wants a token: Authentication failed" in job.stderr


def test_top_shows_the_node_and_the_actors_of_a_job(head: str, forge: Forge, tmp_path: Path) -> None:
    script = (
        "import ray, time\n"
        "@ray.remote(num_cpus=0)\n"
        "class Watchman:\n"
        "    def here(self): return 1\n"
        "ray.init(log_to_driver=False)\n"
        "there = Watchman.remote()\n"
        "ray.get(there.here.remote())\n"
        "time.sleep(120)\n"
    )
    job = submit(head, "--detach", "--working-dir", str(tmp_path), "--", "python", "-c", script)
    assert job.returncode == 0, job.stderr
    command = [LARGEFORGE, "top", "--once", "--store", str(forge.store), "--address", head]
    for _ in range(60):
        seen = subprocess.run(command, env=CLUSTER, capture_output=True, text=True, timeout=60, check=True)
        if "Watchman 1" in seen.stdout and "GiB" in seen.stdout:
            break
        time.sleep(1)
    assert "Watchman 1" in seen.stdout, seen.stdout
    assert re.search(r"\d+% of \d+ +- +[\d.]+ of [\d.]+ GiB", seen.stdout), seen.stdout
    assert re.search(r"^\d{8}-\d{6}-\w{4} +done", seen.stdout, re.MULTILINE), seen.stdout
    stop = [LARGEFORGE.with_name("ray"), "job", "stop", "--address", head, job.stdout.strip()]
    subprocess.run(stop, env=CLUSTER, capture_output=True, timeout=60, check=True)
