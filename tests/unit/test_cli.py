"""The command as typed: a mistake costs one line and exit code 1 (2 for usage), never a stack trace."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from actors.session import polite_exit
from largeforge_ray.config import load_manifest
from largeforge_ray.flow import make_plan
from largeforge_ray.models import Hardware
from largeforge_ray.observe import EventLog
from largeforge_ray.store import open_store
from tests.contracts._tree import ROOT
from tests.unit._commands import Typed, command
from tests.unit.test_plan import MANIFEST, publish, write_model, write_prompts
from train_jobs.cli import cli

ROOMY = Hardware(cpus=8, gpus=0, memory_gib=64.0, disk_gib=100.0)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in with a manifest, on a machine with room."""
    monkeypatch.chdir(tmp_path)
    # What this machine has free just now is not the question.
    monkeypatch.setattr("largeforge_ray.models.detect", lambda folder=None: ROOMY)
    write_model(tmp_path / "model")
    write_prompts(tmp_path / "data/orders.jsonl")
    (tmp_path / "demo.yaml").write_text(MANIFEST)
    return tmp_path


@pytest.fixture
def typed(home: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Typed]:
    """Runs a command; gives its exit code and what stands on standard output and error."""
    with command(capsys) as run:
        yield run


def refused(typed: Typed, *words: str) -> str:
    """The one line of an error."""
    code, _, err = typed(*words)
    assert code == 1
    assert "Traceback" not in err
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


# plan.


def test_plan_shows_each_stage_with_its_key_and_makes_nothing(typed: Typed, home: Path) -> None:
    code, out, err = typed("plan", "demo.yaml")
    assert (code, err) == (0, "")
    store = open_store(home / "forge")
    plan = make_plan(load_manifest(home / "demo.yaml"), store, home)
    head, *lines, last = out.splitlines()
    assert head.split() == ["stage", "kind", "key", "state", "CPUs", "memory", "reads"]
    assert [line.split()[:3] for line in lines] == [[s.name, s.kind, s.key[:16]] for s in plan.stages]
    assert all("to run" in line for line in lines)
    assert lines[-1].endswith("tuned, outcomes, base")
    assert last == f"6 of 6 stages would run, in store {store.url}"
    assert list(store.artifacts()) == []


def test_plan_shows_what_the_store_already_has(typed: Typed, home: Path) -> None:
    store = open_store(home / "elsewhere")
    plan = make_plan(load_manifest(home / "demo.yaml"), store, home)
    publish(store, plan["prompts"])
    _, out, _ = typed("plan", "demo.yaml", "--store", "elsewhere")
    states = {line.split()[0]: "cached" in line for line in out.splitlines()[1:-1]}
    assert states == {stage.name: stage.name == "prompts" for stage in plan.stages}
    assert out.splitlines()[-1].startswith("5 of 6 stages would run")


def test_paths_are_looked_up_from_the_manifest_and_the_store_from_the_working_folder(
    typed: Typed, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = home / "below"
    below.mkdir()
    monkeypatch.chdir(below)
    code, out, _ = typed("plan", "../demo.yaml")
    assert code == 0
    assert out.splitlines()[-1].endswith(str(below / "forge"))


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "kind: teach",
            "kind: taech",
            "demo.yaml:5: stages.1: kind 'taech' is not a stage kind; did you mean",
        ),
        ("samples: 2", "sample: 2", "demo.yaml:5: unknown key 'sample' in stages.1; did you mean 'samples'?"),
        ("data: rows", "data: row", "demo.yaml:6: 'row' names no stage; did you mean 'rows'?"),
        ("data/orders", "data/oders", "oders.jsonl' does not exist; paths are relative to the manifest"),
        ("source: model", "source: ./modle", "model source './modle' is not a folder; give package:NAME"),
        ("rank: 8", "rank: 99", "rank 99 of stage 'tuned' exceeds max_lora_rank 16 of 'live'"),
        ("workers: 1", "workers: 9", "stage 'tuned' asks for 9 CPUs, there are 8; lower workers"),
        ("name: demo", "name: [demo", "not valid YAML: "),
    ],
)
def test_a_mistake_in_the_manifest_is_one_line_before_anything_starts(
    typed: Typed, home: Path, command: str, old: str, new: str, said: str
) -> None:
    (home / "demo.yaml").write_text(MANIFEST.replace(old, new))
    assert said in refused(typed, command, "demo.yaml")
    assert not (home / "forge/runs").exists()


@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_manifest_that_is_not_there_is_one_line(typed: Typed, home: Path, command: str) -> None:
    assert (
        refused(typed, command, "dmo.yaml") == "manifest 'dmo.yaml' does not exist; did you mean 'demo.yaml'?"
    )
    assert "cannot be read" in refused(typed, command, "data")


