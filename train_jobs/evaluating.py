"""``largeforge eval`` and ``largeforge compare``: options to a manifest, outcomes to a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from largeforge_ray.errors import ConfigError, GateError, ResourceError

FOLDERS = {"truthfulqa_mc1": "truthfulqa", "truthfulqa_mc2": "truthfulqa", "truthfulqa_gen": "truthfulqa"}
"""Where below --data a task's documents are, if not in a folder of its name."""


def manifest_of(
    *,
    model: str,
    tasks: str,
    data: Path | None,
    store: str,
    limit: int | None,
    num_fewshot: int | None,
    chat: bool,
    perturb: str | None,
    max_model_len: int,
    endpoint: tuple[str, str] | None,
) -> dict[str, Any]:
    """The manifest that ``largeforge eval`` runs: one evaluate stage. ``endpoint`` is a URL and a model."""
    options: dict[str, Any] = {"limit": limit, "num_fewshot": num_fewshot}
    options = {name: value for name, value in options.items() if value is not None}
    if chat:
        options["chat"] = True
    if perturb:
        options["perturb"] = perturb.split(",")
    entries = []
    for name in (each.strip() for each in tasks.split(",")):
        source = {} if data is None else {"source": str((data / FOLDERS.get(name, name)).resolve())}
        entries.append({"name": name} | source | options)
    candidates: list[Any] = ["base"]
    if endpoint is not None:
        url, served = endpoint
        candidates = [{"name": "endpoint", "endpoint": {"url": url, "model": served}}]
    return {
        "name": "eval",
        "store": store,
        "model": {"source": model, "max_model_len": max_model_len},
        "stages": [{"name": "outcomes", "kind": "evaluate", "candidates": candidates, "tasks": entries}],
    }


def evaluate(given: dict[str, Any], out: Path | None) -> None:
    """Run the manifest; print the scores and where the page is."""
    import yaml

    from largeforge_ray.config import parse_manifest
    from largeforge_ray.store import open_store
    from train_jobs.commands import run_loaded

    loaded = parse_manifest(yaml.safe_dump(given, sort_keys=False), "largeforge eval")
    store = open_store(loaded.store)
    result = run_loaded(loaded, store, Path.cwd())
    folder = store.fetch(result.artifacts["outcomes"])
    summary = _summary(folder)
    for line in score_lines(summary):
        click.echo(line)
    if out is not None:
        about = {"Model": given["model"]["source"], "Intervals": "95%", "Outcomes": str(folder)}
        written = write_pages(summary, out, about)
        click.echo(f"written: {', '.join(str(path) for path in written)}")


def score_lines(summary: dict[str, Any]) -> list[str]:
    """A line for each task and expert."""
    lines = [
        f"{'task':<18}{'expert':<14}{'metric':<14}{'score':>7}  {'95% interval':<16}{'n':>6}  seconds/item"
    ]
    for task, experts in summary["tasks"].items():
        for expert, cell in experts.items():
            spread = f"[{cell['low']:.3f}, {cell['high']:.3f}]"
            each = cell["seconds"] / max(1, cell["n"])
            lines.append(
                f"{task:<18}{expert:<14}{cell['metric']:<14}{cell['accuracy']:>7.3f}  {spread:<16}"
                f"{cell['n']:>6}  {each:.3f}"
            )
    return lines


def write_pages(summary: dict[str, Any], out: Path, about: dict[str, str]) -> list[Path]:
    """``evaluation.html``, ``.md`` and ``.json`` in the folder ``out``."""
    import json

    from largeforge_ray.observe.evaluations import markdown_evaluation, render_evaluation

    out.mkdir(parents=True, exist_ok=True)
    texts = {
        "evaluation.html": render_evaluation(summary, title="Evaluation", about=about),
        "evaluation.md": markdown_evaluation(summary, title="Evaluation", about=about),
        "evaluation.json": json.dumps(summary, indent=1),
    }
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")
    return [out / name for name in texts]


def compare(store_url: str, first: str, second: str, confidence: float) -> None:
    """Print the paired differences of two experts, by task."""
    from largeforge_ray.evaluate.compare import compare_experts, compare_slices
    from largeforge_ray.evaluate.matrix import build_matrix, read_columns
    from largeforge_ray.store import open_store

    store = open_store(store_url)
    sides = [_side(store, given) for given in (first, second)]
    names = [name for name, _ in sides]
    if names[0] == names[1]:
        names = [f"{name} ({given})" for name, given in zip(names, (first, second), strict=True)]
    rows = [row | {"expert": name} for name, (_, of_it) in zip(names, sides, strict=True) for row in of_it]
    matrix = build_matrix(read_columns(rows)).complete()
    if not matrix.items:
        raise ConfigError(
            f"'{first}' and '{second}' have no item in common; evaluate both on the same tasks and options"
        )
    import numpy as np

    tasks = sorted(set(matrix.tasks))
    parts = [(task, matrix.take(np.array(matrix.tasks) == task)) for task in tasks]
    for task, part in [*parts, *([("all", matrix)] if len(tasks) > 1 else [])]:
        (one,) = compare_experts(part, confidence=confidence, baseline=names[1])
        click.echo(f"{task:<18}{one.n:>6} items  p {one.p_corrected:<8.3g}{one.verdict}")
        for name, of_slice in compare_slices(part, names[0], names[1], confidence=confidence).items():
            if of_slice.p_corrected < 1 - confidence:
                click.echo(
                    f"  {name:<16}{of_slice.n:>6} items  p {of_slice.p_corrected:<8.3g}{of_slice.verdict}"
                )


