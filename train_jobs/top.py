"""`largeforge top`: runs, experts and workers in the terminal, as they are now."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from largeforge_ray.errors import ForgeError
from train_jobs.dashboard import ADDRESS, explained, knock
from train_jobs.experts import Router

if TYPE_CHECKING:
    from largeforge_ray.observe.live import ExpertView, RunView, Snapshot

COLOURS = {"running": "cyan", "done": "green", "live": "green", "failed": "red", "silent": "yellow"}
ASK_S = 5
GIB = 1024**3


@click.command()
@click.option("--store", default="./forge", show_default=True, help="Whose runs are shown.")
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="The router's address.")
@ADDRESS
@click.option("--once", is_flag=True, help="Print one look as plain text and exit.")
@click.option(
    "--interval", default=2.0, show_default=True, type=click.FloatRange(0.2), help="Seconds between looks."
)
def top(store: str, url: str, address: str, once: bool, interval: float) -> None:
    """Watch a store's runs, the experts of a router, and a cluster's nodes and actors; q leaves.

    It only looks: no Ray is started or joined, and nothing is written. What is not there is said in a line.
    OPENAI_API_KEY is the key for a router that asks for one.
    """
    look = Looker(store, url.rstrip("/"), address.rstrip("/"))
    terminal = Console(highlight=False)
    if once or not terminal.is_terminal:
        plain = Console(highlight=False, color_system=None, force_terminal=False)
        plain.print(render(look.snapshot(), plain.width))
        return
    try:
        with _keys() as pressed, Live(console=terminal, screen=True, auto_refresh=False) as live:
            while True:
                live.update(render(look.snapshot(), terminal.width), refresh=True)
                if pressed(interval):
                    return
    except KeyboardInterrupt:
        return


class Looker:
    """Looks at a store, a router and a cluster, again and again."""

    def __init__(self, store: str, url: str, address: str) -> None:
        from largeforge_ray.store import Store

        # Opening one would make its folder and sweep it.
        self._store, self._address = Store(store), address
        self._router = Router(url, "", timeout_s=ASK_S)
        self._last: Snapshot | None = None

    def snapshot(self) -> Snapshot:
        from largeforge_ray.observe.live import observe

        cards, cluster = self._ask(self._router.cards), self._ask(self._cluster)
        self._last = observe(self._store, time.time(), cards=cards, cluster=cluster, before=self._last)
        return self._last

    def _cluster(self) -> Any:
        from largeforge_ray.observe.cluster import read_cluster

        with explained(self._address):
            knock(self._address)
            return read_cluster(self._address)

    @staticmethod
    def _ask(question: Any) -> Any:
        """The answer, or in words why there is none."""
        try:
            return question()
        except ForgeError as error:
            return str(error)


def render(snapshot: Snapshot, width: int) -> Group:
    """A snapshot as three tables no wider than ``width`` columns; the less needed ones go first."""
    roomy, wide = width >= 80, width >= 110
    runs = _table("RUNS", "run", "state", "stage", "progress", "left", heard=roomy, rate=wide)
    for run in snapshot.runs:
        _add(runs, _run_cells(run, snapshot.time))
    names = ("expert", "state", "replicas", "running", "wait")
    experts = _table("EXPERTS", *names, accepted=roomy, artifact=wide)
    for expert in snapshot.experts:
        _add(experts, _expert_cells(expert))
    nodes = _table("WORKERS", "node", "CPU", "GPU", "memory")
    for node in snapshot.cluster.nodes:
        used = f"{node.memory_used_bytes / GIB:.1f} of {node.memory_bytes / GIB:.1f} GiB"
        gpu = f"{node.gpu:.0%} of {node.gpus}" if node.gpus else "-"
        _add(nodes, [node.name, f"{node.cpu:.0%} of {node.cpus}", gpu, used])
    actors = ", ".join(f"{name} {number}" for name, number in snapshot.cluster.actors)
    parts: list[Any] = []
    for table, name in ((runs, "runs"), (experts, "experts"), (nodes, "workers")):
        missing = snapshot.absent.get(name)
        parts += [Text(f"{table.title}: {missing}", "dim") if missing else table, Text()]
    return Group(*parts[:-1], *([Text(f"actors: {actors}")] if actors else []))


def _run_cells(run: RunView, now: float) -> list[str | Text]:
    progress = "-" if run.total is None else f"{run.done:g}/{run.total:g}"
    stages = f"{run.stage} ({run.stages_done}/{run.stages})"
    rate = "-" if run.rate is None else f"{run.rate:.3g}/s"
    left = duration(run.left_s) if run.state == "running" else "-"
    return [run.run, _coloured(run.state), stages, progress, left, f"{duration(now - run.heard)} ago", rate]


def _expert_cells(expert: ExpertView) -> list[str | Text]:
    accepted = "-" if expert.acceptance is None else f"{expert.acceptance:.0%}"
    state = _coloured(expert.state) if expert.up else Text(f"{expert.state}, down", "red")
    wait = f"{expert.waiting_s:.1f} s"
    return [expert.name, state, f"{expert.replicas}", f"{expert.running}", wait, accepted, expert.artifact]


def _table(title: str, *columns: str, **more: bool) -> Table:
    """``more`` are columns that are there only if there is room."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in (*columns, *(name for name, there in more.items() if there)):
        # Names of the user's may be long, and give way first.
        fixed = column not in ("stage", "expert", "node")
        table.add_column(column, no_wrap=fixed, overflow="ellipsis", header_style="dim")
    return table


def _add(table: Table, cells: list[Any]) -> None:
    table.add_row(*cells[: len(table.columns)])


def _coloured(state: str) -> Text:
    return Text(state, COLOURS.get(state, ""))


def duration(seconds: float | None) -> str:
    """In the unit that says it in two digits or three."""
    if seconds is None:
        return "-"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


@contextmanager
def _keys() -> Iterator[Any]:
    """Takes keys one by one and unseen; yields a function that waits and says whether q was pressed."""
    if not sys.stdin.isatty():
        yield time.sleep  # which nobody can press a key in
        return
    there = sys.stdin.fileno()

    def pressed(seconds: float) -> bool:
        ready, _, _ = select.select([there], [], [], seconds)
        return bool(ready) and b"q" in os.read(there, 64).lower()

    before = termios.tcgetattr(there)
    tty.setcbreak(there)
    try:
        yield pressed
    finally:
        termios.tcsetattr(there, termios.TCSADRAIN, before)
