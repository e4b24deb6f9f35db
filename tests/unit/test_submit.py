"""`largeforge submit` against a job server that plays a script, through Ray's own client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from largeforge_ray.errors import ConfigError, StageError
from tests.unit._commands import Typed, command
from tests.unit._jobs import JobServer, serving
from tests.unit.test_plan import MANIFEST
from train_jobs import submitting
from train_jobs.dashboard import last_line

NOBODY = "http://127.0.0.1:9"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project: a manifest, a store, and what no job wants."""
    monkeypatch.chdir(tmp_path)
    for name in ("forge/runs/1", ".venv/bin", ".git/objects", "pkg/forge"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file.py").write_text("1")
    (tmp_path / "demo.yaml").write_text(MANIFEST)
    return tmp_path


@pytest.fixture
def typed(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Typed]:
    """Runs ``largeforge submit``; gives its exit code and what stands on standard output and error."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "set so that it is taken back afterwards")
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS")
    monkeypatch.setattr(submitting, "RETRY_S", 0.05)
    with command(capsys, "submit") as run:
        yield run


@pytest.fixture
def server() -> Iterator[JobServer]:
    with serving(JobServer()) as scripted:
        yield scripted


COMMAND = ("--", "python", "-m", "train_jobs.sft", "--config", "my manifest.yaml")


def test_a_manifest_runs_in_a_copy_of_the_folder_and_its_log_is_shown(
    typed: Typed, server: JobServer, home: Path
) -> None:
    code, out, err = typed("demo.yaml", "--store", "s3://bucket/forge", "--address", server.url)
    assert (code, out) == (0, "Running entrypoint\nhalf a line\ndone\n")
    job = server.jobs["raysubmit_1"]
    words = "python -m train_jobs.run --manifest demo.yaml --store s3://bucket/forge"
    assert job["entrypoint"] == words
    assert server.files == ["demo.yaml", "pkg/forge/file.py"]
    assert f"job raysubmit_1: {server.url}/#/jobs/raysubmit_1; Ctrl-C stops it" in err
    assert err.endswith("job raysubmit_1 succeeded, exit code 0\n")
    assert "WARNING" not in err


def test_a_command_is_sent_word_by_word(typed: Typed, server: JobServer) -> None:
    typed("--address", server.url, *COMMAND)
    assert server.jobs["raysubmit_1"]["entrypoint"] == (
        "python -m train_jobs.sft --config 'my manifest.yaml'"
    )


def test_ray_address_does_not_lead_the_job_elsewhere(
    typed: Typed, server: JobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    assert typed("--address", server.url, *COMMAND)[0] == 0


@pytest.mark.parametrize(("ended", "code"), [(1, 1), (2, 2), (130, 130), (-9, 137)])
def test_the_jobs_exit_code_is_the_commands(typed: Typed, server: JobServer, ended: int, code: int) -> None:
    server.ends = {"status": "FAILED", "driver_exit_code": ended, "message": "failed"}
    got, _, err = typed("--address", server.url, *COMMAND)
    assert got == code
    assert f"job raysubmit_1 failed, exit code {code}" in err


def test_a_job_that_somebody_stops_is_an_interrupted_one(typed: Typed, server: JobServer) -> None:
    server.ends = {"status": "STOPPED"}
    assert typed("--address", server.url, *COMMAND)[0] == 130


def test_a_job_that_never_ran_is_one_line_with_the_cause(typed: Typed, server: JobServer) -> None:
    server.ends = {"status": "FAILED", "message": "runtime_env setup failed:\nTraceback\nOSError: disk full"}
    code, _, err = typed("--address", server.url, *COMMAND)
    assert (code, err.splitlines()[-1]) == (1, "error: the job did not run: OSError: disk full")


@pytest.mark.parametrize("breaks", [1, 3])
def test_a_broken_connection_is_made_again_and_no_line_comes_twice(
    typed: Typed, server: JobServer, breaks: int
) -> None:
    server.breaks = breaks
    code, out, _ = typed("--address", server.url, *COMMAND)
    assert (code, out) == (0, "Running entrypoint\nhalf a line\ndone\n")
    assert server.followers == breaks + 1


def test_a_cluster_that_stays_away_is_given_up_with_the_way_back(
    typed: Typed, server: JobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submitting, "PATIENCE_S", 0)
    server.breaks = 1
    code, _, err = typed("--address", server.url, *COMMAND)
    assert code == 1
    assert "job raysubmit_1 was not heard of for 0 s and may go on: " in err
    assert f"ray job logs --address {server.url} --follow raysubmit_1" in err


def test_ctrl_c_stops_the_job_and_waits_for_its_end(typed: Typed, server: JobServer) -> None:
    server.interrupts = True
    code, out, err = typed("--address", server.url, *COMMAND)
    assert (code, out, server.stopped) == (130, "Running entrypoint\n", ["raysubmit_1"])
    assert "stopping job raysubmit_1" in err
    assert err.endswith("run the same command again to go on where it stopped\n")
    assert "Traceback" not in err


def test_a_job_that_cannot_be_stopped_is_told_with_the_way_to_stop_it(
    typed: Typed, server: JobServer
) -> None:
    server.interrupts, server.obeys = True, False
    code, _, err = typed("--address", server.url, *COMMAND)
    assert (code, server.stopped) == (1, [])
    assert "error: job raysubmit_1 has not stopped: " in err
    assert "no agent" in err
    assert f"ray job stop --address {server.url} raysubmit_1" in err


def test_a_detached_job_is_left_to_itself(typed: Typed, server: JobServer) -> None:
    code, out, err = typed("--detach", "--address", server.url, *COMMAND)
    assert (code, out, server.followers) == (0, "raysubmit_1\n", 0)
    assert f"ray job stop --address {server.url} raysubmit_1" in err


def test_a_job_that_is_over_goes_on_under_a_fresh_id(typed: Typed, server: JobServer) -> None:
    words = ("--submission-id", "nightly", "--address", server.url, *COMMAND)
    for _ in range(3):
        assert typed(*words)[0] == 0
    assert list(server.jobs) == ["nightly", "nightly-2", "nightly-3"]


def test_a_job_that_is_under_way_is_followed_and_not_started_again(typed: Typed, server: JobServer) -> None:
    words = ("--submission-id", "nightly", "--address", server.url)
    typed("--detach", *words, *COMMAND)
    code, out, err = typed(*words, *COMMAND)
    assert (code, list(server.jobs)) == (0, ["nightly"])
    assert out.endswith("done\n")
    assert "job nightly is under way already; following it" in err
    server.jobs["nightly"]["status"] = "RUNNING"
    code, _, err = typed(*words, "--", "python", "other.py")
    assert (code, list(server.jobs)) == (1, ["nightly"])
    assert "job 'nightly' is under way and is another one: python -m train_jobs.sft" in err


def test_a_variable_goes_along_and_a_secret_does_not(
    typed: Typed, server: JobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LARGEFORGE_LOG", "json")
    typed("--env", "LARGEFORGE_LOG", "--address", server.url, *COMMAND)
    assert server.jobs["raysubmit_1"]["runtime_env"]["env_vars"] == {
        "LARGEFORGE_LOG": "json",
        "RAY_JOB_STOP_WAIT_TIME_S": "30",
    }
    monkeypatch.setenv("HF_TOKEN", "hf_123")
    code, out, err = typed("--env", "HF_TOKEN", "--address", server.url, *COMMAND)
    assert (code, out) == (1, "")
    assert "--env HF_TOKEN looks like a secret" in err
    assert "hf_123" not in err


@pytest.mark.parametrize(
    "name", ["OPENAI_API_KEY", "OPENAI_APIKEY", "AWS_SECRET_ACCESS", "DB_PASSWORD", "TOKENS", "hf_token"]
)
def test_names_of_secrets_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="looks like a secret"):
        submitting.environment([name], {name: "x"})


def test_other_names_pass() -> None:
    given = {"TOKENIZERS_PARALLELISM": "false", "KEYBOARD": "de"}
    assert submitting.environment(list(given), given) == given


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dmo.yaml"], "manifest 'dmo.yaml' does not exist; did you mean 'demo.yaml'?"),
        (["demo.yaml"], "store './forge' is relative"),
        (["demo.yaml", "--store", "here"], "give --store a URL, or a path that every node has, such as /"),
        (["demo.yaml", "--working-dir", "pkg", "--store", "/s"], "outside the working dir"),
        (["--working-dir", "nowhere", *COMMAND], "working dir 'nowhere' is not a folder"),
        (["--submission-id", "a/b", *COMMAND], "submission id 'a/b' is not a plain name"),
        (["--store", "/s", *COMMAND], "give the command its own --store"),
        (["--env", "NOT_SET_ANYWHERE", *COMMAND], "there is no such variable; export it first"),
        (["--address", "localhost:8265", *COMMAND], "address 'localhost:8265' is no URL"),
        (["--address", NOBODY, *COMMAND], f"no Ray cluster answers at {NOBODY}: Connection refused; start"),
    ],
)
def test_a_mistake_is_one_line(typed: Typed, words: list[str], said: str) -> None:
    code, out, err = typed(*words)
    assert (code, out) == (1, "")
    assert said in err
    assert len(err.splitlines()) == 1


def test_a_missing_token_and_a_folder_too_large_are_one_line(typed: Typed, server: JobServer) -> None:
    server.refuses = "Package size (600.00MiB) exceeds the maximum size of 500.00MiB. To exclude large files"
    code, _, err = typed("--address", server.url, *COMMAND)
    assert (code, err) == (1, f"error: {server.url} refused: ValueError: {server.refuses}\n")
    server.token = "secret"
    code, _, err = typed("--address", server.url, *COMMAND)
    assert (code, len(err.splitlines())) == (1, 1)
    assert "wants a token: Authentication required" in err
    assert "export RAY_AUTH_MODE=token" in err


def test_a_fresh_id_is_the_first_that_is_not_over() -> None:
    assert submitting.free_id("a", {}) == "a"
    assert submitting.free_id("a", {"a": True, "a-2": True}) == "a-3"
    assert submitting.free_id("a", {"a": True, "a-2": False}) == "a-2"


def test_what_a_trace_ends_with_is_what_is_told() -> None:
    assert (
        last_line("Request failed: Traceback\n  File x\nValueError: too large\n.") == "ValueError: too large"
    )


def test_a_job_without_a_code_did_not_run() -> None:
    details: Any = SimpleNamespace(status="FAILED", driver_exit_code=None, message=None)
    with pytest.raises(StageError, match="the job did not run: FAILED"):
        submitting.exit_code(details)
