"""What `largeforge top` sees: runs by their events, experts by the router's cards, nodes by the dashboard."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from largeforge_ray.observe import EventLog
from largeforge_ray.observe.cluster import Cluster, Node, parse_cluster
from largeforge_ray.observe.live import RunView, Snapshot, observe, run_view
from largeforge_ray.store import Store, open_store
from largeforge_ray.types import RunEvent
from train_jobs.top import duration, render

NOW = 10_000.0
CARD = {
    "name": "orders",
    "state": "live",
    "artifact": "1f2e3d4c5b6a7988",
    "reason": "",
    "replicas": 2,
    "up": True,
    "running": 5,
    "waiting_s": 1.25,
    "speculation": {"on": True, "acceptance": 0.4375, "accepted_length": 2.0, "drafted": 9, "accepted": 4},
}
NODE = {
    "hostname": "node-1",
    "cpu": 37.5,
    "cpus": [8, 4],
    "mem": [32 * 1024**3, 24 * 1024**3, 25.0, 8 * 1024**3],
    "gpus": [{"utilizationGpu": 90}, {"utilizationGpu": None}],
    "raylet": {"state": "ALIVE"},
}
GONE = {"raylet": {"state": "DEAD"}}


def events(*told: tuple[float, str, str, dict[str, Any]]) -> list[RunEvent]:
    return [RunEvent(at, "r", stage, kind, numbers) for at, stage, kind, numbers in told]


def steps(*done: tuple[float, int]) -> list[RunEvent]:
    notes = [(at, "tuned", "progress", {"step": step, "steps": 100}) for at, step in done]
    return events((0, "rows", "cached", {}), (1, "tuned", "started", {}), *notes)


def plain(snapshot: Snapshot, width: int) -> str:
    from rich.console import Console

    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(render(snapshot, width))
    return capture.get()


def test_a_run_shows_its_stage_how_far_it_is_and_when_it_is_over() -> None:
    view = run_view("r", ["rows", "tuned", "live"], steps((10, 20), (20, 40)), 25)
    assert (view.state, view.stage, view.stages_done, view.stages) == ("running", "tuned", 1, 3)
    assert (view.done, view.total, view.rate) == (40, 100, 2.0)
    assert view.left_s == pytest.approx(30)
    assert view.heard == 20


def test_one_note_of_progress_gives_no_rate_and_no_time_left() -> None:
    view = run_view("r", ["tuned"], steps((10, 20)), 25)
    assert (view.done, view.rate, view.left_s) == (20, None, None)


def test_a_rate_counts_what_this_attempt_did_with_work_of_one_kind() -> None:
    resumed = steps((10, 10), (11, 90)) + events(
        (20, "tuned", "started", {}),
        (30, "tuned", "progress", {"done": 5, "total": 50}),
        (40, "tuned", "progress", {"done": 200, "total": 400}),
        (50, "tuned", "progress", {"done": 300, "total": 400}),
    )
    view = run_view("r", ["rows", "tuned"], resumed, 51)
    assert (view.rate, view.left_s) == (10.0, 10.0)


def test_a_run_is_done_failed_or_silent_by_its_last_sign_of_life() -> None:
    under_way = steps((10, 20))
    finished = [*under_way, *events((30, "tuned", "finished", {"seconds": 29.0}))]
    failed = [*under_way, *events((30, "tuned", "failed", {}))]
    assert run_view("r", ["rows", "tuned"], finished, 99_999).state == "done"
    assert run_view("r", ["rows", "tuned", "live"], finished, 31).state == "running"
    assert run_view("r", ["rows", "tuned"], failed, 31).state == "failed"
    assert run_view("r", ["rows", "tuned"], under_way, 700).state == "silent"
    assert run_view("r", ["rows"], [], 5).state == "silent"
    assert run_view("r", ["rows", "tuned", "live"], finished, 31).total is None


def test_the_stores_runs_are_read_newest_first_and_looking_changes_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path / "forge")
    for run in ("20250101-000000-aaaa", "20250102-000000-bbbb"):
        store.write_bytes(f"runs/{run}/plan.json", b'{"stages": [{"name": "rows"}, {"name": "tuned"}]}')
        with EventLog(store, run, clock=lambda: NOW) as log:
            log.emit("rows", "started")
            log.emit("rows", "progress", {"done": 3, "total": 12})
    torn = tmp_path / "forge/runs/20250102-000000-bbbb/events.jsonl"
    torn.write_bytes(torn.read_bytes() + b'{"time": 1')
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    seen = observe(store, NOW + 5, cards=[CARD], cluster=Cluster())
    assert [view.run for view in seen.runs] == ["20250102-000000-bbbb", "20250101-000000-aaaa"]
    assert {(view.stage, view.done, view.total) for view in seen.runs} == {("rows", 3, 12)}
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_run_that_is_over_is_not_read_again(tmp_path: Path) -> None:
    store = open_store(tmp_path / "forge")
    for run, kind in (("1-over", "finished"), ("2-going", "started")):
        store.write_bytes(f"runs/{run}/plan.json", b'{"stages": [{"name": "rows"}]}')
        with EventLog(store, run, clock=lambda: NOW) as log:
            log.emit("rows", kind)
    first = observe(store, NOW, cards="", cluster="")
    for run in ("1-over", "2-going"):
        (tmp_path / f"forge/runs/{run}/events.jsonl").write_text("")
    second = observe(store, NOW, cards="", cluster="", before=first)
    assert [(view.run, view.state) for view in second.runs] == [("2-going", "silent"), ("1-over", "done")]


def test_what_cannot_be_seen_is_said_and_the_rest_is_shown(tmp_path: Path) -> None:
    store = Store(tmp_path / "none")
    seen = observe(store, NOW, cards="no router answers", cluster="no cluster answers")
    shown = plain(seen, 200).splitlines()
    assert shown[0] == f"RUNS: store {tmp_path / 'none'} holds no runs"
    assert shown[2] == "EXPERTS: no router answers"
    assert shown[4] == "WORKERS: no cluster answers"
    assert not (tmp_path / "none").exists()
    (tmp_path / "none/runs/r").mkdir(parents=True)
    (tmp_path / "none/runs/r/events.jsonl").write_text("nothing\n{}\n")
    assert (
        "line 1 of runs/r/events.jsonl is not an event"
        in observe(store, NOW, cards=[], cluster=Cluster()).absent["runs"]
    )


def test_a_dashboards_summary_becomes_nodes_and_actors() -> None:
    starting = {"raylet": {"state": "ALIVE"}}
    cluster = parse_cluster([NODE, GONE, starting], ["EngineActor", "RunBoard", "EngineActor"])
    used, total = 8 * 1024**3, 32 * 1024**3
    assert cluster.nodes == (Node("node-1", 8, 0.375, 2, 0.45, used, total),)
    assert cluster.actors == (("EngineActor", 2), ("RunBoard", 1))


def test_the_dashboard_still_has_what_its_own_page_asks_for() -> None:
    from ray.dashboard.modules.node import node_head
    from ray.util.state import StateApiClient

    assert callable(StateApiClient._do_request)
    served = inspect.getsource(node_head.NodeHead.get_all_nodes)
    assert '@routes.get("/nodes")' in served
    assert 'view == "summary"' in served
    assert "summary=all_node_summary" in served


def snapshot() -> Snapshot:
    run = RunView(
        "20250102-000000-bbbb", "running", "a-stage-with-a-long-name", 3, 6, 0, NOW - 7, 40, 100, 2.0
    )
    cluster = parse_cluster([NODE], ["EngineActor", "ServeReplica:default:RouterDeployment"])
    store = Store("/nowhere")
    seen = observe(store, NOW, cards=[CARD, CARD | {"up": False, "speculation": None}], cluster=cluster)
    return Snapshot(NOW, (run,), seen.experts, seen.cluster, {})


def test_a_frame_has_three_tables_with_their_numbers() -> None:
    shown = [line.split() for line in plain(snapshot(), 120).splitlines() if line.strip()]
    assert [line[0] for line in shown if line[0].isupper()] == ["RUNS", "EXPERTS", "WORKERS"]
    run, expert, down, node = shown[2], shown[5], shown[6], shown[9]
    assert run[1:4] == ["running", "a-stage-with-a-long-name", "(3/6)"]
    assert run[4:] == ["40/100", "30", "s", "7", "s", "ago", "2/s"]
    assert expert == ["orders", "live", "2", "5", "1.2", "s", "44%", "1f2e3d4c5b6a7988"]
    assert down[1:3] == ["live,", "down"]
    assert node == ["node-1", "38%", "of", "8", "45%", "of", "2", "8.0", "of", "32.0", "GiB"]
    assert " ".join(shown[-1]) == "actors: EngineActor 1, ServeReplica:default:RouterDeployment 1"


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_a_frame_fits_its_terminal(width: int) -> None:
    shown = plain(snapshot(), width)
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= width
    if width >= 60:
        assert "20250102-000000-bbbb" in shown
        assert "40/100" in shown


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(None, "-"), (-1, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (172800, "2 d")],
)
def test_times_are_told_in_the_unit_that_fits(seconds: float | None, said: str) -> None:
    assert duration(seconds) == said
