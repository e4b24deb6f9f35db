"""What each subcommand does, in library calls and prints."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from largeforge_ray.errors import ForgeError, StoreError

SHIPPED = Path(__file__).parent / "manifests" / "quickstart.yaml"


def _load(manifest: Path, store_url: str | None) -> tuple[Any, Any]:
    """The manifest and its open store; a relative store is looked up from the working folder."""
    from largeforge_ray.config import load_manifest
    from largeforge_ray.store import open_store

    loaded = load_manifest(manifest)
    return loaded, open_store(store_url or loaded.store)


def _check_here(plan: Any, store: Any) -> None:
    """Whether this machine can hold the plan; a cluster's nodes are Ray's to judge."""
    from largeforge_ray.flow import check_resources
    from largeforge_ray.models import detect

    if not os.environ.get("RAY_ADDRESS"):
        check_resources(plan, detect(store.local_root))


def show_plan(manifest: Path, store_url: str | None) -> None:
    from largeforge_ray.flow import make_plan

    loaded, store = _load(manifest, store_url)
    plan = make_plan(loaded, store, manifest.parent)
    click.echo(f"{'stage':<12}{'kind':<10}{'key':<18}{'state':<9}{'CPUs':>5}{'memory':>10}   reads")
    for s in plan.stages:
        state = "cached" if s.cached else "to run"
        needs = f"{s.resources['cpus']:>5.0f}{s.resources['memory_gib']:>6.1f} GiB"
        click.echo(f"{s.name:<12}{s.kind:<10}{s.key[:16]:<18}{state:<9}{needs}   {', '.join(s.inputs)}")
    click.echo(f"{len(plan.missing)} of {len(plan.stages)} stages would run, in store {store.url}")
    _check_here(plan, store)


def run_manifest(manifest: Path, store_url: str | None) -> Any:
    """Run a manifest with progress; returns the ``RunResult``."""
    loaded, store = _load(manifest, store_url)
    return run_loaded(loaded, store, manifest.parent)


def usual_tools(connect: Callable[[], None], listen: Callable[[Any], None]) -> Any:
    """What a run starts: every actor as Ray's own process."""
    from actors import start_board, start_endpoint, start_engine, start_pack
    from actors.scorer import start_scorer
    from largeforge_ray.flow import Tools

    return Tools(
        connect=connect,
        start_engine=start_engine,
        start_scorer=start_scorer,
        start_endpoint=start_endpoint,
        start_board=start_board,
        start_pack=start_pack,
        listen=listen,
    )


def run_loaded(loaded: Any, store: Any, folder: Path) -> Any:
    """Run a manifest that was read, whose paths are looked up from ``folder``."""
    from actors import ray_session
    from largeforge_ray.flow import make_plan, run_plan
    from largeforge_ray.observe import write_report
    from train_jobs.console import open_console

    started = time.monotonic()
    console = open_console()
    try:
        # It sets how quiet the libraries are, before planning imports some.
        with ray_session(console.say) as session:
            plan = make_plan(loaded, store, folder)
            missing = f"{len(plan.missing)} of {len(plan.stages)} stages to run"
            console.say(f"{loaded.name}: {missing}, store {store.url}")
            _check_here(plan, store)
            if plan.missing and os.environ.get("RAY_ADDRESS"):
                session.connect()  # a wrong address is better told before work is done than after
            tools = usual_tools(session.connect, console.listen)
            result = run_plan(plan, loaded, store, tools=tools)
    finally:
        console.close()
    path = write_report(store, result.run)
    did = f"{result.executed} stages ran" if result.executed else "nothing to do: every stage was cached"
    console.say(f"{did}; {time.monotonic() - started:.1f} s; report: {path}")
    return result


def show(store_url: str, key: str | None) -> None:
    from largeforge_ray.store import open_store

    store = open_store(store_url)
    if key is None:
        if not any(True for _ in store.artifacts()):
            click.echo(f"store {store.url} holds no artifacts; make some with: largeforge run MANIFEST")
        for a in sorted(store.artifacts(), key=lambda a: a.created):
            click.echo(f"{a.created}  {a.kind:<9}{a.key[:16]}  {a.name}")
        return
    import yaml

    artifact = store.get(key)
    facts = {
        "kind": artifact.kind,
        "key": artifact.key,
        "name": artifact.name,
        "created": artifact.created,
        "parents": [p[:16] for p in artifact.parents],
        "config": dict(artifact.config),
        "metrics": {k: v for k, v in artifact.metrics.items() if k != "losses"},
        "cost": dict(artifact.cost),
        "files": {f.path: f.bytes for f in artifact.files},
        "producer": dict(artifact.producer),
    }
    click.echo(yaml.safe_dump(facts, sort_keys=False, allow_unicode=True).rstrip())


def lineage(store_url: str, key: str) -> None:
    from largeforge_ray.store import format_lineage, lineage_tree, open_store

    store = open_store(store_url)
    click.echo(format_lineage(lineage_tree(store, store.get(key))))


def report(store_url: str, run_id: str | None) -> None:
    from largeforge_ray.observe import write_report
    from largeforge_ray.store import open_store

    store = open_store(store_url)
    runs = sorted({p.split("/")[1] for p in store.list("runs")})
    if not runs:
        raise StoreError(f"store {store.url} holds no runs; start one with: largeforge run MANIFEST")
    if run_id is not None and run_id not in runs:
        raise StoreError(f"run '{run_id}' is not in store {store.url}; newest runs: {', '.join(runs[-5:])}")
    click.echo(write_report(store, run_id or runs[-1]))


def doctor(store_url: str, quick: bool) -> None:
    from largeforge_ray.flow.doctor import examine

    findings = 0
    for check in examine(store_url, quick=quick):
        findings += not check.ok
        click.echo(f"{'ok  ' if check.ok else 'FAIL'}  {check.name:<10} {check.found}")
        if not check.ok:
            click.echo(f"      {'':<10} fix: {check.fix}")
    if findings:
        raise ForgeError(f"{findings} finding(s); each names its fix above")


def quickstart(port: int) -> None:
    """Run, serve, ask, stop; then say what to try next."""
    from largeforge_ray.flow.doctor import require_port
    from train_jobs.console import Console
    from train_jobs.serving import ask_router, running_server

    require_port(port)
    result = run_manifest(SHIPPED, None)
    say = Console().say
    router = result.artifacts["live"]
    with running_server("./forge", router.key, port, say) as url:
        ask_router(url, say)
    expert = router.metrics["live"][-1]
    say("")
    say("Try next:")
    say("  .venv/bin/largeforge serve                   keep the router running")
    say(f"  .venv/bin/largeforge lineage {expert:<16}what the served expert was made from")
    say("  .venv/bin/largeforge plan train_jobs/manifests/quickstart.yaml")
    say(f"  open forge/runs/{result.run}/report.html")