def replay(store_url: str, outcomes: str, reference: str, live: str | None, sample: int, key: str) -> None:
    """Print what every policy of a router would have got, and what the served app makes of the same items."""
    import asyncio

    from largeforge_ray.evaluate.items import items_path, read_items
    from largeforge_ray.evaluate.matrix import build_matrix, read_columns
    from largeforge_ray.evaluate.outcomes import prompt_of, read_outcomes
    from largeforge_ray.evaluate.replay import decide_all
    from largeforge_ray.evaluate.routed import ask_live, of_router, replay_policies
    from largeforge_ray.routing import Policies, parse_router
    from largeforge_ray.store import open_store

    store = open_store(store_url)
    folder = store.fetch(_of_kind(store, outcomes, "outcomes"))
    routed = store.fetch(_of_kind(store, reference, "router"))
    router, policies = parse_router((routed / "router.json").read_bytes()), Policies(routed)
    if not items_path(folder, "generate").is_file():
        raise ConfigError(f"outcomes '{outcomes}' were made before items lay beside them; evaluate again")
    items = [each for each in read_items(folder, "generate") if each["variant"] is None]
    asked = [*items, *(each for each in read_items(folder, "choice") if each["variant"] is None)]
    prompts = {each["item_hash"]: prompt_of(each) for each in asked}
    matrix = build_matrix(read_columns(read_outcomes(folder)), prompts)
    found = replay_policies(matrix, router, policies)
    for line in policy_lines(found):
        click.echo(line)
    if live is None:
        return
    kept = of_router(matrix, router)
    chats = [each for each in items if each["messages"] and each["item_hash"] in set(kept.items)]
    chosen = sorted(chats, key=lambda each: each["item_hash"])[:sample]
    if not chosen:
        raise ConfigError(
            f"'{outcomes}' has no chat items that an app could answer; evaluate with chat: true"
        )
    decided, _ = decide_all(policies.build(router), kept)
    said = asyncio.run(ask_live(live, chosen, kept, decided, api_key=key))
    q, r = said.quality, said.replayed
    if said.failed == q.n:
        raise ResourceError(
            f"{live} answered none of {q.n} requests: {said.error}; start the app there, or correct --live "
            "or its key"
        )
    click.echo(f"live: quality {_spread(q)} on {q.n} items, {said.failed} failed")
    click.echo(f"replayed: {_spread(r)}; the same expert for {said.same_expert:.0%}")
    if q.low > r.high or q.high < r.low:
        raise GateError("live and replay differ beyond their intervals; is another router or adapter served?")


def policy_lines(found: dict[str, Any]) -> list[str]:
    """A line for each policy and baseline."""
    lines = [f"{'policy':<18}{'quality':<24}{'misrouted':>10}{'pool gap':>10}{'ece':>7}  calls"]
    for name, one in found.items():
        made, ece = one.replayed, "" if one.ece is None else f"{one.ece:.3f}"
        calls = ", ".join(f"{expert} {share:.2f}" for expert, share in made.calls.items() if share)
        lost = f"{made.misrouted:>10.3f}{made.pool_gap:>10.3f}"
        lines.append(f"{name:<18}{_spread(made.quality):<24}{lost}{ece:>7}  {calls}")
    return lines


def _spread(found: Any) -> str:
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _of_kind(store: Any, reference: str, kind: str) -> Any:
    artifact = store.get(reference)
    if artifact.kind != kind:
        raise ConfigError(f"artifact '{reference}' is of kind {artifact.kind}; name one of kind {kind}")
    return artifact


def _side(store: Any, given: str) -> tuple[str, list[dict[str, Any]]]:
    """An expert's name and its rows of ``KEY`` or ``KEY:EXPERT``."""
    from largeforge_ray.evaluate.outcomes import read_outcomes

    key, _, expert = given.partition(":")
    artifact = _of_kind(store, key, "outcomes")
    rows = [row for row in read_outcomes(store.fetch(artifact)) if row["variant"] is None]
    there = sorted({row["expert"] for row in rows})
    if not expert and len(there) > 1:
        raise ConfigError(
            f"'{key}' holds several experts; name one, as {key}:{there[0]}; there are: {', '.join(there)}"
        )
    expert = expert or there[0]
    if expert not in there:
        raise ConfigError(f"'{key}' has no expert '{expert}'; there are: {', '.join(there)}")
    return expert, [row for row in rows if row["expert"] == expert]


def _summary(folder: Path) -> dict[str, Any]:
    import json

    summary: dict[str, Any] = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    return summary