def test_a_machine_that_is_too_small_is_told_after_the_plan(
    typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Hardware(cpus=8, gpus=0, memory_gib=4.0, disk_gib=100.0)
    monkeypatch.setattr("largeforge_ray.models.detect", lambda folder=None: small)
    code, out, err = typed("plan", "demo.yaml")
    assert (code, len(out.splitlines())) == (1, 8)
    assert err.startswith("error: stage 'rows' needs about 5.0 GiB of memory, 4.0 GiB is available; ")


# The store's commands.


@pytest.mark.parametrize(
    "words",
    [["plan", "demo.yaml"], ["run", "demo.yaml"], ["show"], ["lineage", "x"], ["report"]],
    ids=lambda words: words[0],
)
def test_a_store_that_cannot_be_opened_is_one_line(typed: Typed, home: Path, words: list[str]) -> None:
    assert "a file lies where a folder must be" in refused(typed, *words, "--store", "demo.yaml")
    assert (home / "demo.yaml").read_text() == MANIFEST
    assert "nosuch://x" in refused(typed, *words, "--store", "nosuch://x/y")


def test_an_empty_store_says_how_to_fill_it(typed: Typed, home: Path) -> None:
    code, out, err = typed("show")
    assert (code, err) == (0, "")
    assert out.endswith("holds no artifacts; make some with: largeforge run MANIFEST\n")
    assert "no artifact" in refused(typed, "show", "rows")
    assert "no artifact" in refused(typed, "lineage", "abcd1234")
    message = refused(typed, "report")
    assert message == f"store {home / 'forge'} holds no runs; start one with: largeforge run MANIFEST"


def test_show_and_lineage_find_an_artifact_by_its_name_and_by_its_key(typed: Typed, home: Path) -> None:
    store = open_store(home / "forge")
    plan = make_plan(load_manifest(home / "demo.yaml"), store, home)
    made = {name: publish(store, plan[name]) for name in ("base", "prompts", "rows")}
    _, listed, _ = typed("show")
    assert [line.split()[1:] for line in listed.splitlines()] == [
        [one.kind, one.key[:16], one.name] for one in made.values()
    ]
    by_name, by_key = typed("show", "rows"), typed("show", made["rows"].key[:10])
    assert by_name == by_key
    assert f"key: {made['rows'].key}" in by_name[1]
    assert "content: 4" in by_name[1]  # the file and its bytes
    code, tree, _ = typed("lineage", "rows")
    assert code == 0
    assert [line.split()[-4 if "─" not in line else 2] for line in tree.splitlines()] == [
        "rows", "prompts", "base"
    ]  # fmt: skip
    assert "choose one of: " in refused(typed, "lineage", "nothing")


def test_report_writes_the_page_of_the_newest_run_or_of_the_one_named(typed: Typed, home: Path) -> None:
    store = open_store(home / "forge")
    stage = {"name": "prompts", "kind": "dataset", "artifact_kind": "dataset", "key": "a" * 64, "parents": [],
             "inputs": [], "cached": False, "config": {}, "resources": {}}  # fmt: skip
    for run in ("20250101-000000-aaaa", "20250102-000000-bbbb"):
        record = {"run": run, "manifest": "demo", "created": "2025-01-01T00:00:00+00:00", "stages": [stage]}
        store.write_bytes(f"runs/{run}/plan.json", json.dumps(record).encode())
        with EventLog(store, run) as log:
            log.emit("prompts", "started")
    code, out, _ = typed("report")
    assert (code, out.strip()) == (0, str(home / "forge/runs/20250102-000000-bbbb/report.html"))
    assert "<html" in Path(out.strip()).read_text()
    _, out, _ = typed("report", "20250101-000000-aaaa")
    assert out.strip().endswith("20250101-000000-aaaa/report.html")
    message = refused(typed, "report", "../x")
    assert message.startswith("run '../x' is not in store ")
    assert message.endswith("newest runs: 20250101-000000-aaaa, 20250102-000000-bbbb")


def test_the_doctor_prints_each_finding_with_its_fix_and_counts_them(typed: Typed) -> None:
    code, out, err = typed("doctor", "--quick", "--store", "demo.yaml")
    assert code == 1
    failed = [line for line in out.splitlines() if line.startswith("FAIL")]
    assert any("store" in line and "a file lies where a folder must be" in line for line in failed)
    assert out.count("fix: ") == len(failed)
    assert err == f"error: {len(failed)} finding(s); each names its fix above\n"


# Usage, help and ends.


@pytest.mark.parametrize(
    "words",
    [
        ["paln", "demo.yaml"],
        ["plan"],
        ["plan", "demo.yaml", "again.yaml"],
        ["plan", "demo.yaml", "--sotre", "x"],
        ["show", "--store"],
        ["lineage"],
        ["serve", "--port", "many"],
        ["doctor", "--quick=maybe"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2_and_says_what_is_wrong(typed: Typed, words: list[str]) -> None:
    code, out, err = typed(*words)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in err


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_each_command_explains_itself(typed: Typed, command: str) -> None:
    code, out, _ = typed(command, "--help")
    assert code == 0
    assert f"{command} [OPTIONS]" in out
    about = (cli.commands[command].help or "").replace("\b", "")  # which keeps click from rewrapping
    assert about
    assert " ".join(about.split()) in " ".join(out.split())
    assert typed(command, "-h")[1] == out


def test_the_command_alone_shows_how_to_start(typed: Typed) -> None:
    _, out, err = typed()
    _, asked, _ = typed("--help")
    for shown in (out + err, asked):
        assert "largeforge quickstart" in shown
        assert all(f"  {command} " in shown for command in cli.commands)


def test_the_version_is_the_packages(typed: Typed) -> None:
    assert typed("--version")[:2] == (0, f"largeforge, version {version('largeforge-ray')}\n")


def test_a_mistake_in_a_process_of_its_own_is_one_line_too(home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "train_jobs.run", "--manifest", "zzz"],
        cwd=home, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: manifest 'zzz' does not exist; check the path\n"


def work_until(number: signal.Signals, cleaned: list[str]) -> None:
    with polite_exit():
        try:
            signal.raise_signal(number)
        finally:
            cleaned.append("yes")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_cleans_up_and_exits_130(
    number: signal.Signals, typed: Typed, capsys: pytest.CaptureFixture[str]
) -> None:
    cleaned: list[str] = []
    with pytest.raises(SystemExit) as end:
        work_until(number, cleaned)
    assert (end.value.code, cleaned) == (130, ["yes"])
    assert capsys.readouterr().err == "interrupted; run the same command again to go on where it stopped\n"
